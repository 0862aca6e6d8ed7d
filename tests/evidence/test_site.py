"""Rows from elsewhere are told from those a dictionary was trained on."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import kyomei
from kyomei.config import Recipe
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError
from kyomei.evidence.fidelity import fidelity
from kyomei.evidence.site import LEAST_ROWS, SiteWarning, check_site, sample_figures
from kyomei.runs import Run
from kyomei.source.shards import ShardFolder
from kyomei.stages.harvest import harvested_run
from kyomei.stages.progress import Reporter

MLPS = [f"model.layers.{layer}.mlp" for layer in range(4)]


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = Recipe().with_values({"source.sites": MLPS, "source.num_tokens": 40_000, "source.spread": 2})
    return harvested_run(tmp_path_factory.mktemp("site") / "run", recipe, Reporter())


def shards(run: Run, part: str, site: str) -> ShardFolder:
    return ShardFolder(run.path(f"activations/{part}/{site}"), verify=False)


@pytest.fixture(scope="module", params=[("topk", MLPS[0]), ("l1", MLPS[3])], ids=lambda p: p[0])
def learnt(request: pytest.FixtureRequest, harvested: Run) -> tuple[SparseAutoencoder, str]:
    name, site = request.param
    settings = {"mechanism": {"name": name, "start": "random"}, "dictionary.width": 256, "dictionary.l0": 8, "train.steps": 200}
    sae = kyomei.fit(shards(harvested, "replica-0", site), settings)
    # As a training does: parts of so little text differ much.
    others = [sample_figures(sae, shards(harvested, f"replica-{i}", site)).to_dict() for i in (1, 2)]
    sae.provenance["other_parts"] = others
    return sae, site


def verdict(sae: SparseAutoencoder, rows: object) -> str:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = check_site(sae, rows)  # type: ignore[arg-type]
    assert [warning.category for warning in said] == ([SiteWarning] if found.verdict == "elsewhere" else [])
    assert bool(found.reasons) == (found.verdict == "elsewhere")
    return found.verdict


def test_other_documents_of_the_same_site_are_the_same(harvested: Run, learnt: tuple[SparseAutoencoder, str]) -> None:
    sae, site = learnt
    for part in ("replica-0", "replica-1", "replica-2", "evidence"):
        assert verdict(sae, shards(harvested, part, site)) == "same"
    rows = shards(harvested, "evidence", site).read(np.arange(3000))
    for count in (1, 10, 100, 1000):
        for block in torch.split(rows, count)[:10]:
            assert verdict(sae, block) == ("same" if count > LEAST_ROWS else "unknown"), count


def test_another_layer_is_elsewhere_by_its_figures_alone(harvested: Run, learnt: tuple[SparseAutoencoder, str]) -> None:
    sae, site = learnt
    for other in set(MLPS) - {site}:
        assert verdict(sae, shards(harvested, "evidence", other).read(np.arange(3000))) == "elsewhere", other


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_rows_of_another_scale_are_elsewhere(harvested: Run, learnt: tuple[SparseAutoencoder, str], scale: float) -> None:
    sae, site = learnt
    assert verdict(sae, scale * shards(harvested, "evidence", site).read(np.arange(3000))) == "elsewhere"


def test_shards_that_name_another_site_or_model_are_elsewhere(harvested: Run, learnt: tuple[SparseAutoencoder, str]) -> None:
    sae, site = learnt
    rows = shards(harvested, "evidence", site)
    same = {"site": site, "side": "output", "weights": rows.meta["weights"]}
    for name, value in {"": "", "site": "model.layers.9", "side": "input", "weights": "0" * 64}.items():
        told = SparseAutoencoder(sae.encoder, sae.decoder, sae.threshold, sae.center, provenance={**same, name: value})
        assert verdict(told, rows) == ("elsewhere" if name else "same")


def test_a_dictionary_that_says_nothing_is_not_judged(harvested: Run, learnt: tuple[SparseAutoencoder, str]) -> None:
    sae, _ = learnt
    silent = SparseAutoencoder(sae.encoder, sae.decoder, sae.threshold, sae.center)
    assert verdict(silent, shards(harvested, "evidence", MLPS[1])) == "unknown"
    assert verdict(silent, torch.zeros(1, sae.dim)) == "unknown"
    with pytest.raises(DataError, match="rows of dimension"):
        check_site(sae, torch.zeros(4, sae.dim + 1))


def test_fidelity_on_rows_from_elsewhere_warns(harvested: Run, learnt: tuple[SparseAutoencoder, str], tmp_path: Path) -> None:
    sae, site = learnt
    sae.save(tmp_path)
    other = next(mlp for mlp in MLPS if mlp != site)
    with pytest.warns(SiteWarning, match="not like those that the dictionary was trained on: "):
        fidelity(kyomei.load(tmp_path), harvested.path(f"activations/evidence/{other}"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fidelity(kyomei.load(tmp_path), harvested.path(f"activations/evidence/{site}"))
