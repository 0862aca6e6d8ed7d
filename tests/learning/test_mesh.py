"""Ranks that train one dictionary together: against one rank, across meshes, and when one of them dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kyomei.errors import RecipeError
from kyomei.learning.mesh import Mesh

RANK = Path(__file__).with_name("mesh_rank.py")
MESHES = {"data-2": (2, 1), "feature-2": (1, 2), "data-4": (4, 1), "feature-4": (1, 4), "2x2": (2, 2)}


def command(out: Path, data: int, features: int, *rest: object) -> list[str]:
    own = [str(RANK), str(out), str(data), str(features), *map(str, rest)]
    if data * features == 1:
        return [sys.executable, *own]
    ranks = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={data * features}"]
    return [sys.executable, *ranks, *own]


def run(out: Path, data: int, features: int, *rest: object) -> dict[str, Tensor]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command(out, data, features, *rest), capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)


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
        stopped = start_and_kill(command(out, 2, 2, "gba", "float64", 200, folder), folder, after=60)
        assert stopped < 200
        shards = sorted(path.name for path in max((folder / "checkpoints").glob("step-*")).glob("*.safetensors"))
        assert shards == ["tensors-00000-of-00002.safetensors", "tensors-00001-of-00002.safetensors"]
        assert_close(run(out, *then, "gba", "float64", 200, folder), expected, 1e-8)


@pytest.mark.slow
def test_when_a_rank_is_killed_the_others_stop_with_one_clear_message(tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "out.safetensors"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    # Ranks started by hand: nothing but the mesh itself tells the others.
    port = 20_000 + os.getpid() % 20_000
    processes = []
    for rank in range(4):
        own = env | {"RANK": str(rank), "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        arguments = [sys.executable, str(RANK), str(out), "2", "2", "gba", "float64", "100000", str(folder)]
        processes.append(subprocess.Popen(arguments, env=own, stderr=subprocess.PIPE, text=True))
    wait_for(folder, rank=2, steps=40)
    processes[2].kill()
    began = time.monotonic()
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert time.monotonic() - began < 30
    for rank in (0, 1, 3):
        assert processes[rank].returncode not in (0, None)
        assert "Expected all ranks of the mesh. Found a lost rank" in errors[rank], errors[rank][-2000:]
        assert "--resume" in errors[rank]
    assert list((folder / "checkpoints").glob("step-*"))


def test_a_mesh_has_to_have_as_many_places_as_processes() -> None:
    with pytest.raises(RecipeError, match=r"2 × 2 on 1 process.*torchrun --nproc-per-node 4"):
        Mesh.join(2, 2)
    with pytest.raises(RecipeError, match=r"dictionary.width a multiple of mesh.features \(2\)"):
        Mesh(1, 2, 0).latents(7)


def wait_for(folder: Path, rank: int, steps: int) -> int:
    """Wait until a rank has done so many steps; returns its process."""
    for _ in range(6000):
        with contextlib.suppress(OSError, ValueError):
            pid, done = map(int, (folder / f"rank-{rank}").read_text().split())
            if done >= steps:
                return pid
        time.sleep(0.01)
    raise AssertionError("training did not begin")


def start_and_kill(arguments: list[str], folder: Path, after: int) -> int:
    """Kill a whole training once rank 0 has done so many steps; returns the step it had reached."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, env=env, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(folder, rank=0, steps=after)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    for path in folder.glob("rank-*"):  # torchrun starts its workers in sessions of their own
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.read_text().split()[0]), signal.SIGKILL)
    return int((folder / "rank-0").read_text().split()[1])
