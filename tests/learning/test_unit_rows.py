"""Training and certificates on rows of norm 1: how long a row is changes nothing, by the library and by the verbs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from typer.testing import CliRunner

import kyomei
from kyomei.cli import app
from kyomei.config import Recipe
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError, RecipeError
from kyomei.evidence import reproduction
from kyomei.evidence.controls import GAUSSIAN
from kyomei.evidence.reproduction import certify_latents
from kyomei.learning.fit import fit
from kyomei.runs import Run
from kyomei.source.planted import Planted
from kyomei.source.rows import Rows, TensorRows, as_seen
from kyomei.stages import measure as measure_stage
from kyomei.stages.arms import own_pair
from kyomei.stages.certify import certify_run
from kyomei.stages.harvest import harvested_run
from kyomei.stages.index import index_run
from kyomei.stages.measure import measure_run
from kyomei.stages.progress import Reporter
from kyomei.stages.train import train_run

RECIPE = Recipe.of(
    {
        "dictionary.unit_rows": True,
        "dictionary.width": 32,
        "mechanism": {"name": "topk", "start": "random", "k": 3},
        "train.steps": 120,
        "train.batch_rows": 128,
    }
)
PLANTED = Planted(n_features=16, dim=16, active=(1, 3), seed=1, superposition="orthogonal")
X = PLANTED.sample(2000, seed=2)[0]


def stretched(x: torch.Tensor) -> torch.Tensor:
    """The same rows, each longer or shorter by a power of two, which changes no digit."""
    return x * 2.0 ** (torch.arange(len(x)) % 7 - 3.0)[:, None]


@pytest.mark.parametrize("start", ["random", "resonance"])
def test_how_long_rows_are_changes_nothing(start: str) -> None:
    searched = {"resonance.neurons": 64, "resonance.steps": 3, "resonance.frequencies": (0.1,)}
    recipe = RECIPE.with_values({"mechanism.start": start, "train.steps": 30, **searched})
    one, other = fit(X, recipe), fit(stretched(X), recipe)
    assert one.unit_rows and not fit(X, recipe.with_values({"dictionary.unit_rows": False})).unit_rows
    for name in ("encoder", "decoder", "threshold", "center"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    # What it does on a sample is told in the rows' own scale.
    x = stretched(X)
    fvu = float((x - other(x)).square().sum() / (x - x.mean(dim=0)).square().sum())
    assert other.provenance["sample"]["fvu"] == pytest.approx(fvu, rel=1e-3)
    assert other.provenance["sample"]["median_norm"] == pytest.approx(float(x.norm(dim=1).median()), rel=1e-3)


def near(rows: torch.Tensor, seed: int) -> SparseAutoencoder:
    moved = rows + 0.02 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
    return SparseAutoencoder(normalize(moved, dim=1), None, torch.full((len(rows),), 0.3), torch.zeros(16), unit_rows=True)


def test_certificates_do_not_depend_on_how_long_rows_are() -> None:
    saes = [near(PLANTED.features, seed) for seed in (1, 2, 3)]
    nothing = [torch.randn(16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (4, 5)]
    null, null_rows = (near(nothing[0], 6), near(nothing[1], 7)), GAUSSIAN.rows(TensorRows(X), 8)
    here, there = (certify_latents(saes, TensorRows(x), null, null_rows) for x in (X, stretched(X)))
    assert here.status == there.status and here.status.count("certified") > 12
    assert np.array_equal(here.matches[0].joint, there.matches[0].joint)


def test_streamed_rows_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"source\.streamed_tokens"):
        RECIPE.with_values({"source.streamed_tokens": 1000})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A certified run on the embedded model, measured and indexed."""
    source = {"source.num_tokens": 12_000, "source.context": 64, "source.spread": 2, "source.evidence_share": 0.4}
    recipe = RECIPE.with_values({**source, "train.steps": 60})
    run = harvested_run(tmp_path_factory.mktemp("unit") / "run", recipe, Reporter())
    with run.lock():
        train_run(run, Reporter())
        certify_run(run, Reporter())
        measure_run(run, Reporter())
        index_run(run, Reporter(), ["replicas-0"])
    return run


def test_a_run_is_certified_measured_and_shown_by_one_reading_of_its_rows(run: Run) -> None:
    sae = kyomei.load(run.path("replicas/0"))
    assert sae.unit_rows and kyomei.load(run.path("controls/gaussian/topk/0")).unit_rows
    (measured,) = run.read_json("evidence.json")["mechanisms"].values()
    fvu = run.read_json("certificate.json")["fidelity"]["fvu"]
    assert measured["fidelity"][0]["fvu"] == pytest.approx(fvu) and 0 < fvu < 1
    assert run.read_json("evidence.json")["cross_entropy"]["topk"]["recovered"] > 0


def test_replicas_of_both_kinds_are_measured_in_the_space_they_are_certified_in(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed, kinds = Run.open(shutil.copytree(run.folder, tmp_path / "run")), list[bool]()
    mixed.write_json("replicas/1/config.json", {**mixed.read_json("replicas/1/config.json"), "unit_rows": False})
    saes = [kyomei.load(mixed.path(place)) for place in own_pair(mixed).places]
    assert [sae.unit_rows for sae in saes] == [True, False, True]

    def spied(rows: Rows, unit: bool) -> Rows:
        kinds.append(unit)
        return as_seen(rows, unit)

    for stage in (measure_stage, reproduction):
        monkeypatch.setattr(stage, "as_seen", spied)
    reproduction.space_of(saes, TensorRows(X))
    with mixed.lock():
        measure_run(mixed, Reporter())
    assert kinds[:2] == [False, False]


def test_the_verbs_say_what_they_cannot_do(run: Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(run.folder), str(tmp_path / "out"), "--format", "saelens"])
    assert done.exit_code == 2 and "divided by a norm of its own" in done.stderr and "Traceback" not in done.stderr
    sae, x = kyomei.load(run.path("replicas/0")), torch.randn(3, 256)
    with pytest.raises(DataError, match="rows that the code is of"):
        sae.decode(sae.encode(x))
