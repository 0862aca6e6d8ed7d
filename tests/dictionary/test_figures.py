"""What a dictionary does on a sample of rows."""

from __future__ import annotations

import math

import pytest
import torch

import kyomei
from kyomei.dictionary.figures import SampleFigures
from kyomei.dictionary.sae import SparseAutoencoder


def test_figures_are_those_of_the_dense_code() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=generator) + 3
    weights = torch.nn.functional.normalize(torch.randn(10, 6, generator=generator), dim=1)
    sae = SparseAutoencoder(weights, None, torch.full((10,), 0.3), x.mean(dim=0))
    found = SampleFigures.measure(sae, x)
    error = (x - sae(x)).square().sum() / (x - x.mean(dim=0)).square().sum()
    assert found.num_rows == 300 and found.l0 == pytest.approx(float((sae.encode(x) > 0).sum(dim=1).float().mean()))
    assert found.fvu == pytest.approx(float(error), rel=1e-5)
    assert found.median_norm == pytest.approx(float(x.norm(dim=1).median()), rel=1e-6)
    assert SampleFigures.measure(sae, x[:1].expand(4, 6)).fvu == math.inf


def test_what_is_learnt_says_how_and_keeps_saying_it(tmp_path: object) -> None:
    x, _ = kyomei.Planted(n_features=24, dim=12, active=(2,), seed=0).sample(3000, seed=1)
    recipe = kyomei.Recipe().with_values({"mechanism": {"name": "topk", "k": 2}, "dictionary.width": 24, "train.steps": 20})
    sae = kyomei.fit(x, recipe, seed=3)
    said = sae.provenance
    assert said["mechanism"] == "topk" and said["recipe"] == recipe.sha256 and said["seed"] == 3
    assert said["sample"]["num_rows"] == 3000 and 0 < said["sample"]["l0"] <= 2
    assert said["normalisation"]["scale"] == pytest.approx(float((x - x.mean(dim=0)).norm() / len(x) ** 0.5), rel=1e-4)
    assert recipe.sha256 != recipe.with_values({"train.steps": 21}).sha256
    sae.save(str(tmp_path))
    assert kyomei.load(str(tmp_path)).provenance == said == sae.to(dtype=torch.float64).provenance
