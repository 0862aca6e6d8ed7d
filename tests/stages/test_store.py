"""A run whose rows and tokens are at an address, through the verbs: as one in a folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from click.testing import Result
from typer.testing import CliRunner

from kyomei.cli import app
from kyomei.config import Recipe
from kyomei.errors import RecipeError
from kyomei.runs import HARVESTED, OWNER, Run
from kyomei.stages import rollout
from kyomei.stages.forget import documents_of
from kyomei.stages.full import FILE as FULL_RECIPE
from kyomei.stages.harvested import beside, harvest_of, source_from
from kyomei.stages.journal import Change
from kyomei.stores import RemoteStore

SOURCE = {"source.num_tokens": 4_000, "source.context": 32, "source.spread": 1, "source.replicas": 2}
SOURCE |= {"source.windows_per_shard": 16, "source.evidence_share": 0.4}
RUNS = ("near-run", "far-run")
TRAIN = {"mechanism.name": "topk", "dictionary.width": 32, "dictionary.l0": 4, "train.steps": 8, "train.batch_rows": 64}


def kyomei(*arguments: str | Path, **settings: object) -> Result:
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return CliRunner().invoke(app, [*map(str, arguments), *sets])


def done(*arguments: str | Path, **settings: object) -> Result:
    result = kyomei(*arguments, **settings)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module", autouse=True)
def copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KYOMEI_CACHE", str(tmp_path_factory.mktemp("copies")))
        yield
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of a harvest, one with its rows at an address, and a training on each. Nothing may change them."""
    place = tmp_path_factory.mktemp("stored")
    for name, more in (("near", {}), ("far", {"source.store": "memory://bucket/far"})):
        done("harvest", place / name, **SOURCE, **more)
        done("train", place / f"{name}-run", "--from", place / name, **TRAIN)
    return place


def held(place: Path | str) -> dict[str, bytes]:
    """Rows and tokens of a folder, or of an address."""
    if isinstance(place, str):
        memory = fsspec.filesystem("memory")
        root = memory._strip_protocol(place) + "/"
        return {path.removeprefix(root): memory.cat_file(path) for path in memory.find(root) if not path.endswith(OWNER)}
    files = [path for folder in HARVESTED for path in (place / folder).rglob("*") if path.is_file()]
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in files}


def test_rows_at_an_address_and_what_is_learnt_from_them_have_the_same_bytes(made: Path) -> None:
    assert held("memory://bucket/far") == held(made / "near") and not any((made / "far" / name).exists() for name in HARVESTED)
    near, far = (Run.open(made / name).manifest for name in ("near", "far"))
    assert {name: near["outputs"][name] for name in near["outputs"] if name != "recipe.yaml"} == {
        name: far["outputs"][name] for name in far["outputs"] if name != "recipe.yaml"
    }
    learnt = [{str(p.relative_to(made / run)): p.read_bytes() for p in (made / run).rglob("sae.safetensors")} for run in RUNS]
    assert learnt[0] == learnt[1] and len(learnt[0]) == 4
    assert Run.open(made / "far-run").recipe.sha256 == Run.open(made / "near-run").recipe.sha256


def test_a_stage_of_a_roll_out_learns_from_the_pilots_rows_at_an_address(made: Path, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(made, tmp_path / "all") / "far-run")
    host = harvest_of(run)
    full = beside(run.recipe.with_values({"train.steps": 80}), "full")
    full.write(run.path(FULL_RECIPE))
    assert full.source.store == "memory://bucket/far/full"
    assert rollout._rows(run, rollout.STAGES[-1]) == f" --from {os.path.relpath(host.folder)}"
    more = full.with_values({"source.num_tokens": 8_000})
    more.write(run.path(FULL_RECIPE))
    assert rollout._rows(run, rollout.STAGES[-1]) == ""
    said = {*full.source.model_dump()}
    assert source_from(host, full, said).source == host.recipe.source.model_copy(update={"sites": full.source.sites})
    with pytest.raises(RecipeError, match=r"source\.num_tokens"):
        source_from(host, more, said)


def test_an_audit_reads_the_address_and_a_list_names_it(made: Path) -> None:
    listed = {run["name"]: run for run in json.loads(done("list", made, "--json").stdout)["runs"]}
    assert listed["far"]["harvest"] == "memory://bucket/far" and listed["near"]["harvest"] is None
    facts = json.loads(done("audit", made / "far-run", "--json").stdout)
    assert facts["whole"] and not facts["unverified"]
    memory, shard = fsspec.filesystem("memory"), "/bucket/far/activations/evidence/model.layers.2.mlp/shard-00000.safetensors"
    whole = memory.cat_file(shard)
    memory.pipe_file(shard, whole[:-1] + bytes([whole[-1] ^ 1]))
    broken = kyomei("audit", made / "far", "--json")
    memory.pipe_file(shard, whole)
    assert broken.exit_code == 1 and json.loads(broken.stdout)["broken"][0]["what"] == "changed"


