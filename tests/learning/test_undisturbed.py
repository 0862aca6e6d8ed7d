"""What a caller has set in PyTorch changes nothing, and is there again afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import kyomei
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.learning.workplace import Workplace

VALUES = {
    "resonance": {"neurons": 32, "steps": 3, "frequencies": [0.02], "min_stability": 0.3},
    "dictionary": {"width": 40},
    "train": {"steps": 12, "batch_rows": 64},
}
X = kyomei.Planted(n_features=16, dim=8, active=2, seed=0).sample(2000, seed=1)[0]


def learnt(seed: int = 0, name: str = "gba", folder: Path | None = None) -> SparseAutoencoder:
    recipe = kyomei.Recipe.parse({**VALUES, "mechanism": {"name": name}})
    return kyomei.fit(X, recipe, seed=seed, workplace=Workplace(folder))


def worker(seed: int) -> list[np.ndarray]:
    """What a process of a pool sends back."""
    torch.set_num_threads(1)
    sae = learnt(seed)
    return [sae.encoder.numpy(), sae.decoder.numpy(), sae.threshold.numpy()]


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

    # In a thread: the one that runs the tests may have a loop of its own, which a browser test before this one left running.
    with ThreadPoolExecutor(1) as pool:
        assert same(pool.submit(lambda: asyncio.run(within())).result(), expected[0])
    with default(torch.float64), ThreadPoolExecutor(2) as pool:
        assert all(map(same, pool.map(learnt, [0, 1]), expected))


def test_two_at_once_in_threads_keep_their_folders_apart(tmp_path: Path) -> None:
    folders = [tmp_path / "0", tmp_path / "1"]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(learnt, [0, 1], ["topk", "topk"], folders))
    assert same(found[0], learnt(0, "topk"))
    assert same(found[1], learnt(1, "topk"))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no forks")
def test_forked_workers_learn_what_their_parent_does() -> None:
    """Of a parent with two threads, too: a fork does not inherit them."""
    expected = learnt(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        learnt(0, "topk")
        with multiprocessing.get_context("fork").Pool(2) as pool:
            first, other = pool.map_async(worker, [0, 1]).get(timeout=120)
    finally:
        torch.set_num_threads(threads)
    assert all(map(np.array_equal, first, (expected.encoder, expected.decoder, expected.threshold)))
    assert not np.array_equal(first[0], other[0])


def test_a_callers_random_generators_are_left_alone() -> None:
    def drawn() -> tuple[float, float, float]:
        return float(torch.rand(1)), float(np.random.rand()), random.random()

    def seeded() -> None:
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)

    seeded()
    expected = drawn()
    seeded()
    learnt(0)
    assert drawn() == expected
