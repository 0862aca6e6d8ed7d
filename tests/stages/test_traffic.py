"""What a rank sends and holds in a training step: the formulas of `kyomei plan` against the bytes of a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kyomei.config import Recipe
from kyomei.dictionary.mechanisms import TopK
from kyomei.learning.latents import random_start
from kyomei.learning.mesh import Mesh
from kyomei.learning.spaces import Normalisation
from kyomei.learning.step import Training
from kyomei.source.rows import TensorRows
from kyomei.stages.hardware import GPUS
from kyomei.stages.plan import _feature_parts
from kyomei.stages.size import Size
from kyomei.stages.traffic import Traffic

WIDTH, DIM, ROWS = 512, 64, 128


@pytest.mark.parametrize(("data", "features"), [(1, 1), (4, 1), (1, 4), (2, 2)])
def test_traffic_and_memory_are_those_of_a_step(data: int, features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank of a mesh whose other ranks have nothing to say: what it adds to sums is counted."""
    sent: list[int] = []

    def counted(mesh: Mesh, x: Tensor, operation: Any, group: Any) -> Tensor:
        sent.append(x.numel() * x.element_size())
        return x.detach().clone()

    monkeypatch.setattr(Mesh, "_reduced", counted)
    monkeypatch.setattr(Mesh, "gather_latents", lambda mesh, x: x)
    mesh = Mesh(data, features)
    rows = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0))
    recipe = Recipe().with_values({"dictionary.width": WIDTH, "train.batch_rows": ROWS, "mechanism.name": "topk"})
    start, normal = random_start(WIDTH, DIM, 0, tied=False), Normalisation.measure(TensorRows(rows))
    monkeypatch.setattr(Mesh, "tell", lambda mesh, value: [value] * mesh.size)
    start = start.part(mesh.latents(WIDTH))
    training = Training(start, TopK(WIDTH, 4), normal, recipe.train, "cpu", torch.float32, mesh)
    training.step(rows[mesh.rows(ROWS)], 0, np.arange(ROWS)[mesh.rows(ROWS)])
    traffic = Traffic.of(WIDTH, DIM, ROWS, data, features)
    added = traffic.reconstructions + traffic.gradients
    # Beside the large sums go some numbers for each latent, and a gradient of the centre.
    small = 0 if data * features == 1 else 8 * (WIDTH / features + DIM + 64)
    assert added <= sum(sent) <= added + small
    states = [value for state in training.optimizer.state.values() for value in state.values() if value.numel() > 1]
    held = [tensor for weight in training.weights for tensor in (weight, weight.grad)] + states
    numbers = sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)
    assert numbers == pytest.approx(Size.of(recipe, DIM).weights_bytes / features, rel=0.01)


def test_sums_go_around_in_a_ring() -> None:
    traffic = Traffic.of(WIDTH, DIM, ROWS, 2, 4, streamed=True)
    rows = ROWS / 2 * DIM * 4
    assert traffic.sent_bytes == pytest.approx(2 * 3 / 4 * rows + 2 * 1 / 2 * (2 * WIDTH / 4 * DIM * 4) + 7 / 8 * rows)
    assert traffic.seconds(100, 10) == pytest.approx(traffic.sent_bytes / 0.7 / 100e9)
    more = Traffic.of(WIDTH, DIM, ROWS, 4, 4)
    assert more.seconds(100, 10) == pytest.approx(more.sent_bytes / 0.7 / 10e9)
    assert Traffic.of(WIDTH, DIM, ROWS, 1, 1, streamed=True).sent_bytes == 0


def test_the_mesh_with_least_to_send_is_planned() -> None:
    """At a million latents gradients are gigabytes and reconstructions megabytes; at a few hundred it is the other way."""
    wide = Recipe().with_values({"dictionary.width": 1_048_576, "train.batch_rows": 8192})
    narrow = Recipe().with_values({"dictionary.width": 256, "train.batch_rows": 65_536, "mechanism.name": "topk"})
    assert _feature_parts(Size.of(wide, 4096), GPUS["h100"], 64) == 64
    assert _feature_parts(Size.of(narrow, 4096), GPUS["h100"], 64) == 1
