"""Harvest and training as tasks of a Ray cluster, one for each GPU, or each CPU where there are none.

    python examples/ray_train.py 64 runs/wide --model Qwen/Qwen2.5-7B --site model.layers.14 --text corpus.jsonl

Ray places the processes; they find each other as those of torchrun do. The run's folder lies on a disk that all machines see.
A process that is lost ends the others, and all are started again from the last shard or checkpoint.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Placed

ATTEMPTS = 4


def address() -> tuple[str, int]:
    """This machine, and a port that is free on it."""
    with socket.socket() as free:
        free.bind(("", 0))
        return ray.util.get_node_ip_address(), free.getsockname()[1]


def rank(number: int, size: int, master: tuple[str, int], arguments: list[str]) -> None:
    """One process of a verb; Ray has set CUDA_VISIBLE_DEVICES to the GPU that is its own."""
    known = {"RANK": number, "WORLD_SIZE": size, "LOCAL_RANK": 0, "MASTER_ADDR": master[0], "MASTER_PORT": master[1]}
    env = os.environ | {name: str(value) for name, value in known.items()}
    subprocess.run([sys.executable, "-m", "kyomei", *arguments], check=True, env=env)


def together(places: list[Placed], gpus: int, arguments: list[str]) -> None:
    """Run a verb with a process in each place, again after some of them were lost."""
    for left in reversed(range(ATTEMPTS)):
        master = ray.get(ray.remote(address).options(num_cpus=0, scheduling_strategy=places[0]).remote())
        ranks = [ray.remote(rank).options(num_gpus=gpus, max_retries=0, scheduling_strategy=place) for place in places]
        tasks = [task.remote(number, len(ranks), master, arguments) for number, task in enumerate(ranks)]
        try:
            return ray.get(tasks) and None
        except ray.exceptions.RayError:
            for task in tasks:
                ray.cancel(task, force=True)
            if not left:
                raise


if __name__ == "__main__":
    size, run, *settings = sys.argv[1:]
    ray.init()
    gpus = int("GPU" in ray.cluster_resources())
    group = ray.util.placement_group([{"CPU": 1, "GPU": gpus}] * int(size))
    places = [Placed(group, number) for number in range(int(size))]
    together(places, gpus, ["harvest", str(Path(run).resolve()), *settings])
    together(places, gpus, ["train", str(Path(run).resolve())])