def test_an_address_is_of_one_run_alone(made: Path, tmp_path: Path) -> None:
    refused = kyomei("harvest", tmp_path / "other", **SOURCE, **{"source.store": "memory://bucket/far"})
    assert refused.exit_code == 2 and "those of far at memory://bucket/far" in refused.stderr
    assert not (tmp_path / "other").exists()
    refused = kyomei("harvest", tmp_path / "other", **SOURCE, **{"source.store": "bucket/far"})
    assert refused.exit_code == 2 and "s3://bucket/folder" in refused.stderr
    assert beside(Run.open(made / "far").recipe, "full").source.store == "memory://bucket/far/full"


def test_runs_below_a_run_that_is_overwritten_leave_nothing_at_their_addresses(tmp_path: Path) -> None:
    """As the stages of a roll-out lie in their pilot, below its address; another's run there stays."""
    recipe = Recipe().with_values({"source.store": "memory://bucket/pilot"})
    pilot = Run.create(tmp_path / "pilot", recipe)
    of = {"tenth": "full/tenth", "all": "full"}
    runs = [pilot, *(Run.create(pilot.path(f"rollout/{name}"), beside(recipe, at)) for name, at in of.items())]
    runs.append(Run.create(pilot.path("controls/random"), beside(recipe, "controls/random")))
    other = Run.create(tmp_path / "other", beside(recipe, "controls/other"))
    for run in [*runs, other]:
        run.claim()
        run.store.write("tokens/evidence/index.json", b"{}")
    pilot.anew(recipe, ["rollout"])
    kept = {run.folder.name for run in [*runs, other] if run.store.has(OWNER)}
    assert kept == {run.folder.name for run in [*runs, other] if run.store.has("tokens")} == {"tenth", "all", "other"}
    pilot = Run.create(pilot.folder, recipe, overwrite=True)
    assert fsspec.filesystem("memory").find("/bucket/pilot") == [
        f"/bucket/pilot/controls/other/{name}" for name in (OWNER, "tokens/evidence/index.json")
    ]
    for run in (pilot, Run.create(pilot.path("rollout/all"), beside(recipe, "full"))):
        run.claim()  # nothing of the runs before is there


def test_what_a_shard_at_an_address_was_is_known_without_reading_it(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(Path(shutil.copytree(made / "far", tmp_path / "far")))
    name, known = run.store.names("activations/*/*/shard-00000.safetensors")[0], run.manifest["outputs"]
    index, true = f"{name.rpartition('/')[0]}/index.json", known[name]
    read: list[str] = []
    digest = RemoteStore.sha256
    monkeypatch.setattr(RemoteStore, "sha256", lambda store, name: (read.append(name), digest(store, name))[1])
    change = Change("far")
    for each in (name, index):
        change.replace(run, each, b"other")
    assert change.old == {name: true, index: known[index]} and name not in read
    # A manifest that knows another index is not believed.
    run.note(outputs={**known, name: "0" * 64, index: "0" * 64})
    change.replace(run, name, b"other")
    assert change.old[name] == true and name in read


def test_a_document_is_forgotten_at_an_address_as_in_a_folder_and_overwritten_rows_are_gone(made: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    before = {path: memory.cat_file(path) for path in memory.find("/bucket/far")}
    for name in ("near", "far"):
        shutil.copytree(made / name, tmp_path / name)
    found = [kept for kept in documents_of(Run.open(tmp_path / "far")) if kept.part == "evidence"]
    asked = max(found, key=lambda kept: -kept.tokens).sha256
    for name in ("near", "far"):
        done("forget", tmp_path / name, "--document", asked, "--yes")
    assert held("memory://bucket/far") == held(tmp_path / "near") != held(made / "near")
    assert json.loads(done("audit", tmp_path / "far", "--json").stdout)["whole"]
    assert len(documents_of(Run.open(tmp_path / "far"))) == len(documents_of(Run.open(tmp_path / "near")))
    fewer = {**SOURCE, "source.num_tokens": 3_000, "source.store": "memory://bucket/far"}
    done("harvest", tmp_path / "far", "--overwrite", **fewer)
    assert set(held("memory://bucket/far")) < set(held(made / "near"))
    for path in memory.find("/bucket/far"):
        memory.rm_file(path)
    for path, content in before.items():
        memory.pipe_file(path, content)
