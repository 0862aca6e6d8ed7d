"""Options are the recipe's settings in its own words, and a run that goes on needs nothing said again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

from kyomei.cli import app
from kyomei.config import SETTINGS, MechanismSettings, Recipe
from kyomei.config.keys import settings_of
from kyomei.errors import RecipeError
from kyomei.options import OPTIONS, SECTIONS, Asked, declared


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_options_are_read_from_the_source_as_the_recipe_has_them() -> None:
    recipe = {setting.key: setting.field for setting in settings_of(Recipe) if not setting.mechanisms}
    recipe["mechanism.name"] = MechanismSettings.model_fields["name"]
    assert declared().keys() == recipe.keys()
    for key, field in declared().items():
        default = recipe[key].default
        assert field.default == (None if default is PydanticUndefined else default), key
        assert field.help.split() == (recipe[key].description or "").split(), key
    assert all(declared()[key].type is not None for key in OPTIONS.values())
    assert set(SECTIONS) == {"", *(name for name in Recipe.model_fields if name not in ("seed", "device", "dtype"))}


def test_the_help_names_every_mechanism() -> None:
    _, names = declared()["mechanism.name"].help.removesuffix(".").split(": ")
    assert set(names.replace(" or ", ", ").split(", ")) == set(SETTINGS)


@pytest.mark.parametrize("verb", ["harvest", "check", "train", "plan"])
def test_verbs_that_make_runs_share_their_options(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}).stdout
    wanted = [name.replace("_", "-") for name in OPTIONS if (verb, name) != ("check", "dtype")]
    missing = [name for name in wanted if f"--{name} " not in shown]
    assert not missing
    assert "Tokens to harvest, all parts together." in shown


def test_what_is_asked_builds_on_the_run_that_goes_on_or_on_the_file(tmp_path: Path) -> None:
    stored = Recipe.parse({"mechanism": {"name": "topk", "k": 9}, "train": {"steps": 7}})
    assert Asked(None, [], {}).recipe(stored) == stored
    assert Asked(None, ["mechanism.k=9"], {"train.steps": 7}).recipe(stored) == stored
    assert Asked(None, [], {"seed": 3}).recipe(stored).seed == 3
    assert Asked(None, ["train.steps=8"], {}).recipe().train.steps == 8
    (tmp_path / "file.yaml").write_text("seed: 5\n")
    assert Asked(tmp_path / "file.yaml", [], {}).recipe(stored) == Recipe(seed=5)
    with pytest.raises(RecipeError, match="key=value"):
        Asked(None, ["steps"], {}).recipe()
    assert Asked(None, [], {"seed": 3}).says_at_most("seed") and not Asked(None, ["a=1"], {}).says_at_most("seed")


@pytest.mark.parametrize("name", SETTINGS)
def test_a_recipe_to_edit_is_the_default_with_that_mechanism(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(run("recipe", "--mechanism", name), encoding="utf-8")
    assert Recipe.read(path) == Recipe().with_values({"mechanism.name": name})
    settings = [line for line in path.read_text().splitlines() if line.startswith("  ") and "#" not in line]
    assert f"  name: {name}" in settings
    assert path.read_text().count("#") > len(settings)


def test_every_setting_is_listed_with_its_default_and_help() -> None:
    listed = json.loads(run("recipe", "--json"))
    assert listed.keys() == {setting.key for setting in settings_of(Recipe)}
    assert all(setting["help"] for setting in listed.values())
    assert listed["mechanism.k"]["help"].startswith("topk, batchtopk, matryoshka: ")
    assert listed["train.steps"] == {"default": "1000", "help": "Optimiser steps."}
    assert CliRunner().invoke(app, ["recipe", "--mechanism", "sae"]).exit_code == 2


def test_a_run_goes_on_with_nothing_restated_or_some_of_it_but_not_otherwise(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tiny = ["--tokens", 4000, "--set", "source.context=64", "--set", "source.spread=1"]
    run("harvest", folder, *tiny, "--seed", 4)
    recipe = (folder / "recipe.yaml").read_text()
    for options in ([], ["--tokens", 4000], ["--seed", 4, "--set", "source.context=64"]):
        run("harvest", folder, "--resume", *options)
        assert (folder / "recipe.yaml").read_text() == recipe
    other = CliRunner().invoke(app, ["harvest", str(folder), "--resume", "--seed", "5"])
    assert other.exit_code == 2 and "seed" in other.output


@pytest.mark.parametrize("asked", [["recipe"], ["report", "runs/none"], ["certify", "--sae", "runs/none"]])
def test_a_verb_that_processes_do_not_share_is_refused_under_torchrun(asked: list[str]) -> None:
    """Each process would do all of it, and all but one would meet the first one's lock."""
    alone = CliRunner().invoke(app, ["recipe"])
    assert alone.exit_code == 0, alone.output
    done = CliRunner().invoke(app, asked, env={"WORLD_SIZE": "2", "RANK": "0"})
    assert done.exit_code == 2
    assert "process" in done.stderr and "Traceback" not in done.stderr
