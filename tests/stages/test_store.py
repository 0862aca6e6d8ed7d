"""A run whose rows and tokens are at an address, through the verbs: as one in a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from click.testing import Result
from typer.testing import CliRunner

from kyomei.cli import app
from kyomei.runs import HARVESTED, OWNER, Run
from kyomei.stages.forget import documents_of
from kyomei.stages.harvested import beside

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
