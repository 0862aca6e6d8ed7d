"""A dictionary from elsewhere gets the certificate that one of the run's own would get, and goes through every other stage."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import kyomei
from kyomei.cli import app
from kyomei.dictionary.formats import write
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError, Interrupted, RunError
from kyomei.runs import Run
from kyomei.stages import foreign as stage
from kyomei.stages.arms import imported_pairs
from kyomei.stages.certify import certificates_of, standing
from kyomei.stages.foreign import Foreign, certify_foreign
from kyomei.stages.index import index_run
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
