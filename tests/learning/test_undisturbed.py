"""What a caller has set in PyTorch changes nothing, and is there again afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import kyomei
from kyomei.dictionary.sae import SparseAutoencoder

VALUES = {
    "resonance": {"neurons": 32, "steps": 3, "frequencies": [0.02], "min_stability": 0.3},
    "dictionary": {"width": 40},
    "train": {"steps": 12, "batch_rows": 64},
}
X = kyomei.Planted(n_features=16, dim=8, active=2, seed=0).sample(2000, seed=1)[0]


def learnt(seed: int = 0, name: str = "gba") -> SparseAutoencoder:
    return kyomei.fit(X, kyomei.Recipe.parse({**VALUES, "mechanism": {"name": name}}), seed=seed)


def same(a: SparseAutoencoder, b: SparseAutoencoder) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("encoder", "decoder", "threshold", "center"))


@contextlib.contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64": lambda: default(torch.float64),
    "bfloat16": lambda: default(torch.bfloat16),
}


@pytest.mark.parametrize("name", ["gba", "topk"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_callers_settings_change_nothing(setting: str, name: str) -> None:
    expected = learnt(name=name)
    with SETTINGS[setting]():
        found = learnt(name=name)
    assert same(found, expected)


def test_rows_made_in_inference_mode_are_learnt_from_afterwards() -> None:
    with torch.inference_mode():
        x = X.clone()
    recipe = kyomei.Recipe.parse({**VALUES, "mechanism": {"name": "topk"}})
    assert same(kyomei.fit(x, recipe, seed=0), learnt(name="topk"))


def test_an_event_loop_and_two_threads_change_nothing() -> None:
    expected = [learnt(0), learnt(1)]

    async def within() -> SparseAutoencoder:
        return learnt(0)

    assert same(asyncio.run(within()), expected[0])
    with default(torch.float64), ThreadPoolExecutor(2) as pool:
        assert all(map(same, pool.map(learnt, [0, 1]), expected))
