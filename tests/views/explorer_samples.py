"""A small explorer over the embedded model, with texts and names that try to be more than text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from tests.views.live_samples import SITE, TEXT, dictionary, embedded
from tests.views.samples import HOSTILE

from kyomei.atomic import sha256_of
from kyomei.config import SourceRecipe
from kyomei.dictionary.formats import load
from kyomei.source.harvest import harvest
from kyomei.source.text import Document, Tokens, pack
from kyomei.views.index import Subject, build
from kyomei.views.server import Explored, Explorer, Options, app_for

NAME = "replicas-0"
ADDRESS = "http://127.0.0.1:8321"
TURNING = "\u202etxt.exe\u2066"


def make_explorer(folder: Path, *, names: tuple[str, ...] = (NAME,), verdict: Any = None, **more: Any) -> Explorer:
    """An explorer with an index of each dictionary, everything below `folder`."""
    model = embedded()
    texts = [(TEXT + "\n") * 4, f"{HOSTILE}\nimport os {TURNING}\n" * 4, "for i in range(10):\n    print(i)\n" * 8]
    documents = [Document(f"{n}{HOSTILE}.py", text) for n, text in enumerate(texts)]
    tokens = pack(documents, model.tokenizer, 32, 32 * 30)
    rows = harvest(model, tokens, folder / "activations", SourceRecipe(sites=(SITE,), context=32))[SITE]
    explored = {}
    for seed, name in enumerate(names):
        sae = dictionary(model, seed=seed)
        sae.save(folder / name)
        digest = sha256_of(folder / name / "sae.safetensors")
        facts = {"dictionary": name, "title": HOSTILE, "mechanism": "gba", "model": HOSTILE, "site": SITE, "side": "output"}
        made_from = {f"{name}/sae.safetensors": digest}
        build(
            Subject(name=name, sae=sae, rows=rows, tokens=tokens, facts=facts, made_from=made_from), folder / "explore" / name
        )
        read: Callable[[], Any] = functools.partial(load, folder / name)
        answer = verdict or {"headline": HOSTILE}
        explored[name] = Explored(name, HOSTILE, folder / "explore" / name, folder / name, digest, read, answer)
    options: dict[str, Any] = {
        "load_model": embedded,
        "tokens": lambda: tokens,
        "rows": lambda: rows,
        "replicas": 3,
        "facts": {"title": HOSTILE},
    }
    return Explorer("a run", explored, SITE, folder / "explore" / "labels.sqlite", **{**options, **more})


def kept_tokens(explorer: Explorer) -> Tokens:
    assert explorer.tokens is not None
    return explorer.tokens()


def with_own_labels(explorer: Explorer, folder: Path) -> Explorer:
    return replace(explorer, labels=folder / "labels.sqlite")


def client_of(explorer: Explorer, **options: Any) -> Iterator[TestClient]:
    """A browser that asks without leaving the process."""
    app = app_for(explorer, Options(**options))
    with TestClient(app, base_url=ADDRESS, raise_server_exceptions=False) as client:
        yield client


def watched_stream(**more: Any) -> dict[str, Any]:
    """A stream as `views.watch.streams` gives it: the text has turned, and a goal's name tries to be more than a name."""

    def one(kind: str, name: str, log10: float, alarm: bool) -> dict[str, Any]:
        figures = {"log10_evidence": log10, "log10_highest": log10, "log10_threshold": 1.78, "alarm": alarm}
        return {"kind": kind, "name": name, **figures}

    def evidence(step: int) -> list[dict[str, Any]]:
        goal = one("goals", HOSTILE, 0.1 * step, False)
        return [
            one("text", "distance", 0.7 * step, step > 2),
            one("reconstruction", "reconstruction", -0.2 * step, False),
            goal,
        ]

    feature = {"latent": 3, "status": "certified", "rate": 0.2, "reference_rate": 0.01, **one("features", "3", 5.0, True)}
    status = {
        "run": HOSTILE,
        "began": "2026-01-01T00:00:00+00:00",
        "last": "2026-01-02T10:20:30+00:00",
        "documents": 250,
        "tokens": 90_000,
        "windows": 5,
        "rate": 0.05,
        "unexplained": 0.31,
        "reference": {"documents": 300, "tokens": 100_000, "way": "whole", "unexplained": 0.2, "goals": {HOSTILE: 0.1}},
        "least_share": 0.035,
        "evidence": evidence(5),
        "features": [feature, {**feature, "latent": 5, "alarm": False, "status": None}],
        "num_features": 96,
        "changed_features": [3],
        "goals": [{"goal": HOSTILE, "score": 0.4, "reference_score": 0.1}],
        "alarms": {"text": {"document": 131, "window": 3, "time": "2026-01-02T09:00:00+00:00"}},
        "certificate": {"state": "expired", "created": "2025-12-01T00:00:00+00:00", "until": "2026-06-01T00:00:00+00:00"},
    }
    status["certificate"] |= {"reasons": ["drift"], "changed": [], "unchecked": []}  # type: ignore[operator]
    windows = [{"event": "window", "window": step, "evidence": evidence(step)} for step in range(1, 6)]
    return {"name": "stream", "status": {**status, **more}, "windows": windows}


def found_goals(digest: str) -> dict[str, Any]:
    """Goals as goals.json has them: one is told, one has expired, one is of another dictionary; a name tries to be markup."""

    def figure(value: float) -> dict[str, Any]:
        return {"value": value, "interval": [value - 0.1, min(1.0, value + 0.05)]}

    def goal(name: str, dictionary: str = digest, **more: Any) -> dict[str, Any]:
        features = [{"latent": 3, "weight": 2.5, "tokens": [HOSTILE]}, {"latent": 5, "weight": -1.25, "tokens": []}]
        detector = {"goal": name, "kind": "label", "pooling": "max", "intercept": -1.0, "threshold": 0.4, "features": features}
        figures = {key: figure(at) for key, at in (("auc", 0.93), ("precision", 0.9), ("recall", 0.8), ("prevalence", 0.2))}
        others = {"probe": 0.95, "all features": 0.97, "bag of tokens": 0.99}
        return {
            "detector": {**detector, "dictionary": dictionary},
            "told": True,
            "figures": figures,
            "beside": {key: {"auc": figure(at), "less": figure(0.02)} for key, at in others.items()},
            "shuffled": {"median": 0.5, "range": [0.41, 0.6], "p": 0.05},
            "data": {"documents": {"fit": 400, "choose": 200, "report": 1200}, "groups": 900},
            **more,
        }

    expired = {"expired": {"on": "2026-02-01T00:00:00+00:00", "why": "forgotten"}}
    return {HOSTILE: goal(HOSTILE), "old": goal("old", **expired), "foreign": goal("foreign", "of another")}
