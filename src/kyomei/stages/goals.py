"""Goals: which certified features of a run tell what a team cares about, and how well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kyomei.config import Recipe
from kyomei.errors import RecipeError
from kyomei.evidence.goals.detector import FILE, file_of, read_goals
from kyomei.evidence.goals.targets import PARTS, Target, targets, three_parts
from kyomei.evidence.goals.telling import Search, tell
from kyomei.extras import require
from kyomei.runs import Run, plain
from kyomei.source.labelled import LabelledFile, Labels
from kyomei.source.parts import unit_hash
from kyomei.source.text import Packer
from kyomei.stages.arms import own_pair
from kyomei.stages.certify import standing
from kyomei.stages.family import refuse_family
from kyomei.stages.harvest import load_model
from kyomei.stages.harvested import site_of
from kyomei.stages.pools import Subject, pools_of
from kyomei.stages.progress import Reporter


@dataclass(frozen=True)
class Asked:
    """What is asked of the labelled text.

    Attributes:
        file: of labelled text.
        goals: columns, or names in the column "goal"; empty: all.
        text_field, group_field: columns of the text and of what keeps documents together.
    """

    file: Path
    goals: tuple[str, ...]
    text_field: str
    group_field: str

    @classmethod
    def of(cls, recipe: Recipe, file: Path | None, goals: Sequence[str], text: str | None, group: str | None) -> Asked:
        """What is said, and where nothing is said what the recipe says.

        Raises:
            RecipeError: neither names a file.
        """
        own = recipe.goals
        where = str(file) if file is not None else own.labels
        if where is None:
            raise RecipeError("a file of labelled text", "none", "name it with --labels, or as goals.labels in the recipe")
        return cls(Path(where), tuple(goals) or own.names, text or own.text_field, group or own.group_field)


def goals_run(run: Run, asked: Asked, reporter: Reporter, *, dictionary: str | None = None) -> dict[str, Any]:
    """Find what tells each goal of a file, and write it into the run's goals.json; goals of other files stay there.

    Args:
        run: certified; this process holds its lock.
        asked: the labelled text.
        reporter: shows progress.
        dictionary: one that ships, such as "imported-NAME-0"; none: the run's own.

    Returns:
        The goals of this file by name, as goals.json has them.

    Raises:
        KyomeiError: scikit-learn is missing; nothing is certified; or the labelled text is unreadable, or too little.
    """
    require("goals", RecipeError)
    refuse_family(run)
    subject = Subject.of(run, dictionary)
    model = load_model(run.recipe)
    source = run.recipe.source
    strip_bos = Packer(model.tokenizer, source.context, source.force_bos).begins_with_bos
    file = LabelledFile(asked.file, asked.text_field, asked.group_field, model.tokenizer, strip_bos)
    labels = Labels.read(file, asked.goals)
    groups = [group if group is not None else f"\0{text}" for group, text in zip(labels.groups, labels.texts, strict=True)]
    # Too little text is said before any of it is encoded.
    searches = [
        searched(target, groups, run.recipe.seed) for name, said in labels.goals.items() for target in targets(name, said)
    ]
    names = ", ".join(search.target.name for search in searches)
    reporter.note(f"{file.path}: {len(labels.texts):,} documents in {len(set(groups)):,} groups; goals: {names}")
    pools, encoded = pools_of(subject, file, labels, model, reporter)
    data = {"file": file.path.name, "sha256": file.sha256(), "encoded": encoded}
    found = {}
    with reporter.progress("searching") as tick:
        for number, search in enumerate(searches):
            tick(number, len(searches))
            own = pools.of(search.target.documents)
            detector, facts = tell(search, own, subject.latents, subject.digests[subject.pair.places[0]])
            found[search.target.name] = plain(
                {
                    "detector": _with_status(detector.to_dict(), subject),
                    **facts,
                    "data": {**data, **_data(search)},
                    "dictionary": _place(subject, model.name),
                }
            )
        tick(len(searches), len(searches))
    run.write_json(FILE, file_of({**read_goals(run.folder), **found}))
    run.record(FILE)
    run.finish("goals")
    return found


def require_goals(recipe: Recipe) -> None:
    """Refuse, before anything is computed, what the goals of a recipe are going to lack."""
    require("goals", RecipeError)
    if not Path(str(recipe.goals.labels)).exists():
        raise RecipeError("a file of labelled text", f"goals.labels = {recipe.goals.labels}", "correct the path")


def tell_goals(run: Run, reporter: Reporter) -> None:
    """Find what tells the goals that a run's recipe names, if anything is certified that could."""
    if nothing_certified(run):
        reporter.note("no feature is certified that could tell a goal")
        return
    goals_run(run, Asked.of(run.recipe, None, (), None, None), reporter)


def nothing_certified(run: Run) -> bool:
    """Whether the run's own certificate stands and certifies no feature."""
    own = standing(run, own_pair(run))
    return own is not None and not own.certified


def searched(target: Target, groups: list[str], seed: int) -> Search:
    """A goal with its documents shared out, as the seed draws them.

    Raises:
        DataError: there are too few groups with the label or without it.
    """
    parts = three_parts(target, groups, lambda group: unit_hash(seed, f"goals {group}"))
    names = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    own = np.array([names[groups[document]] for document in target.documents.tolist()], dtype=np.int64)
    return Search(target, parts, own, seed)


def _data(search: Search) -> dict[str, Any]:
    """What the figures are of."""
    target, parts = search.target, search.parts
    counts = {part: len(parts[part]) for part in PARTS}
    with_label = {} if target.kind == "score" else {part: int(target.values[parts[part]].sum()) for part in PARTS}
    groups = len(np.unique(search.groups))
    return {
        "positive": target.positive,
        "groups": groups,
        "documents": counts,
        "with the label": with_label,
        "seed": search.seed,
    }


def _with_status(values: dict[str, Any], subject: Subject) -> dict[str, Any]:
    """A detector's plain values, with the certificate's words on each of its features."""
    known = {feature["index"]: feature for feature in subject.features}
    features = [
        {
            **feature,
            "status": known[feature["latent"]]["status"],
            "origin": known[feature["latent"]]["origin"]["kind"],
            "tokens": [text for text, _ in known[feature["latent"]].get("tokens", [])[:5]],
        }
        for feature in values["features"]
    ]
    return {**values, "features": features}


def _place(subject: Subject, model: str) -> dict[str, Any]:
    run, pair = subject.run, subject.pair
    place = {"model": model, "site": site_of(run), "side": run.recipe.source.side, "largest norm": subject.bound}
    return {"path": pair.places[0], "title": pair.title, **place, "sha256": subject.digests}
