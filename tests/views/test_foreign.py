"""A dictionary from elsewhere gets the certificate that one of the run's own would get, and goes through every other stage."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.views.explorer_samples import client_of
from typer.testing import CliRunner, Result

import kyomei
from kyomei.cli import app
from kyomei.dictionary.formats import write
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError, Interrupted, RunError
from kyomei.evidence.certificate import Certificate
from kyomei.evidence.reproduction import NullMatches
from kyomei.evidence.verdict import verdict
from kyomei.runs import Run
from kyomei.stages import certify as certify_stage
from kyomei.stages import foreign as stage
from kyomei.stages.alone import Alone
from kyomei.stages.arms import imported_pairs, made_for, main_pair, own_pair
from kyomei.stages.certify import certificate_path, certificates_of, certify_run, standing, verdict_of
from kyomei.stages.explore import explorer_of, explorer_of_alone
from kyomei.stages.foreign import Foreign, certify_foreign
from kyomei.stages.index import index_run
from kyomei.stages.listing import runs_below
from kyomei.stages.measure import measure_run, measured
from kyomei.stages.progress import Reporter
from kyomei.stages.report import report_run
from kyomei.views.queries import Index

TRANSCODER = Path(__file__).parents[1] / "dictionary/formats/files/saelens-transcoder"


def verb(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def run(indexed: Run, tmp_path: Path) -> Run:
    shutil.copytree(indexed.folder, tmp_path / "run")
    return Run.open(tmp_path / "run")


def as_elsewhere(sae: SparseAutoencoder, folder: Path) -> Path:
    """The same function, as SAELens keeps it."""
    other = SparseAutoencoder(sae.encoder, sae.decoder, sae.threshold, sae.center, activation="topk", k=sae.k)
    other.provenance = {"model": "embedded", "hook_name": "blocks.2.hook_mlp_out", "context": 64}
    write(other, folder, "saelens")
    return folder


def own(run: Run) -> SparseAutoencoder:
    return kyomei.load(run.path("replicas/0"))


def certify(run: Run, path: Path, **more: Any) -> dict[str, Any]:
    return certify_foreign(run.folder, Foreign.read(str(path)), {}, Reporter(), lambda: True, **more)


def statuses(certificate: dict[str, Any]) -> dict[int, str]:
    return {feature["index"]: feature["status"] for feature in certificate["features"]}


def test_the_runs_own_dictionary_from_elsewhere_gets_its_own_certificate(run: Run, tmp_path: Path) -> None:
    """Replica 0 has all its latents, so that the other two decide, as they do in the run."""
    facts = certify(run, as_elsewhere(own(run), tmp_path / "own"))
    first, second = facts["certificates"].values()
    assert next(iter(facts["certificates"])) == "imported own"
    assert first["replicas"] == ["imported/own/0", "replicas/0", "replicas/1", "replicas/2"]
    assert statuses(first) == statuses(second)
    assert len(set(statuses(first).values())) > 1, "a comparison that could fail"
    for mine, theirs in zip(first["features"], second["features"], strict=True):
        assert mine["encoder_mcs"][0] == pytest.approx(1, abs=1e-4) and mine["encoder_mcs"][1:] == theirs["encoder_mcs"]
        assert mine["origin"] == theirs["origin"] and mine["tokens"] == theirs["tokens"]
    assert first["null"] == second["null"] and first["rule"] == second["rule"]
    assert first["fidelity"] == pytest.approx(second["fidelity"], rel=1e-4)


def test_every_dictionary_meets_the_evidence_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two dictionaries from elsewhere and the run's own: five are surveyed, and one null; certificates are as if made alone."""
    paths = [as_elsewhere(own(run), tmp_path / name) for name in ("one", "two")]
    alone = [certify(run, path)["certificates"][f"imported {path.name}"] for path in paths]
    for found in (run.path("certificate.json"), *run.folder.glob("imported/*/certificate.json")):
        found.unlink()
    surveyed, nulls = list[int](), list[str]()
    survey, measure = certify_stage.survey, NullMatches.measure
    monkeypatch.setattr(
        certify_stage, "survey", lambda saes, *rest, **more: surveyed.append(len(saes)) or survey(saes, *rest, **more)
    )
    monkeypatch.setattr(NullMatches, "measure", lambda null, rows: nulls.append("") or measure(null, rows))
    with run.lock():
        together = certify_run(run, Reporter())["certificates"]
    assert sum(surveyed) == 5 and len(nulls) == 1
    for certificate in alone:
        again = together[certificate["mechanism"]]
        assert {**again, "created": ""} == {**certificate, "created": ""}


