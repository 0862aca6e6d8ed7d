"""What a trained run and the dictionaries that are copied out of it say of where they come from."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.threads_as_ranks import together

import kyomei
from kyomei.config import Recipe
from kyomei.evidence.reproduction import Verdicts
from kyomei.runs import Run, sha256_of
from kyomei.stages import certify as certify_stage
from kyomei.stages.arms import own_pair
from kyomei.stages.certify import certify_run, standing
from kyomei.stages.harvest import harvested_run
from kyomei.stages.progress import Reporter
from kyomei.stages.train import train_run

SITE = "model.layers.1.mlp"
TINY = {
    "source.sites": [SITE],
    "source.num_tokens": 12_000,
    "source.context": 64,
    "source.spread": 2,
    "dictionary.width": 64,
    "mechanism": {"name": "topk", "start": "random", "k": 4},
    "train.steps": 30,
    "train.batch_rows": 64,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("provenance") / "first"
    run = harvested_run(folder, Recipe().with_values(TINY), Reporter())
    with run.lock():
        train_run(run, Reporter())
    return run


def test_the_manifest_has_digests_of_model_and_text(trained: Run) -> None:
    manifest = trained.manifest
    assert manifest["model"]["name"] == "embedded" and len(manifest["model"]["weights"]) == 64
    index = trained.read_json(f"activations/evidence/{SITE}/index.json")
    assert index["meta"]["weights"] == manifest["model"]["weights"]
    assert len(manifest["corpus"]["sha256"]) == 64 and manifest["corpus"]["sha256"] != hashlib.sha256().hexdigest()


def test_a_dictionary_copied_out_of_its_run_knows_where_it_belongs(trained: Run, tmp_path: Path) -> None:
    shutil.copytree(trained.path("replicas/0"), tmp_path / "copied", ignore=shutil.ignore_patterns("checkpoints"))
    said = json.loads((tmp_path / "copied" / "config.json").read_text())["provenance"]
    expected = {"model": "embedded", "revision": None, "site": SITE, "side": "output", "run": "first", "mechanism": "topk"}
    assert expected.items() <= said.items() and said["dictionary"] == "replicas/0" and "control" not in said
    assert said["recipe"] == trained.recipe.sha256 and said["weights"] == trained.manifest["model"]["weights"]
    sae = kyomei.load(tmp_path / "copied")
    assert SITE in repr(sae)
    sae.save(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "copied" / "config.json").read_bytes()


def test_a_null_says_that_it_is_one(trained: Run) -> None:
    assert kyomei.load(trained.path("controls/gaussian/topk/1")).provenance["control"] == "gaussian"


def test_a_certificate_of_ranks_is_that_of_one_process(trained: Run, tmp_path: Path) -> None:
    """The leading rank writes it, once; the others know that it stands."""
    folders = [shutil.copytree(trained.folder, tmp_path / name / "first") for name in ("one", "three")]
    with (one := Run.open(folders[0])).lock():
        certify_run(one, Reporter())
    with (run := Run.open(folders[1])).lock():
        facts = together(3, lambda rank: certify_run(run, Reporter(mesh=rank)))  # type: ignore[arg-type]
        again = together(2, lambda rank: certify_run(run, Reporter(mesh=rank)))  # type: ignore[arg-type]
    assert facts[1:] == [{}, {}] and again == [facts[0], {}]
    found, expected = (json.loads((folder / "certificate.json").read_text()) for folder in (folders[1], folders[0]))
    assert len(found["features"]) == 64 and found["features"][3]["tokens"]
    assert_alike(found | {"created": 0}, expected | {"created": 0})


def test_a_file_that_changes_meanwhile_is_not_certified(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(shutil.copytree(trained.folder, tmp_path / "run"))
    file, compare = run.path("replicas/1/sae.safetensors"), certify_stage.compare_coded
    measured = sha256_of(file)

    def meanwhile(*given: Any) -> Verdicts:
        file.write_bytes(file.read_bytes() + b"\0")
        return compare(*given)

    monkeypatch.setattr(certify_stage, "compare_coded", meanwhile)
    with run.lock():
        certify_run(run, Reporter())
    assert run.read_json("certificate.json")["data"]["replicas/1/sae.safetensors"] == measured != sha256_of(file)
    assert standing(run, own_pair(run)) is None


def assert_alike(found: object, expected: object, name: str = "") -> None:
    """Numbers within 1e-6, as sums of single precision are added up in another order, and all else equal."""
    if isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys(), name
        for key, value in expected.items():
            assert_alike(found[key], value, f"{name}.{key}")
    elif isinstance(expected, list):
        assert isinstance(found, list) and len(found) == len(expected), name
        for number, value in enumerate(expected):
            assert_alike(found[number], value, f"{name}[{number}]")
    else:
        assert found == (pytest.approx(expected, abs=1e-6) if isinstance(expected, float) else expected), name


def test_a_certificate_stands_in_the_dictionary_it_is_of(trained: Run) -> None:
    tensors = sha256_of(trained.path("replicas/0/sae.safetensors"))
    with trained.lock():
        facts = certify_run(trained, Reporter())
    (certificate,) = facts["certificates"].values()
    certified = sum(feature["status"] == "certified" for feature in certificate["features"])
    said = kyomei.load(trained.path("replicas/0")).provenance["certificate"]
    assert said == {"file": "certificate.json", "certified": certified, "latents": 64, "replicas": 3}
    assert "certificate" not in kyomei.load(trained.path("replicas/1")).provenance
    assert sha256_of(trained.path("replicas/0/sae.safetensors")) == tensors
    assert trained.recorded("replicas/0/config.json") and trained.recorded("certificate.json")
