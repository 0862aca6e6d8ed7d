"""The recipe: strict, complete, and its errors name the key and the remedy."""

from __future__ import annotations

import pydoc
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from kyomei.config import SETTINGS, DictionaryRecipe, MechanismSettings, Recipe, ResonanceRecipe, SourceRecipe, TrainRecipe
from kyomei.config.keys import settings_of
from kyomei.errors import KyomeiError, RecipeError

SECTIONS = [Recipe, SourceRecipe, ResonanceRecipe, DictionaryRecipe, TrainRecipe, *SETTINGS.values()]


def message_of(values: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(values)
    return str(caught.value)


def test_an_error_says_what_was_expected_what_was_found_and_what_to_do() -> None:
    error = KyomeiError("an apple", "a pear", "buy an apple at {shop}")
    assert str(error) == "Expected an apple. Found a pear. Buy an apple at {shop}."
    assert (error.expected, error.found, error.do) == ("an apple", "a pear", "buy an apple at {shop}")


def test_a_recipe_needs_no_arguments() -> None:
    assert Recipe() == Recipe.parse({})
    assert Recipe().seed == 0


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_has_a_description_for_the_command_line(section: type[BaseModel]) -> None:
    for name, info in section.model_fields.items():
        is_section = isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
        assert is_section or name in ("mechanism", "name") or info.description, name


@pytest.mark.parametrize(
    ("values", "unknown", "nearest"),
    [
        ({"trian": {"steps": 1}}, "trian", "train."),
        ({"train": {"step": 1}}, "train.step", "train.steps"),
        ({"train": {"learning_rate": 1}}, "train.learning_rate", None),
        ({"width": 10}, "width", "dictionary.width"),
        ({"mechanism": {"gama_up": 1}}, "mechanism.gama_up", "mechanism.gamma_up"),
        ({"source": {"num_token": 5}}, "source.num_token", "source.num_tokens"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_right_one(values: dict[str, Any], unknown: str, nearest: str | None) -> None:
    message = message_of(values)
    assert f"unknown key '{unknown}'" in message
    if nearest is not None:
        assert f"Did you mean '{nearest}" in message


@pytest.mark.parametrize(
    ("values", "key", "found"),
    [
        ({"train": {"steps": "many"}}, "train.steps", "'many'"),
        ({"train": {"lr": -1.0}}, "train.lr", "-1.0"),
        ({"train": {"lr": float("nan")}}, "train.lr", "nan"),
        ({"train": {"steps": 1.5}}, "train.steps", "1.5"),
        ({"train": None}, "train", "None"),
        ({"seed": -1}, "seed", "-1"),
        ({"device": "gpu"}, "device", "'gpu'"),
        ({"mechanism": {"name": "sae"}}, "mechanism.name", "'sae'"),
        ({"mechanism": {"highest_frequency": 1.0}}, "mechanism.highest_frequency", "1.0"),
        ({"mechanism": {"lowest_frequency": 0.0}}, "mechanism.lowest_frequency", "0.0"),
        ({"source": {"evidence_share": 1.0}}, "source.evidence_share", "1.0"),
        ({"source": {"replicas": 0}}, "source.replicas", "0"),
        ({"dictionary": {"width": 0}}, "dictionary.width", "0"),
    ],
)
def test_a_wrong_value_names_its_key_and_what_was_found(values: dict[str, Any], key: str, found: str) -> None:
    message = message_of(values)
    assert message.startswith(f"Expected '{key}': ")
    assert f"Found {found}." in message
    assert f"Correct {key}." in message


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, 1.5])
def test_a_frequency_outside_0_and_1_is_refused(p: float) -> None:
    assert f"resonance.frequencies must lie in (0, 1), found {p}" in message_of({"resonance": {"frequencies": [0.1, p]}})


def test_groups_need_an_ordered_range() -> None:
    message = message_of({"mechanism": {"highest_frequency": 0.01, "lowest_frequency": 0.1}})
    assert "lowest_frequency must not exceed highest_frequency" in message
    assert "Correct mechanism." in message


def test_a_width_below_the_groups_is_refused_only_where_groups_are_used() -> None:
    narrow = {"dictionary": {"width": 5}}
    random_start = {"name": "gba", "start": "random", "groups": 6}
    message = message_of({**narrow, "mechanism": random_start})
    assert "dictionary.width (5) must be at least mechanism.groups (6)" in message
    assert Recipe.parse({**narrow, "mechanism": {**random_start, "start": "resonance"}}).dictionary.width == 5
    assert Recipe.parse({**narrow, "mechanism": {"name": "topk", "start": "random"}}).dictionary.width == 5
    assert Recipe.parse({**narrow, "mechanism": {**random_start, "groups": 5}}).dictionary.width == 5


def test_a_recipe_cannot_be_changed() -> None:
    recipe = Recipe()
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.steps = 1  # type: ignore[misc]


def test_written_and_read_again_it_is_the_same_with_every_default_filled_in(tmp_path: Path) -> None:
    recipe = Recipe.parse({"seed": 3, "source": {"sites": ["a.b", "c"]}, "resonance": {"frequencies": [0.01]}})
    recipe.write(tmp_path / "recipe.yaml")
    assert Recipe.read(tmp_path / "recipe.yaml") == recipe
    written = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert set(written) == set(Recipe.model_fields)
    assert set(written["train"]) == set(TrainRecipe.model_fields)


def test_an_empty_file_is_the_default_recipe(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert Recipe.read(tmp_path / "empty.yaml") == Recipe()


@pytest.mark.parametrize(
    ("content", "expected", "found"),
    [
        (None, "a recipe file", "nothing at"),
        ("train: {steps: 1", "YAML", "recipe.yaml"),
        ("- train", "a mapping of sections", "list in"),
        ("train", "a mapping of sections", "str in"),
        ("train: {stesp: 3}", "a key of the recipe", "unknown key 'train.stesp'"),
    ],
)
def test_a_bad_file_is_explained(tmp_path: Path, content: str | None, expected: str, found: str) -> None:
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RecipeError) as caught:
        Recipe.read(path)
    assert caught.value.expected == expected
    assert found in caught.value.found


def test_dotted_values_replace_and_are_validated() -> None:
    changed = Recipe(seed=1).with_values({"train.steps": 7, "seed": 2, "mechanism.name": "topk"})
    assert (changed.train.steps, changed.seed, changed.mechanism.name) == (7, 2, "topk")
    assert changed.train.lr == Recipe().train.lr


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("trian.steps", "train.steps"), ("train.stpes", "train.steps"), ("steps", ".steps"), ("seed.steps", ".steps")],
)
def test_a_wrong_dotted_key_gets_the_nearest_right_one(key: str, nearest: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe().with_values({key: 3})
    assert f"unknown key '{key}'" in str(caught.value)
    assert nearest in caught.value.do


def test_a_wrong_dotted_value_is_explained() -> None:
    with pytest.raises(RecipeError, match=r"Expected 'train\.steps': .*Found 'x'"):
        Recipe().with_values({"train.steps": "x"})


def test_baselines_start_at_random_unless_told_and_have_names_of_their_own() -> None:
    def mechanism(**values: object) -> MechanismSettings:
        return Recipe.parse({"mechanism": values}).mechanism

    assert mechanism(name="gba").from_resonance and not mechanism(name="topk").from_resonance
    resonant = mechanism(name="topk", start="resonance")
    assert resonant.from_resonance and resonant.label != mechanism(name="topk").label == "topk"
    with pytest.raises(RecipeError, match="l1 starts at random"):
        mechanism(name="l1", start="resonance")


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"k": 3}, ["'mechanism.k', which is a setting of topk, batchtopk, matryoshka; this recipe has gba"]),
        ({"name": "topk", "groups": 3}, ["'mechanism.groups', which is a setting of gba; this recipe has topk"]),
        ({"name": "ba", "warm_share": 0.5}, ["'mechanism.warm_share', which is a setting of gba; this recipe has ba"]),
        ({"name": "topk", "gamma": 3}, ["unknown key 'mechanism.gamma'"]),
    ],
)
def test_a_setting_of_another_mechanism_is_refused_and_whose_it_is_said(values: dict[str, Any], parts: list[str]) -> None:
    message = message_of({"mechanism": values})
    assert all(part in message for part in parts)
    assert "gamma_up" not in message


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"name": "jumprelu", "l0": 1e-3}, "mechanism.penalty"),
        ({"l0": 1e-3}, "mechanism.penalty"),
        ({"name": "gated", "l1": 1e-2}, "mechanism.penalty"),
        ({"name": "ba", "highest_frequency": 0.1}, "mechanism.frequency"),
    ],
)
def test_an_old_key_is_named_with_its_new_place(values: dict[str, Any], place: str) -> None:
    message = message_of({"mechanism": values})
    assert "Found the old key 'mechanism." in message and f"It is '{place}' now" in message


