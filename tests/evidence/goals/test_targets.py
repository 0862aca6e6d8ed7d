"""What a column asks for, and three parts that keep groups whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kyomei.errors import DataError
from kyomei.evidence.goals.targets import PARTS, Target, targets, three_parts
from kyomei.source.parts import unit_hash


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ([1, 0, None, 1], {"g": ("label", [1, 0, 1])}),
        ([True, False], {"g": ("label", [1, 0])}),
        (["Yes", "no", "yes"], {"g": ("label", [1, 0, 1])}),
        (["1.0", "0.0"], {"g": ("label", [1, 0])}),
        (["3", "4.5", 1], {"g": ("score", [3, 4.5, 1])}),
        (["ham", "spam", "ham"], {"g": ("label", [0, 1, 0])}),
        (["ham", "spam"], {"g": ("label", [0, 1])}),
        (
            ["b", "a", "c", "a"],
            {"g=a": ("label", [0, 1, 0, 1]), "g=b": ("label", [1, 0, 0, 0]), "g=c": ("label", [0, 0, 1, 0])},
        ),
    ],
)
def test_a_column_is_a_label_a_score_or_a_goal_for_each_word(said: list[Any], wanted: dict[str, Any]) -> None:
    found = {target.name: (target.kind, target.values.tolist()) for target in targets("g", said)}
    assert found == wanted
    assert targets("g", said)[0].documents.tolist() == [at for at, value in enumerate(said) if value is not None]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([1, 1, 1], "'1' for every document"),
        ([None, None], "Found none"),
        ([3, "many", 4], "words and numbers"),
        ([f"w{i}" for i in range(30)], "30 different words"),
        ([1.5, float("nan"), 2.0], "words and numbers"),
    ],
)
def test_a_column_that_is_neither_is_refused(said: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        targets("g", said)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=150, max_size=250), st.integers(0, 5), st.booleans())
def test_a_group_never_stands_on_two_sides_and_nothing_is_lost(numbers: list[int], seed: int, is_label: bool) -> None:
    values = np.array([n % 2 if is_label else n * 1.5 for n in numbers], dtype=float)
    target = Target("g", "label" if is_label else "score", np.arange(len(numbers)), values)
    groups = [f"group {n}" for n in numbers]
    try:
        parts = three_parts(target, groups, lambda group: unit_hash(seed, group))
    except DataError as error:
        assert "at least" in error.expected
        return
    assert sorted(np.concatenate([parts[part] for part in PARTS]).tolist()) == list(range(len(numbers)))
    sides = [{groups[at] for at in parts[part].tolist()} for part in PARTS]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


def test_parts_have_their_shares_of_either_label_whatever_the_order_of_the_file() -> None:
    names = [f"document {i}" for i in range(400)]
    label = np.array([i % 10 == 0 for i in range(400)], dtype=float)

    def shared(order: np.ndarray) -> dict[str, set[str]]:
        target = Target("g", "label", np.arange(400), label[order])
        listed = [names[i] for i in order]
        parts = three_parts(target, listed, lambda group: unit_hash(7, group))
        assert [int(target.values[parts[part]].sum()) for part in PARTS] == [20, 10, 10]
        return {part: {listed[at] for at in parts[part].tolist()} for part in PARTS}

    first = shared(np.arange(400))
    assert {part: len(own) for part, own in first.items()} == {"fit": 200, "choose": 100, "report": 100}
    assert shared(np.random.default_rng(0).permutation(400)) == first


def test_too_few_documents_are_named() -> None:
    target = Target("rare", "label", np.arange(100), np.array([1.0] * 6 + [0.0] * 94))
    with pytest.raises(DataError, match="with the label of 'rare'"):
        three_parts(target, [str(i) for i in range(100)], lambda group: unit_hash(0, group))
