"""Directions on the disk: what is damaged is named."""

from __future__ import annotations

import contextlib
from pathlib import Path

import hypothesis
import pytest
import safetensors
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import kyomei
from kyomei.config import ResonanceRecipe
from kyomei.errors import DataError, KyomeiError
from kyomei.learning.directions import FORMAT, Directions


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    x = kyomei.Planted(n_features=20, dim=8, active=2, seed=0).sample(2000, seed=1)[0]
    recipe = ResonanceRecipe(neurons=64, steps=3, rounds=1, frequencies=(0.02,), joint=False)
    path = tmp_path_factory.mktemp("found") / "directions.safetensors"
    kyomei.resonate(x, recipe=recipe, seed=0).save(path)
    return path.read_bytes()


def test_a_file_that_lacks_something_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "directions.safetensors"
    path.write_bytes(content)
    tensors = load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert len(Directions.load(path).vectors)
    fewer = {name: tensor for name, tensor in tensors.items() if name != "support"}
    for held, said, message in (
        (fewer, metadata, "lacks 'support'"),
        (tensors, {FORMAT: "1 2"}, "directions of format"),
        (tensors, {FORMAT: "many"}, "directions of format"),
        (tensors, None, "no format"),
    ):
        save_file(held, path, metadata=said)
        with pytest.raises(DataError, match=message):
            Directions.load(path)


@hypothesis.settings(max_examples=80, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(data=st.data())
def test_only_our_errors_come_out_of_damaged_files(content: bytes, data: st.DataObject, tmp_path: Path) -> None:
    held = bytearray(content[: data.draw(st.sampled_from([len(content), len(content) // 2, 100, 5]))])
    for _ in range(data.draw(st.integers(0, 6))):
        held[data.draw(st.integers(0, min(len(held), 900) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "x.safetensors").write_bytes(held)
    with contextlib.suppress(KyomeiError):
        assert isinstance(Directions.load(tmp_path / "x.safetensors").vectors, torch.Tensor)
