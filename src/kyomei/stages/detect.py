"""A goal's detector on new text: a few texts at a time, as they come."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from kyomei.dictionary.formats import load
from kyomei.errors import RunError
from kyomei.evidence.goals.detector import Detector, explained, read_goals
from kyomei.evidence.goals.pooling import Pool
from kyomei.runs import Run
from kyomei.source.passages import Passages
from kyomei.source.text import Document
from kyomei.stages.encode import code_of
from kyomei.stages.family import refuse_family
from kyomei.stages.harvest import load_model

BATCH = 64
"""Texts that are read together."""


@dataclass(frozen=True)
class Detection:
    """What a detector says of one text.

    Attributes:
        score: probability of the label, or the number; none for a text without a letter.
        fires: whether the score reaches the threshold; none for a goal that is a number.
        tokens: that were looked at.
        features: "latent", its pooled "activation", and what it "adds" to the score before it is made a probability.
    """

    score: float | None
    fires: bool | None
    tokens: int
    features: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@final
class TextDetector:
    """A goal's detector with its dictionary in its model, ready for text. It is loaded once and can be called often.

    Args:
        run: folder of the run, or the run.
        goal: its name.

    Attributes:
        detector: the arithmetic.
        goal: all that the run knows of the goal, as plain values.

    Raises:
        RunError: there is no such goal, it has expired, or the dictionary is not the one that it was found with.
    """

    def __init__(self, run: Run | Path | str, goal: str) -> None:
        run = run if isinstance(run, Run) else Run.open(run)
        refuse_family(run)
        goals = read_goals(run.folder)
        if goal not in goals:
            found = f"'{goal}'" if goals else f"no goal in {run.folder}"
            do = "choose one of them" if goals else f"find goals first: `kyomei goals {run.folder} --labels FILE`"
            raise RunError(f"a goal of the run{': ' + ', '.join(goals) if goals else ''}", found, do)
        self.goal, self.detector = goals[goal], Detector.of(goals[goal]["detector"])
        if (expired := self.goal.get("expired")) is not None:
            do = "find it again with `kyomei goals`, from the labelled text without them"
            raise RunError("a goal that holds", f"'{goal}', which has expired: {expired['why']}", do)
        place = self.goal["dictionary"]
        file = f"{place['path']}/sae.safetensors"
        if run.digests([file]).get(file) != self.detector.dictionary:
            found = f"another one in {run.path(place['path'])}"
            raise RunError("the dictionary that the goal was found with", found, "find the goal again with `kyomei goals`")
        model = load_model(run.recipe)
        self._sae = load(run.path(place["path"])).to(model.device)
        bound = math.inf if place["largest norm"] is None else float(place["largest norm"])
        self._passages = Passages(model, place["site"], run.recipe.source, bound)

    def __call__(self, texts: Iterable[str], batch: int = BATCH) -> Iterator[Detection]:
        """What the detector says of every text, in their order; of a stream, no more is read than is answered.

        Args:
            texts: any number, also without an end.
            batch: texts that are read together: more are quicker, fewer are answered sooner.
        """
        rest = iter(texts)
        while some := list(itertools.islice(rest, max(1, batch))):
            yield from self._some(some)

    @torch.no_grad()
    def _some(self, texts: list[str]) -> Iterator[Detection]:
        latents = list(self.detector.latents)
        pools = [Pool() for _ in texts]
        for batch in self._passages.batches(Document(str(number), text) for number, text in enumerate(texts)):
            for passage in self._passages.read(batch):
                code = code_of(self._sae, self._passages.site, passage)[passage.kept]
                pools[int(batch[passage.text].document.name)].add(code[:, latents])
        pooled = np.stack([pool.pooled(self.detector.pooling, len(latents)).numpy() for pool in pools])
        scores = self.detector.scores(pooled)
        fires = self.detector.fires(scores)
        for pool, row, score, fired in zip(pools, pooled, scores.tolist(), fires.tolist(), strict=True):
            # Nothing was read of a text without a token; what the intercept says is not about it.
            seen = pool.tokens > 0
            judged = fired and seen if self.detector.kind == "label" else None
            yield Detection(score if seen else None, judged, pool.tokens, explained(self.detector, row))


def detect(run: Run | Path | str, goal: str, texts: Iterable[str], batch: int = BATCH) -> Iterator[Detection]:
    """Apply a goal's detector to texts, as they come.

        for found in kyomei.detect("runs/first", "spam", lines):
            print(found.score, found.fires)

    Args:
        run: folder of the run.
        goal: its name, as `kyomei goals` lists it.
        texts: any number, also without an end: memory does not grow with it.
        batch: texts that are read together: more are quicker, fewer are answered sooner.

    Returns:
        An iterator: of every text its score, whether the detector fires, and what each feature adds.

    Raises:
        RunError: there is no such goal, or the dictionary is not the one that it was found with.
    """
    return TextDetector(run, goal)(texts, batch)