def test_directions_that_no_replica_has_are_not_certified(run: Run, tmp_path: Path) -> None:
    sae = own(run)
    encoder = torch.nn.functional.normalize(torch.randn(sae.encoder.shape, generator=torch.Generator().manual_seed(3)), dim=1)
    random = SparseAutoencoder(encoder, None, torch.zeros(sae.width), sae.center, activation="topk", k=6)
    facts = certify(run, as_elsewhere(random, tmp_path / "random"))
    certificate = facts["certificates"]["imported random"]
    assert "certified" not in statuses(certificate).values()
    assert facts["verdict"]["headline"].startswith("Do not trust this dictionary: not one of its 64 latents")


def test_a_sample_has_the_statuses_that_all_would_have(run: Run, tmp_path: Path) -> None:
    path = as_elsewhere(own(run), tmp_path / "own")
    whole = statuses(certify(run, path)["certificates"]["imported own"])
    facts = certify(run, path, latents=20)
    some = facts["certificates"]["imported own"]
    assert len(some["features"]) == some["sampled"] == 20 and some["width"] == 64
    assert statuses(some).items() <= whole.items()
    assert "of its 20 latents drawn of 64" in facts["verdict"]["headline"]
    assert statuses(certify(run, path, latents=20)["certificates"]["imported own"]) == statuses(some), "the same draw"
    with run.lock():
        (indexed,) = index_run(run, Reporter(), ["imported-own-0"])
    counts = Index(indexed.folder).overview()["status"]
    assert counts.pop("not certified") == 44 and sum(counts.values()) == 20


def test_it_is_one_more_dictionary_of_the_run(run: Run, tmp_path: Path) -> None:
    path = as_elsewhere(own(run), tmp_path / "own")
    with run.lock():
        pair = stage.import_into(run, Foreign.read(str(path)))
        measure_run(run, Reporter())
        page = report_run(run).read_text(encoding="utf-8")
    assert "own, imported: not certified." in page and standing(run, pair) is None
    figures = run.read_json("evidence.json")["mechanisms"]
    imported, mine = figures["imported own"], figures[next(iter(figures))]
    assert imported["fidelity"][0]["fvu"] == pytest.approx(mine["fidelity"][0]["fvu"], rel=1e-4)
    assert len(imported["consistency"]) == 3 and len(mine["consistency"]) == 2
    certify(run, path)
    assert "imported own" in certificates_of(run) and "not certified." not in report_run(run).read_text(encoding="utf-8")
    assert [pair.name for pair in imported_pairs(run)] == ["imported own"] and measured(run)
    compared = verb("compare", run.folder, "--json")
    assert "own, imported" in compared.stdout
    said = verb("encode", run.folder, "def f(x):", "--dictionary", "imported-own-0", "--json")
    assert '"status": ' in said.stdout, said.stderr


def test_a_run_that_is_made_for_it_is_about_it(run: Run, tmp_path: Path) -> None:
    """Report, explorer, terminal: it is named and comes first; the run's own dictionary is named as such beside it."""
    sae = own(run)
    turned = SparseAutoencoder(
        sae.encoder.flip(0), sae.decoder.flip(0), sae.threshold.flip(0), sae.center, activation="topk", k=sae.k
    )
    path = as_elsewhere(turned, tmp_path / "theirs")
    certify(run, path)
    mine, theirs = own_pair(run), imported_pairs(run)[0]
    page = report_run(run).read_text(encoding="utf-8").replace("\u00a0%", " %")
    lead = f'<p class="lead"><b>{mine.title}.</b> {verdict_of(run, pair=mine).headline}'
    assert lead in page and '<p class="about">theirs, imported: ' in page, "the run was not made for it"
    run.note(**made_for("theirs"))
    with run.lock():
        measure_run(run, Reporter())
        page = report_run(run).read_text(encoding="utf-8").replace("\u00a0%", " %")
        index_run(run, Reporter(), ["imported-theirs-0"])
    assert f'<p class="lead"><b>theirs, imported.</b> {verdict_of(run, pair=theirs).headline}' in page
    assert f'<p class="about">{mine.title}: {verdict_of(run, pair=mine).headline}</p>' in page
    assert list(certificates_of(run)) == [theirs.name, mine.name]
    assert "the theirs, imported dictionary leaves" in page, "the first sentence of what was measured"
    certificate = Certificate.read(certificate_path(run, theirs))
    for example in run.read_json("examples.json"):
        feature = certificate.feature(example["index"])
        assert feature is not None and feature["frequency"] == pytest.approx(example["frequency"]), "cards are of theirs"
    said = verb("report", run.folder)
    assert said.stdout.startswith("theirs, imported: "), said.stdout
    for client in client_of(explorer_of(run), read_only=True):
        assert client.get("/api/state").json()["dictionary"] == "imported-theirs-0"
        found = client.get("/api/overview").json()
        assert found["verdict"]["dictionary"] == "theirs, imported" and found["certificate_state"] == "holds"
    exported = verb("export", run.folder, tmp_path / "out", "--format", "saelens", "--json")
    assert exported.exit_code == 0 and torch.equal(kyomei.load(tmp_path / "out").encoder, own(run).encoder), exported.stderr
    run.path("certificate.json").unlink()  # the run's own, which the list does not show
    (listed,) = runs_below(run.folder)
    share = certificate.to_dict()["shares"]["count"]["status"]["certified"]
    assert (listed["mechanism"], listed["certified"]) == ("theirs, imported", share)


