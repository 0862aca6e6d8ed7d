"""The premises: what is said of planted, hierarchical and structureless rows, and how it is put."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

import kyomei
from kyomei.cli import app
from kyomei.errors import DataError
from kyomei.evidence.check.behaviour import Coded, Geometry, Meetings, Spread
from kyomei.evidence.check.calibration import number_of_features, shipped
from kyomei.evidence.check.premises import Premise, Premises, has_structure, judge
from kyomei.evidence.check.second_opinion import SecondOpinion
from kyomei.evidence.check.structure import Structure
from kyomei.source.rows import open_rows

DATA = Path(__file__).parents[3] / "bench" / "data" / "calibration.jsonl"
NAMES = (
    "sparse structure",
    "number of features",
    "occurrence spectrum",
    "sparsity per row",
    "co-occurrence",
    "balance",
    "incoherence",
    "hierarchy",
    "rows needed",
)
GOOD = Structure(
    num_rows=20_000,
    sampled_rows=9000,
    dim=40,
    found=(100, 102),
    candidates=(120, 118),
    basin_share=0.95,
    reproduced=0.98,
    num_reproduced=198,
    null_level=0.7,
    null_reproduced=0.0,
    null_stable=0.0,
    distinct=104,
    features=101,
    captures=(98, 99, 96),
    precise_share=0.95,
    agreement=Spread(0.92, 0.97, 0.99),
    occurrence=Spread(0.03, 0.04, 0.05),
    explained=Spread(0.9, 0.95, 0.98),
    active=Spread(3, 4, 4),
    in_part=0.1,
    partner=Spread(0.07, 0.09, 0.1),
    chance_partner=0.1,
    child_share=0.0,
    split=Spread(1.0, 1.1, 1.4),
    balance=Spread(0.1, 0.2, 0.3),
    coherence=Spread(0.33, 0.4, 0.5),
    chance_coherence=0.38,
    second=SecondOpinion(
        directions=100,
        agreed_share=0.75,
        found_share=0.98,
        found_apart_share=0.97,
        confirmed_share=0.99,
        moved=Spread(0.95, 0.98, 0.99),
        geometry=Geometry(Spread(0.31, 0.38, 0.46), 0.38),
        meetings=Meetings(0.8, 0.8),
        coded=Coded(Spread(0.85, 0.97, 1.0), Spread(3, 4, 4), 0.3, Spread(0.08, 0.1, 0.13), 0.12),
    ),
)


NEAR = GOOD.second._replace(geometry=Geometry(Spread(0.4, 0.5, 0.6), 0.38))


def judged(**changes: object) -> Premises:
    return judge(dataclasses.replace(GOOD, **changes), shipped())  # type: ignore[arg-type]


def test_good_rows_meet_every_premise() -> None:
    found = judged()
    assert tuple(premise.name for premise in found.table) == NAMES
    assert [premise.name for premise in found.table if premise.status != "met"] == []
    assert found.verdict == "met"
    assert found.expected_frr is not None and found.expected_frr >= 0.9
    assert found.interval is not None and found.interval[0] <= found.expected_frr <= found.interval[1]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("occurrence spectrum", {"occurrence": Spread(0.005, 0.02, 0.2)}),
        ("sparsity per row", {"basin_share": 0.1}),
        ("co-occurrence", {"partner": Spread(0.2, 0.5, 0.8)}),
        ("co-occurrence", {"split": Spread(1.5, 3.0, 4.0)}),
        ("balance", {"balance": Spread(0.5, 1.2, 2.0)}),
        ("incoherence", {"coherence": Spread(0.3, 0.6, 0.8)}),
        ("hierarchy", {"child_share": 0.4}),
        ("hierarchy", {"coherence": Spread(0.45, 0.47, 0.5)}),
        ("hierarchy", {"second": NEAR}),
        ("co-occurrence", {"second": NEAR}),
        ("rows needed", {"agreement": Spread(0.5, 0.6, 0.9)}),
        ("number of features", {"dim": 9}),
    ],
)
def test_each_premise_can_fail(name: str, changes: dict[str, object]) -> None:
    assert judged(**changes)[name].status == "not met"
    assert judged(**changes)[name].advice != judged()[name].advice


@pytest.mark.parametrize("changes", [{"reproduced": 0.02, "null_reproduced": 0.02}, {"num_reproduced": 3}, {"features": 1}])
def test_without_structure_nothing_else_is_said(changes: dict[str, object]) -> None:
    found = judged(**changes)
    assert (found.verdict, found.expected_frr, found.interval) == ("not met", None, None)
    assert {premise.status for premise in found.table[1:]} == {"unknown"}
    assert "unknown (no sparse structure was found)" in str(found)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["premises"][1]["estimate"] is None


def test_beyond_the_calibration_the_recovery_is_unknown_and_the_reason_named() -> None:
    found = judged(split=Spread(1.0, 900.0, 1000.0))
    assert found.expected_frr is None
    assert "beyond the calibration in undivided" in found.expected
    assert found.verdict == "partly", "co-occurrence is not met"


def test_text_and_values_agree() -> None:
    found = judged(child_share=0.4)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["verdict"] == found.verdict
    assert [premise["name"] for premise in plain["premises"]] == list(NAMES)
    assert plain["statistics"]["captures"] == [98, 99, 96]
    lines = str(found).splitlines()
    assert lines[0].startswith(f"Premises: {found.verdict}. Expected share of features recovered")
    hierarchy = next(i for i, line in enumerate(lines) if "hierarchy" in line)
    assert "not met" in lines[hierarchy] and "→" in lines[hierarchy + 1]
    assert isinstance(found["hierarchy"], Premise)


def test_number_of_features_is_chapmans() -> None:
    few = dataclasses.replace(GOOD, found=(60, 50), reproduced=40 / 55, distinct=40, features=40)
    assert number_of_features(few) == pytest.approx(61 * 51 / 41 - 1)
    assert number_of_features(dataclasses.replace(few, features=20)) == pytest.approx(31 * 26 / 21 - 1), "half are mixtures"
    draws = np.random.default_rng(0).random((2, 400, 300)) < 0.7
    found = []
    for a, b in zip(*draws, strict=True):
        counts, both = (int(a.sum()), int(b.sum())), int((a & b).sum())
        seen = {"found": counts, "reproduced": 2 * both / sum(counts), "distinct": both, "features": both}
        found.append(number_of_features(dataclasses.replace(GOOD, **seen)))
    assert np.mean(found) == pytest.approx(300, rel=0.01)


def test_intervals_hold_the_planted_numbers_of_the_calibration() -> None:
    """As capture and recapture alone reckons them, the number of features was held in one regime of six."""
    inside = []
    for line in map(json.loads, DATA.read_text(encoding="utf-8").splitlines()):
        structure = Structure.from_dict(line["structure"])
        if not has_structure(structure):
            continue
        found = judge(structure, shipped())
        truth = {"number of features": line["law"]["n_features"]}
        if isinstance(line["law"]["active"], int) and line["family"] in ("plain", "noisy", "few rows", "dense"):
            truth["sparsity per row"] = line["law"]["active"]
        for name, number in truth.items():
            low, high = found[name].interval or (0, 0)
            assert found[name].interval_of == "truth"
            inside.append((name, low <= number <= high))
    assert len(inside) > 400
    for name in ("number of features", "sparsity per row"):
        assert np.mean([held for what, held in inside if what == name]) >= 0.93, name


def test_no_interval_is_given_beyond_the_calibration() -> None:
    found = judged(split=Spread(1.0, 900.0, 1000.0))
    for name in ("number of features", "sparsity per row"):
        assert found[name].interval is None and "not known for rows like these" in found[name].meaning
        assert "(" not in found[name].figures


def test_what_is_no_confidence_interval_does_not_look_like_one() -> None:
    found = judged()
    for premise in found.table:
        if premise.interval_of == "truth":
            assert "(95 %: " in premise.figures and "in 95 cases of 100" in premise.meaning
        elif premise.interval_of == "features":
            assert "(8 in 10: " in premise.figures and "eight" in premise.meaning
        else:
            assert premise.interval is None and "(" not in premise.figures


@pytest.mark.slow
@pytest.mark.parametrize(
    "law",
    [
        {"n_features": 128, "dim": 42, "active": (3, 20)},
        {"n_features": 200, "dim": 64, "active": 4, "coefficient": "uniform"},
        {"n_features": 90, "dim": 32, "active": 3, "noise": 0.3},
        {"n_features": 120, "dim": 48, "active": 4, "frequency": "zipf"},
        {"n_features": 160, "dim": 64, "active": 8},
    ],
)
def test_the_intervals_of_new_planted_sets_hold_the_truth(law: dict[str, Any]) -> None:
    """Half of the first set's rows have 20 active features; "2–4 in eight rows of ten" was said of it, and 130 (130–130)."""
    x, h = kyomei.Planted(seed=2001, **law).sample(24_000, seed=2002)
    found = kyomei.check(x, seed=3)
    active = float(np.median(h.crow_indices().diff().numpy()))
    for name, truth in (("number of features", law["n_features"]), ("sparsity per row", active)):
        low, high = found[name].interval or (np.inf, 0)
        assert low <= truth <= high, found[name].meaning


