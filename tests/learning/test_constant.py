"""Coordinates that never vary, as those of dead ReLU units: every search and training goes around them."""

from __future__ import annotations

import pytest
import torch

import kyomei
from kyomei.evidence.check.structure import search

OTHERS = [0, 1, 2, 4, 5, 6, 8, 9, 10, 12]
QUICK = {
    "resonance": {"neurons": 64, "steps": 3, "frequencies": [0.02]},
    "train": {"steps": 20, "batch_rows": 128},
    "dictionary": {"width": 24},
}


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """Planted rows with three constant columns among them."""
    planted = kyomei.Planted(n_features=30, dim=10, active=2, seed=0).sample(4000, seed=1)[0]
    x = torch.zeros(4000, 13)
    x[:, OTHERS] = planted
    x[:, 7] = -3.25
    return x


RESONANT_TOPK = {"name": "topk", "start": "resonance"}


@pytest.mark.parametrize(
    "mechanism",
    ["gba", "ba", "topk", "batchtopk", "matryoshka", "l1", "jumprelu", "gated", RESONANT_TOPK],
)
def test_a_dictionary_has_no_part_in_them(rows: torch.Tensor, mechanism: object) -> None:
    settings = {"name": mechanism} if isinstance(mechanism, str) else mechanism
    sae = kyomei.fit(rows, {**QUICK, "mechanism": settings}, seed=0)
    dead = [3, 7, 11]
    assert not sae.encoder[:, dead].any() and not sae.decoder[:, dead].any()
    assert sae.center[dead].tolist() == [0.0, -3.25, 0.0]
    assert torch.equal(sae(rows)[:, dead], rows[:, dead])
    assert torch.allclose(sae.decoder.norm(dim=1), torch.ones(24), atol=1e-5)


def test_directions_have_no_part_in_them(rows: torch.Tensor) -> None:
    found = kyomei.resonate(rows, seed=0)
    assert len(found)
    for vectors in (found.vectors, found.encoders, found.whitened, found.candidates):
        assert not vectors[:, [3, 7, 11]].any()
    assert torch.allclose(found.candidates.norm(dim=1), torch.ones(len(found.candidates)), atol=1e-5)


def test_premises_are_those_of_the_others(rows: torch.Tensor) -> None:
    found, reduced = (search(x, seed=0).structure.to_dict() for x in (rows, rows[:, OTHERS]))
    assert (found.pop("constant"), reduced.pop("constant")) == (3, 0)
    assert found["dim"] == 10
    assert found == reduced
