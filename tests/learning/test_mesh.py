"""Ranks that train one dictionary together: against one rank, across meshes, and when one of them dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.learning import mesh_rank
from tests.warm import begun, ended, ranks
from torch import Tensor

from kyomei.errors import RecipeError
from kyomei.learning.mesh import Mesh

MESHES = {"data-2": (2, 1), "feature-2": (1, 2), "data-4": (4, 1), "feature-4": (1, 4), "2x2": (2, 2)}


def run(out: Path, data: int, features: int, *rest: object) -> dict[str, Tensor]:
    said = out.with_suffix(".said")
    statuses = [ended(rank) for rank in begin(said, out, data, features, *rest)]
    assert not any(statuses), said.read_text()[-3000:]
    return load_file(out)


def begin(said: Path, out: Path, data: int, features: int, *rest: object) -> list[BaseProcess]:
    """The ranks of a mesh, in order."""
    arguments = [str(part) for part in (out, data, features, *rest)]
    return [begun(mesh_rank.main, *arguments, err=said, env=env) for env in ranks(data * features)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, int], dict[str, Tensor]]:
    """What one rank makes, by mechanism, dtype and steps; filled as tests ask."""
    return {}


def by_one_rank(
    known: dict[tuple[str, str, int], dict[str, Tensor]], tmp_path: Path, name: str, dtype: str, steps: int
) -> dict[str, Tensor]:
    key = (name, dtype, steps)
    if key not in known:
        known[key] = run(tmp_path / "one.safetensors", 1, 1, *key)
    return known[key]


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_gba_on_any_mesh_is_that_of_one_rank(mesh: str, tmp_path: Path, alone: dict) -> None:  # type: ignore[type-arg]
    expected = by_one_rank(alone, tmp_path, "gba", "float64", 200)
    assert_close(run(tmp_path / "mesh.safetensors", *MESHES[mesh], "gba", "float64", 200), expected, 1e-8)


@pytest.mark.sweep
def test_ranks_that_torchrun_starts_are_those_of_a_mesh(tmp_path: Path, alone: dict) -> None:  # type: ignore[type-arg]
    """What verbs make under torchrun is in tests/e2e/test_mesh.py."""
    expected = by_one_rank(alone, tmp_path, "gba", "float64", 200)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", mesh_rank.__file__]
    out = tmp_path / "mesh.safetensors"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [*start, str(out), "2", "2", "gba", "float64", "200"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_close(load_file(out), expected, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data-4", "feature-4", "2x2"])
def test_one_step_in_single_precision(mesh: str, tmp_path: Path, alone: dict) -> None:  # type: ignore[type-arg]
    expected = by_one_rank(alone, tmp_path, "gba", "float32", 1)
    assert_close(run(tmp_path / "mesh.safetensors", *MESHES[mesh], "gba", "float32", 1), expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["topk", "batchtopk", "matryoshka", "l1", "jumprelu", "gated", "l1-steered", "jumprelu-steered"]
)
def test_every_mechanism_is_exact_on_a_mesh(name: str, tmp_path: Path, alone: dict) -> None:  # type: ignore[type-arg]
    expected = by_one_rank(alone, tmp_path, name, "float64", 40)
    assert_close(run(tmp_path / "mesh.safetensors", 2, 2, name, "float64", 40), expected, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [pytest.param("data-2", marks=pytest.mark.sweep), "2x2"])
def test_a_stream_on_any_mesh_is_that_of_one_rank_and_runs_each_window_once(mesh: str, tmp_path: Path, alone: dict) -> None:  # type: ignore[type-arg]
    expected = by_one_rank(alone, tmp_path, "topk-stream", "float64", 8)
    # 8 batches of 240 rows lie in 7 buffers of 288, each of 20 windows; none is run twice, nor one that no step reads.
    assert int(expected["windows"]) == 140
    assert_close(run(tmp_path / "mesh.safetensors", *MESHES[mesh], "topk-stream", "float64", 8), expected, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data-2", "2x2"])
def test_resonance_and_merging_on_a_mesh_are_those_of_one_rank(mesh: str, tmp_path: Path, alone: dict) -> None:  # type: ignore[type-arg]
    expected = by_one_rank(alone, tmp_path, "resonance", "float32", 0)
    assert len(expected["whitened"]) > 20 and 20 < len(expected["merged"]) < 8000 == int(expected["merged_support"].sum())
    assert_close(run(tmp_path / "mesh.safetensors", *MESHES[mesh], "resonance", "float32", 0), expected, 1e-4)


@pytest.mark.sweep
@pytest.mark.parametrize("mesh", ["feature-4", "2x2"])
def test_a_whole_fit_on_a_mesh_is_that_of_one_rank(mesh: str, tmp_path: Path, alone: dict) -> None:  # type: ignore[type-arg]
    expected = by_one_rank(alone, tmp_path, "default", "float32", 0)
    assert_close(run(tmp_path / "mesh.safetensors", *MESHES[mesh], "default", "float32", 0), expected, 1e-4)


@pytest.mark.slow
def test_a_checkpoint_of_four_ranks_resumes_on_one_and_on_two(tmp_path: Path, alone: dict) -> None:  # type: ignore[type-arg]
    expected = by_one_rank(alone, tmp_path, "gba", "float64", 200)
    out = tmp_path / "out.safetensors"
    for number, then in enumerate([(1, 1), (2, 1), (1, 2)]):
        folder = tmp_path / f"run-{number}"
        started = begin(tmp_path / "said", out, 2, 2, "gba", "float64", 200, folder)
        wait_for(folder, rank=0, steps=60)
        for rank in started:
            rank.kill()
        assert [ended(rank) for rank in started] == [-signal.SIGKILL] * 4
        assert steps_of(folder, rank=0) < 200
        shards = sorted(path.name for path in max((folder / "checkpoints").glob("step-*")).glob("*.safetensors"))
        assert shards == ["tensors-00000-of-00002.safetensors", "tensors-00001-of-00002.safetensors"]
        assert_close(run(out, *then, "gba", "float64", 200, folder), expected, 1e-8)


@pytest.mark.slow
def test_when_a_rank_is_killed_the_others_stop_with_one_clear_message(tmp_path: Path) -> None:
    # Ranks started by hand: nothing but the mesh itself tells the others.
    folder, arguments = tmp_path / "run", ["2", "2", "gba", "float64", "100000", str(tmp_path / "run")]
    saids = [tmp_path / f"said-{rank}" for rank in range(4)]
    started = [
        begun(mesh_rank.main, str(tmp_path / "out"), *arguments, err=said, env=env)
        for said, env in zip(saids, ranks(4), strict=True)
    ]
    wait_for(folder, rank=2, steps=40)
    started[2].kill()
    began = time.monotonic()
    statuses = [ended(rank, 60) for rank in started]
    assert time.monotonic() - began < 30
    for rank in (0, 1, 3):
        assert statuses[rank] > 0
        error = saids[rank].read_text()
        assert "Expected all ranks of the mesh. Found a lost rank" in error, error[-2000:]
        assert "--resume" in error
    assert list((folder / "checkpoints").glob("step-*"))


def test_a_mesh_has_to_have_as_many_places_as_processes() -> None:
    with pytest.raises(RecipeError, match=r"2 × 2 on 1 process.*torchrun --nproc-per-node 4"):
        Mesh.join(2, 2)
    with pytest.raises(RecipeError, match=r"dictionary.width a multiple of mesh.features \(2\)"):
        Mesh(1, 2, 0).latents(7)


def wait_for(folder: Path, rank: int, steps: int) -> None:
    """Wait until a rank has done so many steps."""
    for _ in range(6000):
        with contextlib.suppress(OSError, ValueError):
            if steps_of(folder, rank) >= steps:
                return
        time.sleep(0.01)
    raise AssertionError("training did not begin")


def steps_of(folder: Path, rank: int) -> int:
    return int((folder / f"rank-{rank}").read_text())