@pytest.mark.slow
def test_features_that_few_starts_reach_are_counted() -> None:
    """More features than a half's starts can find: what each half found alone tells how many there are."""
    x, _ = kyomei.Planted(n_features=1200, dim=192, active=4, seed=0, coefficient="uniform").sample(60_000, seed=1)
    found = kyomei.check(x, seed=0)
    assert found.statistics["features"] < 900
    assert found["number of features"].estimate == pytest.approx(1200, rel=0.15)


def test_rows_needed_follow_the_law_of_one_over_rows() -> None:
    """Directions with error tan² = c/rows agree at 1/(1 + c/rows): the rows for cosine 0.9 are c/(1/0.81 − 1)."""
    for rows in (1000, 5000):
        agreement = 1 / (1 + 400 / rows)
        found = judged(sampled_rows=rows, agreement=Spread(agreement, agreement, agreement))["rows needed"]
        assert found.estimate == pytest.approx(400 / (1 / 0.81 - 1))


def test_gaussian_rows_have_no_sparse_structure() -> None:
    x = torch.randn(4000, 24, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.linspace(0.2, 3, 24))
    found = kyomei.check(x, seed=0)
    assert found.verdict == "not met"
    assert found["sparse structure"].status == "not met"
    assert found.expected_frr is None


