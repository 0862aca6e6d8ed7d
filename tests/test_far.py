"""What runs on another device, with a device that is not there: no tensor of the CPU meets one of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tests.far import FAR, FarDevice
from torch import Tensor

from kyomei.config import Recipe
from kyomei.dictionary import products
from kyomei.learning import fit as learning
from kyomei.learning import halves, step
from kyomei.learning.resonance import resonate
from kyomei.learning.workplace import Workplace
from kyomei.source import rows as rows_module
from kyomei.source.planted import Planted
from kyomei.source.rows import TensorRows

WIDTH = 64
ROWS = Planted(n_features=40, dim=24, active=3, seed=0).sample(6000, seed=1)[0]


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Training is done far away."""
    monkeypatch.setattr(learning, "choose_device", lambda asked: FAR)
    with FarDevice():
        yield


def recipe(**changes: object) -> Recipe:
    return Recipe.of({"dictionary.width": WIDTH, "train.steps": 40, "train.batch_rows": 256, **changes})


def test_it_tells_devices_apart() -> None:
    with FarDevice():
        there = torch.ones(3, device=FAR)
        assert (there + 1).tolist() == [2.0, 2.0, 2.0] and there.cpu().sum() == 3
        for wrong in (lambda: there + torch.ones(3), lambda: there.numpy(), lambda: torch.ones(3)[there.long()]):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()


def test_resonance_is_the_same(far: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "bfloat16_is_fast", lambda device: False)  # only processors choose by it
    here, there = resonate(ROWS, seed=0), resonate(ROWS, seed=0, device=FAR)
    assert len(here.vectors) > 20
    torch.testing.assert_close(there.vectors, here.vectors, rtol=0, atol=1e-4)
    torch.testing.assert_close(there.frequency, here.frequency, rtol=0, atol=1e-4)


def test_a_whole_fit(far: None) -> None:
    directions = resonate(ROWS, seed=0)
    there = learning.fit(ROWS, recipe(), directions=directions)
    assert there.encoder.device.type == FAR
    x = ROWS.to(FAR)
    left = there.decode(there.encode(x)) - x
    assert 0 < float(left.square().sum() / (x - x.mean(dim=0)).square().sum()) < 1


def test_rows_that_fit_are_read_there(far: None, monkeypatch: pytest.MonkeyPatch) -> None:
    index = np.array([5, 0, 5, 5999])
    assert rows_module.near(TensorRows(ROWS), FAR).read(index).device.type == "cpu", "a device that says nothing has no room"
    monkeypatch.setattr(rows_module, "free_bytes", lambda device: 4 * 4 * ROWS.numel() - 1)
    assert rows_module.near(TensorRows(ROWS), FAR).read(index).device.type == "cpu"
    monkeypatch.setattr(rows_module, "free_bytes", lambda device: 4 * 4 * ROWS.numel())
    there = rows_module.near(TensorRows(ROWS), FAR)
    assert there.read(index).device.type == FAR and torch.equal(there.read(index).cpu(), ROWS[index])
    assert rows_module.near(there, FAR) is there
    learnt = [learning.fit(ROWS, recipe(**{"mechanism.name": "topk"}), workplace=Workplace()) for _ in range(2)]
    assert torch.equal(learnt[0].encoder.cpu(), learnt[1].encoder.cpu())


@pytest.mark.parametrize("name", ["gba", "topk", "batchtopk", "jumprelu", "l1", "gated", "matryoshka"])
@pytest.mark.parametrize("sparse", [False, True])
def test_every_mechanism(far: None, name: str, sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if sparse:
        monkeypatch.setattr(step, "supported", lambda device, dtype: True)
        monkeypatch.setattr(products, "sampled_products", sampled)
        monkeypatch.setattr(products, "products_and_sums", sampled_and_sums)
    there = learning.fit(ROWS, recipe(**{"mechanism.name": name, "mechanism.start": "random"}))
    assert there.encoder.device.type == FAR and bool(there.encoder.isfinite().all())


def sampled(starts: Tensor, columns: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """By plain indexing: torch's is for the CPU, and Triton's for CUDA."""
    rows = torch.repeat_interleave(torch.arange(len(starts) - 1, device=starts.device), starts.diff())
    return (a[rows] * b[columns]).sum(dim=1)


def sampled_and_sums(starts: Tensor, columns: Tensor, values: Tensor, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    products.csr_matmul(starts, columns, values, b, out)
    return sampled(starts, columns, a, b)
