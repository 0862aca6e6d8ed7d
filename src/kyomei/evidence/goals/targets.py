"""What a goal asks for: labels or a number, and which documents fit, choose and report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from kyomei.errors import DataError
from kyomei.evidence.goals.detector import Kind

PARTS = ("fit", "choose", "report")
SHARES = (0.5, 0.25, 0.25)
"""Of the documents: one half finds and weighs features, a quarter chooses among sets, a quarter reports and nothing else."""
LEAST = 5
"""Groups of documents with the label, and without, in every part."""
MOST_VALUES = 20
"""Different words that a label may have; more are rather texts."""
_YES, _NO = ("1", "true", "yes"), ("0", "false", "no")


@dataclass(frozen=True, eq=False)
class Target:
    """One goal.

    Attributes:
        name: what it is called.
        kind: "label": every value is 0 or 1; "score": numbers.
        documents: which have a value [n], rising.
        values: of them [n].
        positive: the value of the file that counts as 1; empty for a score.
    """

    name: str
    kind: Kind
    documents: Int64[np.ndarray, " n"]
    values: Float64[np.ndarray, " n"]
    positive: str = ""


def targets(name: str, said: Sequence[Any]) -> list[Target]:
    """The goals that a column stands for.

    0 and 1, false and true, no and yes are a label; other numbers are a score. Of two other words the rarer one is the label,
    of equals the later one in the alphabet; of several words each is a goal of its own, NAME=WORD.

    Args:
        name: of the column.
        said: of every document its value; none: it has none.

    Raises:
        DataError: all values are the same, numbers and words are mixed, or there are too many words.
    """
    documents = np.array([at for at, value in enumerate(said) if value is not None], dtype=np.int64)
    words = [_word(value) for value in said if value is not None]
    counts = Counter(words)
    if len(counts) < 2:
        found = f"{next(iter(counts))!r} for every document" if counts else "none"
        raise DataError(f"different values of '{name}'", found, "give documents with the label and without it")
    if set(counts) <= {*_YES, *_NO}:
        return [Target(name, "label", documents, np.array([word in _YES for word in words], dtype=np.float64), "1")]
    numbers = [_number(word) for word in words]
    if None not in numbers:
        return [Target(name, "score", documents, np.array(numbers, dtype=np.float64))]
    if len(counts) > MOST_VALUES or any(number is not None for number in numbers):
        mixed = "words and numbers" if any(number is not None for number in numbers) else f"{len(counts):,} different words"
        expected = f"a label of at most {MOST_VALUES} words, or numbers, in '{name}'"
        raise DataError(expected, mixed, "correct the column, or choose others with --goal")
    rarer = sorted(counts, key=lambda word: (counts[word], [-ord(char) for char in word]))
    chosen = rarer[:1] if len(counts) == 2 else sorted(counts)
    label = np.array(words, dtype=object)
    named = {word: name if len(counts) == 2 else f"{name}={word}" for word in chosen}
    return [Target(named[word], "label", documents, (label == word).astype(np.float64), word) for word in chosen]


def _word(value: Any) -> str:
    text = str(value).strip()
    known = text.lower()
    if known in ("1.0", "0.0"):
        return known[0]
    return known if known in (*_YES, *_NO) else text


def _number(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return {**dict.fromkeys(_YES, 1.0), **dict.fromkeys(_NO, 0.0)}.get(word)
    return number if math.isfinite(number) else None


def three_parts(target: Target, groups: Sequence[str], place: Callable[[str], float]) -> dict[str, Int64[np.ndarray, " part"]]:
    """Share a goal's documents out: a group never stands on two sides, and labels have their share of every part.

    Groups that are all of one label, or mixed, are put in an order that the seed draws, and cut at half and at three quarters
    of their documents.

    Args:
        target: the goal.
        groups: of every document of the file, by number; one that stands alone has a group of its own.
        place: a number in [0, 1) for a group: where it stands in the order.

    Returns:
        By part, numbers into `target.values`, rising.

    Raises:
        DataError: a part has too few groups of documents with the label, or without it.
    """
    members: dict[str, list[int]] = {}
    for at, document in enumerate(target.documents.tolist()):
        members.setdefault(groups[document], []).append(at)
    strata: dict[tuple[float, ...], list[str]] = {}
    for group in sorted(members, key=lambda group: (place(group), group)):
        labels = tuple(np.unique(target.values[members[group]]).tolist()) if target.kind == "label" else ()
        strata.setdefault(labels, []).append(group)
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    for in_order in strata.values():
        whole, before = sum(len(members[group]) for group in in_order), 0
        for group in in_order:
            # The middle of a group says where it belongs.
            share = (before + len(members[group]) / 2) / whole
            parts[PARTS[int(np.searchsorted(np.cumsum(SHARES)[:-1], share, side="right"))]] += members[group]
            before += len(members[group])
    found = {part: np.sort(np.array(own, dtype=np.int64)) for part, own in parts.items()}
    _require_enough(target, groups, found)
    return found


def _require_enough(target: Target, groups: Sequence[str], parts: dict[str, Int64[np.ndarray, " part"]]) -> None:
    kinds = {"with": 1.0, "without": 0.0} if target.kind == "label" else {"": None}
    for part, own in parts.items():
        for words, value in kinds.items():
            chosen = own if value is None else own[target.values[own] == value]
            have = len({groups[document] for document in target.documents[chosen].tolist()})
            if have < LEAST * (1 if value is not None else 2):
                what = f" {words} the label" if words else ""
                least = LEAST * (1 if value is not None else 2)
                expected = f"at least {least} documents (or groups){what} of '{target.name}' in each of three parts"
                raise DataError(expected, f"{have} in the part that is to {part}", "give more labelled text")