def test_a_certificate_that_lies_beside_a_dictionary_is_shown(indexed: Run, tmp_path: Path) -> None:
    """Exported in another library's format, imported, explored without the run: statuses and origins are the certificate's."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    certificate = standing(indexed, own_pair(indexed))
    assert certificate is not None
    assert verb("export", indexed.folder, theirs, "--format", "saelens").exit_code == 0
    assert verb("import", theirs, ours).exit_code == 0
    asked = ["--text", "stdlib", "--tokens", "1024"]
    for folder in (theirs, ours):
        done = verb("index", folder, *asked, "--json")
        assert done.exit_code == 0, done.stderr
        for client in client_of(explorer_of_alone(Alone.asked(folder, None, {})), read_only=True):
            state, overview = client.get("/api/state").json(), client.get("/api/overview").json()
            assert {"state.no_certificate", "state.no_replicas"}.isdisjoint(note["key"] for note in state["notes"])
            assert overview["certificate_state"] == "holds"
            assert overview["verdict"]["headline"] == verdict(certificate.to_dict()).headline
            rows = client.get("/api/features", params={"size": 200}).json()["rows"]
            assert {row["latent"]: row["status"] for row in rows} == statuses(certificate.to_dict())
            entry = next(feature for feature in certificate.features if feature["status"] != "dead")
            feature = client.get(f"/api/features/{entry['index']}").json()
            assert feature["origin"] == entry["origin"]["kind"] and "Asked:" in feature["why"]
    said = verb("encode", ours, "def f(x):", "--json")
    assert said.exit_code == 0 and '"status": ' in said.stdout
    old = replace(certificate, constants={**certificate.constants, "version": 0.0})
    old.write(ours / "certificate.json")
    again = verb("index", ours, "--json")
    assert (
        "certificate changed" in again.stderr
        and Index(ours / "explore/dictionary").overview()["certificate_state"] == "expired"
    )
    replace(certificate, width=32).write(ours / "certificate.json")
    other = verb("index", ours)
    assert other.exit_code == 2 and "width 32" in other.stderr and "certificate.json" in other.stderr, other.stderr


def test_what_makes_no_sense_is_refused(run: Run, tmp_path: Path) -> None:
    path = as_elsewhere(own(run), tmp_path / "own")
    with run.lock():
        stage.import_into(run, Foreign.read(str(path)))
        again = stage.import_into(run, Foreign.read(str(path)))
        other = replace(Foreign.read(str(path)), sae=own(run).to(dtype=torch.bfloat16))
        with pytest.raises(RunError, match="which another dictionary has there"):
            stage.import_into(run, other)
    assert again.name == "imported own"
    refusals = {
        "a transcoder": (("--sae", TRANSCODER, "--text", "stdlib"), "transcoder"),
        "nothing there": (("--sae", tmp_path / "nothing"), "nothing"),
        "no text": (("--sae", path), "Add --text"),
        "another recipe": ((run.folder, "--sae", path, "--width", "32"), "dictionary.width"),
        "several widths": (
            ("--sae", path, "--text", "stdlib", "--width", "64", "--width", "32"),
            "one value of dictionary.width",
        ),
        "another site": (("--sae", path, "--text", "stdlib", "--site", "model.layers.1.mlp.up_proj"), "rows of dimension 256"),
        "a baseline": ((run.folder, "--sae", path, "--baseline", "topk"), "--sae alone"),
        "no run": ((), "the folder of a run, or --sae"),
        "settings of no run": ((run.folder, "--width", "64"), "settings with --sae only"),
    }
    before = sorted(path.name for path in tmp_path.iterdir())
    for name, (arguments, words) in refusals.items():
        done = verb("certify", *arguments)
        assert done.exit_code == 2 and words in done.stderr, f"{name}: {done.stderr[-500:]}"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_it_has_the_name_of_its_folder_or_of_its_place_on_the_hub(
    indexed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = as_elsewhere(own(indexed), tmp_path / "a name, with signs")
    assert Foreign.read(str(folder)).name == "a-name-with-signs"
    scope = TRANSCODER.parent / "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
    assert Foreign.read(str(scope / "params.npz")).name == Foreign.read(str(scope)).name == "average_l0_71"
    asked = list[tuple[str, str | None, str | None]]()

    def fetched(name: str, revision: str | None, within: str | None) -> Path:
        asked.append((name, revision, within))
        return folder

    monkeypatch.setattr(stage, "fetch", fetched)
    for words in ("owner/saes", "owner/saes/layer.3/x@v1"):
        foreign = Foreign.read(words)
        assert foreign.origin == words and foreign.kind == "saelens, topk"
    assert asked == [("owner/saes", None, None), ("owner/saes", "v1", "layer.3/x")] and foreign.name == "saes-layer.3-x"
    with pytest.raises(DataError):
        Foreign.read("/nowhere/at/all")


def test_a_no_writes_nothing_and_says_what_it_would_take(
    indexed: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = as_elsewhere(own(indexed), tmp_path / "own")
    asked = {"source.text": "stdlib", "source.num_tokens": 12_000, "train.steps": 50, "source.spread": 1}
    with pytest.raises(RunError, match="Nothing was written"):
        certify_foreign(tmp_path / "new", Foreign.read(str(path)), asked, Reporter(), lambda: False)
    assert not (tmp_path / "new").exists()
    said = capsys.readouterr().err.replace("\n", " ")
    assert "3 replicas and 2 nulls of width 64, L0 6, 50 steps each" in said and "GB of disk" in said


def test_a_stopped_certificate_goes_on_where_it_was(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_elsewhere(own(run), tmp_path / "own")

    def stopped(*_: object) -> None:
        raise Interrupted("the end of training", "a signal", "go on with it")

    monkeypatch.setattr(stage, "train_run", stopped)
    with pytest.raises(Interrupted):
        certify(run, path)
    assert standing(run, imported_pairs(run)[0]) is None
    monkeypatch.undo()
    assert certify(run, path)["certificates"]["imported own"]["num_rows"] > 1000


@pytest.mark.slow
def test_one_command_certifies_a_dictionary_from_elsewhere(indexed: Run, tmp_path: Path) -> None:
    """The default recipe in small, through the verb: model, site and context are the dictionary's word, the rest is matched."""
    path = as_elsewhere(own(indexed), tmp_path / "own")
    folder = tmp_path / "made"
    small = ["--tokens", "12000", "--steps", "60", "--set", "source.spread=2", "--set", "resonance.neurons=128"]
    done = verb("certify", folder, "--sae", path, "--text", "stdlib", *small, "--set", "resonance.rounds=1", "--json")
    assert done.exit_code == 0, done.stderr
    recipe = Run.open(folder).recipe
    assert recipe.source.sites == ("blocks.2.hook_mlp_out",) and recipe.source.context == 64
    assert recipe.dictionary.width == 64 and recipe.dictionary.l0 == 6.0 and recipe.mechanism.name == "gba"
    facts = json.loads(done.stdout)
    assert main_pair(Run.open(folder)).name == "imported own" and facts["verdict"]["dictionary"] == "own, imported"
    assert next(iter(facts["certificates"])) == "imported own" and facts["dictionary"] == "imported/own/0"
    again = verb("certify", folder, "--sae", path, "--json")
    assert again.exit_code == 0 and "train replicas" not in again.stderr, "nothing is done twice, nothing need be said twice"
    assert json.loads(again.stdout)["certificates"] == facts["certificates"]


def test_a_dictionary_of_another_dimension_is_refused_before_anything_is_written(indexed: Run, tmp_path: Path) -> None:
    write(SparseAutoencoder(torch.eye(7), None, torch.zeros(7), torch.zeros(7)), tmp_path / "sae", "saelens")
    asked = {"source.model": "embedded", "source.sites": ["model.layers.2.mlp"], "source.text": "stdlib"}
    few = {"source.num_tokens": 4000, "source.spread": 1, "source.context": 64}
    with pytest.raises(DataError, match="rows of dimension 7"):
        foreign = Foreign.read(str(tmp_path / "sae"))
        certify_foreign(tmp_path / "new", foreign, {**asked, **few}, Reporter(), lambda: True)
    assert not (tmp_path / "new").exists()
