"""The paper's experiments on tiny settings, and the machinery that measures, keeps and draws them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.nn.functional import normalize
from typer.testing import CliRunner

from kyomei.cli import app
from kyomei.errors import RecipeError
from kyomei.evidence.recovery import recovery
from kyomei.signals import Stop
from kyomei.stages.progress import Reporter
from kyomei.stages.reproduce import (
    EXPERIMENTS,
    experiment_named,
    language_models,
    resonance_map,
    robustness,
    trials,
    tuning,
    width,
)
from kyomei.stages.reproduce import experiment as experiments
from kyomei.stages.reproduce import imbalanced as imbalanced_set
from kyomei.stages.reproduce.experiment import CELLS, FIGURE, RESULT, TABLE, Cell, Effort, Experiment, Summary, reproduce
from kyomei.stages.reproduce.resonance_map import MeasuredBand, measured_band, width_test
from kyomei.stages.reproduce.trials import beside_null, crossing, decoupled, planted_of, rows_of, spread, unit_rows_of
from kyomei.views.charts import drawn
from kyomei.views.tables import Table

TINY = {"n": 16, "d": 12, "rows": 3000, "neurons": 64, "search_steps": 3, "batch": 1024}
TINY_TRAINING = {"width": 24, "steps": 30, "train_batch": 128}


def reporter() -> Reporter:
    return Reporter(Console(quiet=True))


def small(cell: Cell) -> Cell:
    """The same cell on tiny data; what it does not have it does not get."""
    tiny = {name: value for name, value in {**TINY, **TINY_TRAINING}.items() if name in cell}
    return {**cell, **tiny, "s": [1, 3] if isinstance(cell["s"], list) else min(cell["s"], 3)}


def tiny_cells(experiment: Experiment) -> list[Cell]:
    """Few cells of every method, seeds 0 and 1."""
    cells = experiment.cells(2, full=False)
    if experiment is resonance_map.EXPERIMENT:
        chosen = [c for c in cells if c["d"] in resonance_map.DIMENSIONS[:2] and c["p"] > 0.05]
        return [{**small(c), "d": 3 + 9 * (c["d"] != resonance_map.DIMENSIONS[0])} for c in chosen]
    if experiment.name == "width":
        return [{**small(c), "n": c["n"] // 8, "s": c["s"]} for c in cells if c["s"] <= 4 and c["n"] <= 128]
    if experiment.name == "co-occurrence":
        return [{**small(c), "s": 2} for c in cells if c["n"] == 64 and c["planted"]["co_occurrence"] in (None, 0.3)]
    if experiment.name == "tuning":
        return [small(c) for c in cells if c["seed"] == 0 and c["value"] in (None, 5, 0.03, 8)]
    if experiment.name == "robustness":
        return [small(c) for c in cells if c["planted"]["noise"] in (0, 0.5)]
    if experiment.name == "splitting":
        return [{**small(c), "width": c["width"] // 4} for c in cells]
    if experiment.name == "certificates":
        return [small(c) for c in cells if c["mechanism"]["name"] in ("gba", "topk") and c["seed"] == 0]
    if experiment.name == "language-models":
        chosen = [
            c for c in cells if c["site"] == "model.layers.1.mlp" and c["setting"] in ("GBA from resonance", "TopK, k = 4")
        ]
        return [{**c, "context": 64, "tokens": 6000, "width": 32, "steps": 10} for c in chosen if c["seed"] == 0]
    if experiment.name == "paper-form":
        chosen = [c for c in cells if c["model"] == "embedded" and c["seed"] == 0 and c["sparsity"] == "low L0"]
        return [{**c, "context": 64, "tokens": 8000, "width": 32, "steps": 10} for c in chosen]
    if experiment.name == "ablation":
        return [small(c) for c in cells if c["setting"] in ("K = 3", "one group, 1.6 f")]
    # The default recipe has no tiny form: its cell is measured by the trained settings' path instead.
    return [small(imbalanced_set.trained_cell(name, seed, 30)) for name in list(imbalanced_set.TRAINED)[4:6] for seed in (0, 1)]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_on_tiny_data(name: str, tmp_path: Path) -> None:
    experiment = EXPERIMENTS[name]
    cells = tiny_cells(experiment)
    summary, result = reproduce(experiment, tmp_path, cells, reporter(), command=f"kyomei reproduce {name}")
    assert len(result["runs"]) == len(cells) > 1
    assert json.loads((tmp_path / RESULT).read_text()) == json.loads(json.dumps(result))
    text = (tmp_path / TABLE).read_text()
    assert experiment.paper in text and f"    kyomei reproduce {name}\n" in text
    assert all(len(row) == len(table.header) for table in summary.tables for row in table.rows)
    assert any(table.rows for table in summary.tables)
    columns = " ".join(column for table in summary.tables for column in table.header)
    assert ("above chance" if name == "resonance-map" else "null") in columns
    assert (tmp_path / FIGURE).read_bytes().startswith(b"<?xml")
    # Everything follows from the finished cells: the same bytes without a new measurement.
    before = {file: (tmp_path / file).read_bytes() for file in (CELLS, TABLE, RESULT, FIGURE)}
    reproduce(experiment, tmp_path, cells, reporter(), command=f"kyomei reproduce {name}")
    assert {file: (tmp_path / file).read_bytes() for file in before} == before
    # Where time ran out: cells of one seed, and not all of them.
    begun = experiment.summarise(result["runs"][: len(cells) // 4 + 1])
    assert drawn(begun.draw).startswith(b"<?xml") and begun.tables


def test_a_site_of_which_some_settings_are_not_measured_is_drawn() -> None:
    def record(site: str, setting: str) -> dict[str, Any]:
        agreed = {metric: {"all": {"0.9": [0.5, 0.1]}} for metric in ("raw", "whitened")}
        figures = {"l0": [4.0, 5.0], "fvu": [0.2, 0.3], "dead": [0.0, 0.0]}
        return {"model": "embedded", "site": site, "setting": setting, "width": 32, "steps": 10, **figures, **agreed}

    begun = language_models.summarise([record("a", "TopK"), record("a", "GBA"), record("b", "TopK")])
    assert drawn(begun.draw).startswith(b"<?xml") and len(begun.tables) == 4


def test_a_model_that_is_installed_is_not_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed, said in ((True, 0), (False, 1)):
        monkeypatch.setattr(language_models, "is_installed", lambda model, there=installed: there)
        assert len(language_models.summarise([]).notes) == said


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("full", [False, True])
def test_cells_are_distinct_plain_and_have_their_seed(name: str, full: bool) -> None:
    experiment = EXPERIMENTS[name]
    cells = experiment.cells(2, full)
    keys = [json.dumps(cell, sort_keys=True) for cell in cells]
    assert len(set(keys)) == len(keys)
    assert [json.loads(key) for key in keys] == cells
    assert {cell["seed"] for cell in cells} == {0, 1}
    for cell in cells:
        assert "site" in cell or planted_of(cell).dim == cell["d"]
        if "mechanism" in cell:
            assert trials.recipe_of(cell).train.steps == cell["steps"]
    assert len(experiment.cells(2, True)) >= len(experiment.cells(2, False))


def counted(cell: Cell) -> dict[str, Any]:
    """A measurement that can be told from its repetition by the file it leaves."""
    path = Path(cell["log"])
    path.write_text(path.read_text() + "x" if path.exists() else "x")
    return {"square": cell["seed"] ** 2}


def squares(records: list[dict[str, Any]]) -> Summary:
    rows = tuple((str(r["seed"]), str(r["square"])) for r in records)
    return Summary((Table("squares", ("seed", "square"), rows),), lambda figure: figure.subplots().plot([0, 1]) and None)


def counting(folder: Path, number: int) -> tuple[Experiment, list[Cell]]:
    experiment = Experiment("squares", "Squares", "seed²", lambda seeds, full: [], counted, squares)
    return experiment, [{"seed": seed, "log": str(folder / f"log-{seed}")} for seed in range(number)]


# A spawned worker takes seconds to import torch.
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_keeps_finished_cells_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    experiment, cells = counting(tmp_path, 5)
    append, appended = experiments._append, list[dict[str, Any]]()

    def struck(path: Path, entry: dict[str, Any]) -> None:
        append(path, entry)
        appended.append(entry)
        if len(appended) == 2:
            raise Stop

    monkeypatch.setattr(experiments, "_append", struck)
    with pytest.raises(Stop):
        reproduce(experiment, tmp_path / "run", cells, reporter(), effort=Effort(workers))
    monkeypatch.undo()
    kept = (tmp_path / "run" / CELLS).read_text().splitlines()
    assert len(kept) == 2
    assert not (tmp_path / "run" / TABLE).exists()
    _, result = reproduce(experiment, tmp_path / "run", cells, reporter(), effort=Effort(workers))
    assert [run["square"] for run in result["runs"]] == [0, 1, 4, 9, 16]
    assert all(Path(json.loads(line)["cell"]["log"]).read_text() == "x" for line in kept)


def test_a_cut_line_is_measured_again_and_overwrite_measures_all(tmp_path: Path) -> None:
    experiment, cells = counting(tmp_path, 3)
    reproduce(experiment, tmp_path / "run", cells, reporter())
    path = tmp_path / "run" / CELLS
    path.write_bytes(path.read_bytes()[:-7])
    reproduce(experiment, tmp_path / "run", cells, reporter())
    assert [Path(cell["log"]).read_text() for cell in cells] == ["x", "x", "xx"]
    reproduce(experiment, tmp_path / "run", cells, reporter())
    assert Path(cells[2]["log"]).read_text() == "xx"
    reproduce(experiment, tmp_path / "run", cells, reporter(), overwrite=True)
    assert [Path(cell["log"]).read_text() for cell in cells] == ["xx", "xx", "xxx"]


def test_what_is_finished_in_time_is_summed_up_and_the_rest_is_said(tmp_path: Path) -> None:
    experiment, cells = counting(tmp_path, 3)
    with pytest.raises(RecipeError, match="at least one finished cell"):
        reproduce(experiment, tmp_path / "run", cells, reporter(), effort=Effort(minutes=0))
    reproduce(experiment, tmp_path / "run", cells[:2], reporter())
    _, result = reproduce(experiment, tmp_path / "run", cells, reporter(), effort=Effort(minutes=0))
    assert [run["square"] for run in result["runs"]] == [0, 1]
    assert "1 of 3 cells are not measured." in (tmp_path / "run" / TABLE).read_text()
    assert not Path(cells[2]["log"]).exists()


@pytest.mark.slow
def test_workers_give_what_one_process_gives(tmp_path: Path) -> None:
    cells = [small(cell) for cell in EXPERIMENTS["splitting"].cells(1, False) if cell["width"] == 128][1:]
    results = [reproduce(EXPERIMENTS["splitting"], tmp_path / str(n), cells, reporter(), effort=Effort(n))[1] for n in (1, 2)]
    for runs in zip(*(result["runs"] for result in results), strict=True):
        assert [{**run, "seconds": 0} for run in runs[:1]] == [{**run, "seconds": 0} for run in runs[1:]]


def test_no_workers_and_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="at least one worker"):
        reproduce(EXPERIMENTS["width"], tmp_path, [], reporter(), effort=Effort(0))
    with pytest.raises(RecipeError, match="one of imbalanced, resonance-map"):
        experiment_named("widht")


def test_the_command_lists_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = CliRunner().invoke(app, ["reproduce", "--json"])
    assert listed.exit_code == 0
    assert list(json.loads(listed.stdout)) == list(EXPERIMENTS)
    _, cells = counting(tmp_path, 2)
    chosen = Experiment("squares", "Squares", "seed²", lambda seeds, full: cells[:seeds], counted, squares)
    monkeypatch.setitem(EXPERIMENTS, "squares", chosen)
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, ["reproduce", "squares", "--seeds", "2", "--workers", "1"])
    assert run.exit_code == 0 and "square" in run.stdout
    assert "    kyomei reproduce squares --seeds 2\n" in (tmp_path / "runs/reproduce/squares" / TABLE).read_text()
    assert CliRunner().invoke(app, ["reproduce", "circles"]).exit_code == 2


def test_a_drawing_gives_the_same_bytes() -> None:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.pcolormesh([1, 2], [1, 2], [[0, 1], [2, 3]], shading="nearest")
        axes.plot([1, 2], [1, 2], label="f·d")
        axes.legend()

    assert drawn(draw) == drawn(draw)
    assert b"dc:date" not in drawn(draw)


def test_crossings_by_hand() -> None:
    assert crossing([0, 1, 2], [1.0, 0.5, 0.0], 0.75) == pytest.approx(0.5)
    assert crossing([0, 1, 2], [1.0, 0.5, 0.0], 1.0) == 0
    assert crossing([0, 1, 2], [1.0, 0.9, 0.8], 0.5) is None
    assert crossing([], [], 0.5) is None
    assert crossing([2, 1, 0], [1.0, 1.0, 0.0], 0.5) == pytest.approx(0.5)


def test_spreads() -> None:
    assert spread([]) == "–"
    assert spread([0.5]) == "50.0"
    assert spread([0.25, 0.75], 1, 2) == "0.50 (0.25–0.75)"


def test_a_measured_band_by_hand() -> None:
    p = [1e-4, 1e-3, 1e-2, 1e-1, 1]
    assert measured_band(p, [0.0, 0.0, 1.0, 0.0, 0.0]) == MeasuredBand(1.0, pytest.approx(-2.5), pytest.approx(-1.5))
    assert measured_band(p, [0.0, 1.0, 1.0, 1.0, 0.0]).decades == pytest.approx(3.0)
    assert measured_band(p, [0.8, 0.8, 0.0, 0.0, 0.0]) == MeasuredBand(0.8, -4, pytest.approx(-2.5))
    assert measured_band(p, [0.0, 0.0, 0.15, 0.0, 0.0]) == MeasuredBand(0.15, None, None)
    assert measured_band(p, [0.1] * 5).decades == 0


def test_the_width_test_tells_a_widening_band_from_a_steady_one() -> None:
    rng = np.random.default_rng(0)
    keys = [(d, seed) for d in (4, 8, 16, 32, 64) for seed in range(3)]
    widening = {key: MeasuredBand(1, -2, -2 + 0.3 * math.log2(key[0]) + 0.1 * rng.random()) for key in keys}
    steady = {key: MeasuredBand(1, -2, -1 + 0.1 * rng.random()) for key in keys}
    for bands, found in ((widening, True), (steady, False)):
        facts = width_test(bands, 256)
        assert (facts["spearman_p"] < 0.01) == found
        assert (facts["mann_whitney_p"] < 0.01) == found
        assert (len(facts["decades_below_root_n"]), len(facts["decades_above_root_n"])) == (6, 9)


def test_the_decoupled_algorithm_finds_orthogonal_features() -> None:
    cell = {"n": 10, "d": 16, "s": 1, "rows": 4000, "seed": 0, "planted": {"superposition": "orthogonal", "noise": 0.1}}
    planted, x = rows_of(cell)
    w = decoupled(normalize(x, dim=1), p=0.05, neurons=100, steps=8, batch_rows=2000, seed=1)
    assert torch.allclose(w.norm(dim=1), torch.ones(100), atol=1e-5)
    assert recovery(w, planted.features).frr(0.9) == 1.0
    again = decoupled(normalize(x, dim=1), p=0.05, neurons=100, steps=8, batch_rows=2000, seed=1)
    assert torch.equal(w, again)


def test_unit_rows_whitened_and_as_they_are() -> None:
    _, x = rows_of({"n": 10, "d": 4, "s": 2, "rows": 5000, "seed": 0})
    for whitened in (False, True):
        assert torch.allclose(unit_rows_of(x, whitened).norm(dim=1), torch.ones(5000), atol=1e-5)
    white = unit_rows_of(x, True)
    assert (white.T @ white / 5000 - torch.eye(4) / 4).abs().max() < 0.06


def test_every_recovery_stands_beside_as_many_random_directions() -> None:
    planted = planted_of({"n": 20, "d": 3, "s": 2, "seed": 0})
    figures = beside_null(planted.features, planted, seed=1)
    assert figures["frr_0.9"] == figures["within_0.9"] == 1
    assert figures["vectors"] == 20
    assert 0 < figures["null_frr_0.9"] < 1  # in three dimensions chance goes far


def test_enough_neurons_and_their_slopes() -> None:
    def record(n: int, s: int, needed: float) -> dict[str, Any]:
        widths = [2**k for k in range(4, 14)]
        return {"n": n, "s": s, "widths": widths, "frr_0.9": [min(1.0, 0.9 * math.log2(m) / math.log2(needed)) for m in widths]}

    records = [record(n, 3, 2 * n) for n in (32, 64, 128, 256)] + [record(128, s, 2 ** (5 + s)) for s in (2, 4, 5)]
    assert width.enough(records[0]) == pytest.approx(64)
    assert width.enough(record(32, 3, 2**20)) is None
    fitted = width.slopes_of(records)
    assert fitted["by_log_n"] is not None and fitted["by_log_n"]["slope"] == pytest.approx(1)
    assert fitted["by_s"] is not None and fitted["by_s"]["slope"] == pytest.approx(math.log10(2))
    assert width.slopes_of(records[:1])["by_s"] is None


def test_a_factor_runs_through_the_base() -> None:
    cells = [{**cell, "frr_0.9": 1.0} for cell in tuning.cells(1, False)]
    for method, factors in tuning.VARIED.items():
        for factor, values in factors.items():
            assert [cell["value"] for cell in tuning.of_factor(cells, method, factor)] == sorted(values)


def test_two_starts_differ_and_a_null_keeps_everything() -> None:
    cell = small(robustness.cell_of("start", robustness.TOPK, 0.0, 0))
    figures = robustness.measure(cell)
    assert figures["rows"]["value"] == [24, 24]
    assert 0 <= figures["mcs_above_0.9"]["null"] <= figures["mcs_above_0.7"]["null"] <= 1
    assert figures["mean_mcs"]["value"] < 0.999
