"""A small certified run on the embedded model, and the indices of two of its dictionaries."""

from __future__ import annotations

import pytest

from kyomei.config import Recipe
from kyomei.runs import Run
from kyomei.stages.certify import certify_run
from kyomei.stages.harvest import harvested_run
from kyomei.stages.index import index_run
from kyomei.stages.progress import Reporter
from kyomei.stages.train import train_run

TINY = {
    "source.num_tokens": 24_000,
    "source.context": 64,
    "source.spread": 2,
    "source.evidence_share": 0.5,
    "dictionary.width": 64,
    "mechanism": {"name": "topk", "start": "random", "k": 6},
    "train.steps": 100,
    "train.batch_rows": 128,
}


@pytest.fixture(scope="session")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run; `explore/replicas-0` has a certificate, `explore/replicas-1` has none. Nothing in it may be changed."""
    folder = tmp_path_factory.mktemp("explored") / "run"
    run = harvested_run(folder, Recipe().with_values(TINY), Reporter())
    with run.lock():
        train_run(run, Reporter())
        certify_run(run, Reporter())
        index_run(run, Reporter(), ["replicas-0", "replicas-1"])
    return run
