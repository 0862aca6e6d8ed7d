"""What a stage's results rest on: they hold as long as that does."""

from __future__ import annotations

from pathlib import Path

import pytest

from kyomei.config import SETTINGS, Recipe
from kyomei.dictionary.mechanisms import mechanism_from
from kyomei.errors import RunError
from kyomei.evidence.certificate import Certificate
from kyomei.runs import Run
from kyomei.stages import certify as certify_stage
from kyomei.stages.arms import BASELINES, baseline_pair, made_from, own_pair, trained_pairs
from kyomei.stages.check import checked
from kyomei.stages.measure import STAGE, measured

SITE = "model.layers.0.mlp"


def stand_in(run: Run, folder: str) -> None:
    """What a finished training leaves, as far as it is looked at here."""
    run.path(folder).mkdir(parents=True, exist_ok=True)
    run.path(f"{folder}/sae.safetensors").write_bytes(folder.encode())
    run.finish(f"train {folder}")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "run", Recipe())
    run.note(sites=[SITE])
    for part in ("replica-0", "replica-1", "replica-2", "evidence"):
        run.write_json(f"activations/{part}/{SITE}/index.json", part)
    for folder in ("replicas/0", "replicas/1", "replicas/2", "controls/gaussian/gba/0", "controls/gaussian/gba/1"):
        stand_in(run, folder)
    run.finish(STAGE, made_from(run, *trained_pairs(run)))
    return run


def test_figures_hold_as_long_as_nothing_changes(run: Run) -> None:
    assert measured(run) and not checked(run)


def test_a_new_baseline_is_measured(run: Run) -> None:
    run.write_json("baselines/matched.json", {"l0": 8.0, "width": 96})
    for folder in (*(f"baselines/topk/{i}" for i in range(3)), *(f"controls/gaussian/baseline-topk/{i}" for i in range(2))):
        stand_in(run, folder)
    assert not measured(run)
    run.finish(STAGE, made_from(run, *trained_pairs(run)))
    assert measured(run)


@pytest.mark.parametrize(
    "name", [f"activations/evidence/{SITE}/index.json", "replicas/1/sae.safetensors", "controls/gaussian/gba/1/sae.safetensors"]
)
def test_changed_data_or_dictionaries_are_measured_again(run: Run, name: str) -> None:
    run.path(name).write_bytes(b"other")
    assert not measured(run)
    run.path(name).unlink()
    assert not measured(run)


def test_a_certificate_that_holds_is_read_while_another_process_works(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Certificate("2026", "gba", SITE, "embedded", 0, [], 0, {}, {}, {}, {}, {}, [], {})
    monkeypatch.setattr(certify_stage, "standing", lambda run, pair: held)
    monkeypatch.setattr(certify_stage, "verdict_of", lambda run, **which: None)
    with run.lock():
        assert certify_stage.certify(run.folder).created == "2026"
        assert Run.open(run.folder).done(STAGE)
        monkeypatch.setattr(certify_stage, "standing", lambda run, pair: None)
        with pytest.raises(RunError, match="a run that no process works on"):
            certify_stage.certify(run.folder)


def test_a_baseline_of_the_runs_own_mechanism_shares_neither_name_nor_folders(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Recipe.parse({"mechanism": {"name": "topk", "k": 3}}))
    run.write_json("baselines/matched.json", {"l0": 8.0, "width": 96})
    pairs = [own_pair(run), *(baseline_pair(run, name) for name in BASELINES)]
    assert set(BASELINES) == set(SETTINGS)
    assert len({pair.name for pair in pairs}) == len({pair.title for pair in pairs}) == len(pairs)
    assert len({folder for pair in pairs for folder in (pair.arm.folder, pair.null.folder)}) == 2 * len(pairs)
    baseline = pairs[1 + BASELINES.index("topk")].arm.recipe
    assert mechanism_from(baseline, 96).settings()["k"] == 8 and not baseline.mechanism.from_resonance