def test_another_mechanism_leaves_out_what_it_does_not_have_but_not_what_is_asked_for() -> None:
    recipe = Recipe.parse({"mechanism": {"name": "topk", "k": 7, "auxk": 0.5}})
    changed = recipe.with_values({"mechanism.name": "batchtopk"}).mechanism
    assert changed.model_dump(include={"name", "k", "auxk"}) == {"name": "batchtopk", "k": 7, "auxk": 0.5}
    assert recipe.with_values({"mechanism.name": "l1", "mechanism.penalty": 0.2}).mechanism.model_dump() == {
        "name": "l1",
        "start": None,
        "penalty": 0.2,
    }
    with pytest.raises(RecipeError, match=r"'mechanism\.k', which is a setting of .*; this recipe has l1"):
        recipe.with_values({"mechanism.name": "l1", "mechanism.k": 3})
    with pytest.raises(RecipeError, match=r"'mechanism\.groups', which is a setting of gba; this recipe has topk"):
        recipe.with_values({"mechanism.groups": 3})


def test_titles_and_labels_tell_mechanisms_and_their_starts_apart() -> None:
    resonant = Recipe.parse({"mechanism": {"name": "topk", "start": "resonance"}}).mechanism
    made = [*(Recipe.parse({"mechanism": {"name": name}}).mechanism for name in SETTINGS), resonant]
    assert len({settings.label for settings in made}) == len({settings.full_title for settings in made}) == len(made)
    assert (resonant.full_title, resonant.label) == ("TopK from resonance", "topk-from-resonance")