@pytest.mark.slow
def test_the_imbalanced_set_is_predicted_recoverable() -> None:
    x, _ = kyomei.Planted(n_features=128, dim=42, active=(3, 20), seed=0).sample(50_000, seed=1)
    found = kyomei.check(x, seed=0)
    assert found["sparse structure"].status == "met"
    assert found.expected_frr is not None and found.expected_frr >= 0.9
    assert found["number of features"].estimate == pytest.approx(128, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("hierarchy", [(4, 2), (2, 3)])
def test_a_hierarchical_set_is_flagged(hierarchy: tuple[int, int]) -> None:
    x, _ = kyomei.Planted(n_features=140, dim=48, active=2, seed=0, hierarchy=hierarchy).sample(20_000, seed=1)
    found = kyomei.check(x, seed=0)
    assert found["sparse structure"].status == "met"
    assert found["hierarchy"].status == found["co-occurrence"].status == "not met"
    assert found.verdict != "met"


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return kyomei.Planted(n_features=40, dim=16, active=2, seed=0).sample(2500, seed=1)[0]


def test_files_of_activations_are_opened(rows: torch.Tensor, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows.numpy())
    safetensors.torch.save_file({"activations": rows, "other": rows[:5].clone()}, tmp_path / "x.safetensors")
    for name in ("x.npy", "x.safetensors"):
        opened = open_rows(tmp_path / name)
        assert (opened.num_rows, opened.dim) == (2500, 16)
        assert torch.equal(opened.read(np.array([3, 1])), rows[[3, 1]])


def test_unusable_files_are_explained(rows: torch.Tensor, tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": rows, "b": rows[:5].clone()}, tmp_path / "two.safetensors")
    (tmp_path / "bad.npy").write_bytes(b"no array")
    (tmp_path / "bad.safetensors").write_bytes(b"no tensor")
    (tmp_path / "x.csv").write_text("1,2")
    for name, message in (
        ("two.safetensors", "one matrix, or one called 'activations'"),
        ("bad.npy", "a .npy file of numbers"),
        ("bad.safetensors", "a .safetensors file of numbers"),
        ("x.csv", r"a file of activations \(.npy, .*\)"),
        ("gone.npy", "Found nothing at"),
        ("gone", "Found nothing at"),
    ):
        with pytest.raises(DataError, match=message):
            open_rows(tmp_path / name)


def test_the_command_prints_one_json_object_and_explains_errors(rows: torch.Tensor, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows.numpy())
    done = CliRunner().invoke(app, ["check", str(tmp_path / "x.npy"), "--json", "--seed", "1", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["verdict"] in ("met", "partly", "not met")
    assert [premise["name"] for premise in printed["premises"]] == list(NAMES)
    np.save(tmp_path / "few.npy", rows[:100].numpy())
    failed = CliRunner().invoke(app, ["check", str(tmp_path / "few.npy")])
    assert failed.exit_code == 2
    assert "Expected at least 2,000 rows for 16 dimensions. Found 100 rows" in failed.output


@pytest.mark.parametrize("source", ["x.npz::rows", "x.parquet", "x.pt"])
def test_the_command_takes_any_file_of_rows(rows: torch.Tensor, tmp_path: Path, source: str) -> None:
    np.savez(tmp_path / "x.npz", rows=rows.numpy().astype(">f8"), others=rows[:9].numpy())
    pq.write_table(pa.table({"rows": rows.tolist()}), tmp_path / "x.parquet")
    torch.save({"rows": rows.reshape(50, 50, 16).half()}, tmp_path / "x.pt")
    done = CliRunner().invoke(app, ["check", str(tmp_path / source), "--json", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    statistics = json.loads(done.stdout)["statistics"]
    assert (statistics["num_rows"], statistics["dim"]) == (2500, 16)


@pytest.mark.slow
def test_a_run_is_harvested_checked_and_keeps_premises_json(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ("source.context=64", "source.windows_per_shard=24", "source.spread=2", "source.replicas=2")
    settings = [part for value in small for part in ("--set", value)]
    done = CliRunner().invoke(app, ["check", str(run), "--model", "embedded", "--tokens", "12000", "--json", *settings])
    assert done.exit_code == 0, done.output
    first = json.loads((run / "premises.json").read_text())
    names = first.pop("names")
    assert names["site"] == "model.layers.2.mlp"
    assert first == json.loads(done.stdout)
    assert "premises.json" in json.loads((run / "manifest.json").read_text())["outputs"]
    again = CliRunner().invoke(app, ["check", str(run), "--json"])
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout) == first