@pytest.mark.parametrize(
    "asked",
    [
        {"train": {"steps": 7}, "mechanism": {"name": "topk", "k": 3}, "seed": 2},
        {"train.steps": 7, "mechanism.name": "topk", "mechanism.k": 3, "seed": 2},
        {"mechanism": {"k": 3, "name": "topk"}, "train.steps": 7, "seed": 2},
    ],
)
def test_a_dict_is_a_recipe_too(asked: dict[str, Any]) -> None:
    nested = {"train": {"steps": 7}, "mechanism": {"name": "topk", "k": 3}, "seed": 2}
    assert Recipe.of(asked) == Recipe.parse(nested) == Recipe.of(Recipe.parse(nested))
    assert Recipe.of(None) == Recipe.of({}) == Recipe()


def test_what_is_no_recipe_is_explained() -> None:
    with pytest.raises(RecipeError, match=r"unknown key 'train\.stpes'"):
        Recipe.of({"train": {"stpes": 7}})
    with pytest.raises(RecipeError, match=r"a dict of settings.*Found int"):
        Recipe.of(3)  # type: ignore[arg-type]


def test_help_fits_a_screen_and_names_every_setting() -> None:
    shown = pydoc.plain(pydoc.render_doc(Recipe))
    # From 3.13 on pydoc gives every argument of a long signature a line of its own.
    lines = len(shown.splitlines()) - (len(Recipe.model_fields) + 2 if sys.version_info >= (3, 13) else 0)
    assert lines <= 70 and max(map(len, shown.splitlines())) <= 130
    assert all(setting.key.rsplit(".", 1)[-1] in shown for setting in settings_of(Recipe))
