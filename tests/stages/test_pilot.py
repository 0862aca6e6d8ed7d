"""A pilot: minutes become tokens and steps, what is not afforded is said and made up for, a larger one takes its place."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from rich.console import Console
from tests.faults.moments import stopped_at
from typer.testing import CliRunner

from kyomei.atomic import remove, sha256_of
from kyomei.cli import app
from kyomei.config import Recipe
from kyomei.errors import Interrupted, RecipeError
from kyomei.evidence.goals.detector import Detector, file_of
from kyomei.runs import Run
from kyomei.stages import budget, goals, pilot, rollout
from kyomei.stages.audit import audit
from kyomei.stages.budget import CONTROL, MEASURE, afforded, part_seconds
from kyomei.stages.deciding import decide_run, standing_verdict
from kyomei.stages.full import FILE as FULL_RECIPE
from kyomei.stages.full import ROLLOUT
from kyomei.stages.plan import Probe, Rates
from kyomei.stages.progress import Reporter

TINY = {
    "source.context": 64,
    "source.windows_per_shard": 24,
    "source.spread": 4,
    "mechanism.name": "topk",
    "dictionary.width": 32,
    "dictionary.l0": 4,
    "train.steps": 10,
    "train.batch_rows": 64,
    "train.checkpoint_every": 5,
}
WANTED = [CONTROL, MEASURE, "baseline topk"]
FAST = Probe("here", 1, None, 0.1, 256, Rates(1e5, 1e-4, 1e-4, 1e10, 1e10, 1e8))


def options(settings: dict[str, Any]) -> list[str]:
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def kyomei(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> dict[str, Any]:
    result = kyomei(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def refused(*arguments: object) -> str:
    result = kyomei(*arguments)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    return next(line for line in result.stderr.splitlines() if line.startswith("kyomei: Expected"))


# ── Budgets ──


@pytest.mark.parametrize("minutes", [6, 10, 60, 600])
def test_a_budget_is_filled_and_not_passed(minutes: int) -> None:
    probe = replace(FAST, rates=Rates(2000.0, 0.05, 0.03, 2e8, 2e8, 1e8))
    recipe = Recipe().with_values({"dictionary.width": 512})
    found = afforded(recipe, probe, 60 * minutes, WANTED, ())
    planned = sum(found.parts.values())
    assert planned <= 60 * minutes
    assert sum(part_seconds(probe.plan(found.recipe), found.recipe, list(found.parts)).values()) == pytest.approx(planned)
    if not found.left_out:
        assert planned > 0.7 * 60 * minutes


def test_more_minutes_buy_more_of_both_in_the_recipes_proportion() -> None:
    probe = replace(FAST, rates=Rates(2000.0, 0.05, 0.03, 2e8, 2e8, 1e8))
    recipe = Recipe().with_values({"dictionary.width": 512})
    sizes = [afforded(recipe, probe, 60 * minutes, WANTED, ()).recipe for minutes in (20, 60, 200)]
    tokens, steps = ([getattr(getattr(r, a), b) for r in sizes] for a, b in (("source", "num_tokens"), ("train", "steps")))
    assert tokens == sorted(set(tokens)) and steps == sorted(set(steps))
    assert tokens[-1] / steps[-1] == pytest.approx(300, rel=0.15)


def test_what_is_asked_in_so_many_words_stays() -> None:
    recipe = Recipe().with_values({"dictionary.width": 512, "train.steps": 777, "resonance.neurons": 700})
    found = afforded(recipe, FAST, 600, WANTED, ("train.steps", "resonance.neurons")).recipe
    assert found.train.steps == 777 and found.resonance.neurons == 700 and found.source.num_tokens > 300_000
    stored = afforded(recipe, FAST, 600, WANTED, (), harvested=True).recipe
    assert stored.source.num_tokens == recipe.source.num_tokens and stored.train.steps > 777
    assert stored.resonance.neurons == budget.SEARCHES[0]["resonance.neurons"]


def test_parts_are_given_up_from_the_last_on_and_the_control_goes_last() -> None:
    probe = replace(FAST, rates=Rates(2000.0, 0.05, 0.03, 2e8, 2e8, 1e8))
    recipe, left = Recipe().with_values({"dictionary.width": 512}), []
    for seconds in range(605, 0, -10):
        try:
            left.append(tuple(afforded(recipe, probe, seconds, WANTED, ()).left_out))
        except RecipeError as error:
            assert "at least" in str(error) and "minutes" in str(error)
            need = int(str(error).split("at least ")[1].split(" ")[0])
            afforded(recipe, probe, 60 * need, WANTED, ())  # what it asks for is enough
            break
    assert list(dict.fromkeys(left)) == [(), ("baseline topk",), (MEASURE, "baseline topk"), tuple(WANTED)]


def test_no_pilot_is_so_small_that_it_would_say_no_go_of_anything() -> None:
    found = afforded(Recipe().with_values({"dictionary.width": 512}), replace(FAST, dim=512), 1e-9 + 45, [], ()).recipe
    rows = found.source.num_tokens * (1 - found.source.evidence_share) / found.source.replicas
    assert rows >= budget.LEAST_ROWS_PER_DIM * 512 and found.train.steps >= budget.LEAST_STEPS
    assert not budget.too_small(found, 512) and budget.too_small(found.with_values({"train.steps": 400}), 512)


# ── The whole of it ──

FIXED = [*options({**TINY, "source.num_tokens": 12_000}), "--full-tokens", "24000"]


@contextlib.contextmanager
def tiny_pilots() -> Iterator[pytest.MonkeyPatch]:
    """Pilots may be tiny, and on the machine that is planned for the control and figures take long."""
    known = budget.part_seconds

    def dear(*args: Any, **more: Any) -> dict[str, float]:
        return {name: 500.0 if name in WANTED else 60.0 for name in known(*args, **more)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "LEAST_ROWS", 2600)
        patch.setattr(budget, "LEAST_ROWS_PER_DIM", 5)
        patch.setattr(budget, "LEAST_STEPS", 5)
        patch.setattr(budget, "part_seconds", dear)
        patch.setattr(Probe, "of", classmethod(lambda cls, *_, **__: FAST))
        yield patch


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Iterator[Path]:
    with tiny_pilots():
        yield Path(shutil.copytree(made, tmp_path / "p"))


def states(folder: Path) -> dict[str, str]:
    return {part["name"]: part["state"] for part in json.loads((folder / pilot.FILE).read_text())["parts"]}


def stances(folder: Path) -> dict[str, str]:
    return {ground["name"]: ground["stance"] for ground in json.loads((folder / "verdict.json").read_text())["grounds"]}


@pytest.mark.slow
def test_what_was_not_afforded_is_said_and_made_up_for(folder: Path) -> None:
    always = dict.fromkeys(("harvest", "check", "train", "certify"), "done")
    assert states(folder) == {**always, **dict.fromkeys(WANTED, "left out")}
    assert stances(folder)["control"] == "unknown"
    again = kyomei("pilot", folder)
    assert again.exit_code == 0 and "not afforded: random weights, measure, baseline topk" in again.stdout
    assert "dictionary.width (was 32, now 64)" in refused("pilot", folder, "--width", 64)
    assert "Expected minutes for" in refused("pilot", folder, "--minutes", 1)
    weights = sha256_of(folder / "replicas/0/sae.safetensors")
    done("pilot", folder, "--minutes", 9, "--threads", 1)
    assert states(folder) == {**always, CONTROL: "done", MEASURE: "left out", "baseline topk": "left out"}
    assert stances(folder)["control"] != "unknown"
    assert sha256_of(folder / "replicas/0/sae.safetensors") == weights
    assert (folder / "controls/random-weights/certificate.json").exists()


@pytest.mark.slow
def test_train_takes_the_full_recipe_unchanged(folder: Path) -> None:
    written = folder / FULL_RECIPE
    assert written.read_text().startswith("# The full run that p is a pilot of")
    recipe = Recipe.read(written)
    assert (recipe.source.num_tokens, recipe.dictionary.width, recipe.resonance) == (24_000, 32, Recipe().resonance)
    done("train", folder.parent / "full", "--recipe", written, "--threads", 1)
    assert Run.open(folder.parent / "full").recipe == recipe


@pytest.mark.slow
def test_the_full_run_is_planned_anew_for_other_machines_and_sizes(folder: Path) -> None:
    full = done("pilot", folder, "--full-tokens", 2_400_000, "--price", 2)["pilot"]["full"]
    assert full["tokens"] == 2_400_000 and full["steps"] == 140 and full["plan"]["hardware"] == "here"
    hours = sum(full["plan"]["seconds"].values()) / 3600
    assert full["plan"]["price"] == pytest.approx(2 * hours) and CONTROL in full["plan"]["seconds"]
    again = done("pilot", folder)["pilot"]["full"]
    assert again["tokens"] == 2_400_000 and again["plan"]["price"] == full["plan"]["price"]
    assert "where a pilot begins" in refused("pilot", folder, "--baseline", "jumprelu")


@pytest.mark.slow
def test_a_larger_pilot_takes_the_place_of_the_smaller_one_even_after_a_crash(folder: Path) -> None:
    run = Run.open(folder)
    facts = run.manifest[pilot.STAGE]
    run.note(**{pilot.STAGE: {**facts, "left_out": {}}})  # as if no more had been wanted
    run.path(ROLLOUT).write_bytes(b"")
    before = run.read_json("verdict.json")
    removed: list[Path] = []

    def larger(recipe: Recipe, *_: Any, **__: Any) -> budget.Affordable:
        return budget.Affordable(recipe.with_values({"source.num_tokens": 13_000, "train.steps": 12}), facts["parts"], {})

    def dies(path: Path) -> None:
        removed.append(path)
        if len(removed) == 3:
            raise KeyboardInterrupt
        remove(path)

    request = pilot.Request(Recipe.parse(facts["asked"]), minutes=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pilot, "afforded", larger)
        patch.setattr("kyomei.runs.remove", dies)
        with pytest.raises(KeyboardInterrupt):
            pilot.begin(folder, request, Reporter(Console(quiet=True)))
    after = done("pilot", folder, "--threads", 1)["pilot"]
    assert (after["tokens"], after["steps"]) == (13_000, 12)
    (kept_as,) = after["earlier"]
    assert json.loads((folder / "earlier" / kept_as / "verdict.json").read_text()) == before
    facts = done("audit", folder)
    assert facts["whole"] and not facts["unverified"], "what the smaller pilot came to is of this run"
    assert run.path(ROLLOUT).exists() and not run.path("growing.json").exists()
    (listed,) = json.loads(kyomei("list", folder.parent, "--json").stdout)["runs"]
    assert listed["name"] == "p"


@pytest.mark.slow
def test_a_pilot_that_is_stopped_goes_on_to_the_same_bytes(made: Path, tmp_path: Path) -> None:
    folder, left = tmp_path / "stopped", [part for name in WANTED for part in ("--without", name)]
    line = [sys.executable, "-m", "kyomei", "pilot", str(folder), "--threads", "1"]
    process = subprocess.Popen([*line, *FIXED, *left], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 200
    while not list(folder.glob("replicas/1/checkpoints/step-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    with tiny_pilots():
        done("pilot", folder, "--resume", "--threads", 1)
    made_of = [f"{arm}/{i}/sae.safetensors" for arm in ("replicas", "controls/gaussian/topk") for i in range(2)]
    assert [sha256_of(folder / name) for name in made_of] == [sha256_of(made / name) for name in made_of]
    assert states(folder)["train"] == "done" and set(WANTED).isdisjoint(states(folder))


@pytest.mark.slow
def test_a_stop_while_the_text_is_read_is_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is there yet that other parts could be asked of."""
    run = Run.open(folder)
    run.note(stages={}, made_from={}, sites=None)

    def stopped(*_: Any) -> None:
        raise Interrupted("harvest to finish", "a signal to stop", "run again with --resume")

    monkeypatch.setattr(pilot, "harvest_run", stopped)
    with pytest.raises(Interrupted):
        pilot.pilot(run, Reporter(Console(quiet=True)))
    assert set(states(folder).values()) == {"to do", "left out"}


def test_what_cannot_be_a_pilot_is_refused_in_a_line(tmp_path: Path) -> None:
    assert "at least 3 replicas" in refused("pilot", tmp_path / "a", "--set", "source.replicas=2")
    assert "--without one of random weights" in refused("pilot", tmp_path / "a", "--without", "everything")
    assert "one value of dictionary.width" in refused("pilot", tmp_path / "a", "--width", 32, "--width", 64)
    Run.create(tmp_path / "b", Recipe())
    assert "the folder of a pilot" in refused("pilot", tmp_path / "b")
    assert "a pilot that has ended" in refused("rollout", tmp_path / "b")
    assert not (tmp_path / "a").exists()


# ── Roll-out ──


def judged(folder: Path, level: str) -> None:
    """Let a run's verdict be another one."""
    run = Run.open(folder)
    run.write_json("verdict.json", {**run.read_json("verdict.json"), "level": level, "decided_by": ["certified"]})
    run.record("verdict.json")


@pytest.mark.slow
def test_each_step_has_its_gate_and_leaves_a_line_that_cannot_be_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYOMEI_OPERATOR", "Ada")
    log = folder / ROLLOUT
    assert done("rollout", folder)["stage"] == "pilot" and not log.exists()
    judged(folder, "no-go")
    said = refused("rollout", folder, "--to", "tenth")
    assert "go at stage 'pilot'" in said and "No-go: decided by certified latents" in said and "--reason" in said
    assert "the next stage" in refused("rollout", folder, "--to", "all", "--reason", "now")
    assert "--to with --reason" in refused("rollout", folder, "--reason", "now")
    assert not log.exists()
    judged(folder, "go")
    done("rollout", folder, "--to", "tenth")
    tenth = Recipe.read(folder / "rollout/tenth.yaml")
    assert (tenth.source.num_tokens, tenth.train.steps, tenth.dictionary.width) == (12_000, 10, 32)
    assert "no verdict that holds" in refused("rollout", folder, "--to", "all")  # nobody has trained a tenth yet
    first = log.read_bytes()
    shown = kyomei("rollout", folder, "--to", "all", "--reason", "the board wants it")
    assert shown.exit_code == 0 and "the board wants it" in shown.stdout and "by Ada" in shown.stdout
    assert log.read_bytes().startswith(first)
    done("rollout", folder, "--to", "pilot")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["stage"], line["met"], line["traffic"]) for line in lines] == [
        ("tenth", True, 0.1),
        ("all", False, 1.0),
        ("pilot", None, 0.0),
    ]
    assert lines[0]["who"] == "Ada" and lines[0]["gate"]["sha256"] == sha256_of(folder / "verdict.json")
    assert lines[1]["gate"]["level"] is None and lines[1]["tokens"] == 24_000 and lines[1]["gate"]["run"] == "rollout/tenth"
    whole = log.read_text()
    for changed in (whole.replace("Ada", "Bob", 1), "".join(whole.splitlines(keepends=True)[1:])):
        log.write_text(changed)
        assert "line" in refused("rollout", folder)
    log.write_text(whole)
    assert done("rollout", folder)["stage"] == "pilot"


def next_of(result: Result) -> list[str]:
    """The command that the last line names, as words for `kyomei`."""
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stdout.split())
    return shlex.split(said.rpartition("next: `")[2].partition("`")[0])[1:]


@pytest.mark.slow
def test_a_roll_out_goes_all_the_way_as_it_says_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three stages on one harvest: gates met and not met, with reason and without, one stopped and gone on with."""
    monkeypatch.chdir(tmp_path)
    sizes = options({**TINY, "source.num_tokens": 12_000})
    left = [part for name in WANTED for part in ("--without", name)]
    done("harvest", "H", *sizes, "--threads", 1)
    with tiny_pilots():
        done("pilot", "P", "--from", "H", *sizes, "--full-tokens", 12_000, *left, "--threads", 1)
        assert next_of(kyomei("rollout", "P")) == ["rollout", "P", "--to", "tenth", "--reason", "…"]
        for more in ([], ["--reason", " "]):
            said = refused("rollout", "P", "--to", "tenth", *more)
            assert "go at stage 'pilot'" in said and "--reason" in said and not Path("P/rollout").exists()
        begin = next_of(kyomei("rollout", "P", "--to", "tenth", "--reason", "we try the path"))
        assert begin == ["pilot", "P/rollout/tenth", "--recipe", "P/rollout/tenth.yaml", "--from", "H"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pilot, "train_run", stopping)
            assert isinstance(kyomei(*begin, *left).exception, Interrupted)
        assert "no verdict that holds" in refused("rollout", "P", "--to", "all")
        go_on = next_of(kyomei("rollout", "P"))
        assert go_on == ["pilot", "P/rollout/tenth"]
        ended = kyomei(*go_on)
        assert ended.exit_code == 0 and "its verdict is the gate to 'all'; `kyomei rollout P --to all`" in ended.stdout
        judged(Path("P/rollout/tenth"), "go")
        done("pilot", "P", "--full-tokens", 2_400_000)  # the same roll-out is to lead further: its tenth is a larger one now
        assert "tokens 12,000 where the stage asks for 240,000" in refused("rollout", "P", "--to", "all")
        done("pilot", "P", "--full-tokens", 12_000)
        last = next_of(kyomei("rollout", "P", "--to", "all"))
        ended = kyomei(*last, *left)
        assert ended.exit_code == 0 and "the last one" in ended.stdout and "The full run" not in ended.stdout
        assert next_of(kyomei("rollout", "P")) == ["watch", "P/rollout/all"]
    lines = [json.loads(line) for line in Path("P/rollout.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["gate"]["level"], line["met"], line["reason"]) for line in lines] == [
        ("tenth", "no-go", False, "we try the path"),
        ("all", "go", True, None),
    ]
    assert Run.open("P/rollout/all").recipe == Recipe.read("P/full-recipe.yaml")
    for page in ("report.html", "report.ja.html"):
        assert "we try the path" in Path("P", page).read_text()
    facts = done("audit", "P")
    assert (
        facts["whole"] and not facts["unverified"] and {".", "rollout/tenth", "rollout/all", "harvest H"} <= {*facts["chains"]}
    )


def stopping(*_: Any) -> None:
    raise Interrupted("dictionaries to be trained", "a signal to stop", "run again")


@pytest.mark.sweep
def test_a_kill_at_any_moment_of_a_step_leaves_a_roll_out_that_goes_on(made: Path, tmp_path: Path) -> None:
    """Some 30 moments, of about two seconds each."""

    def stepped(folder: Path) -> None:
        run = Run.open(folder)
        with run.lock():
            rollout.step(run, "tenth", "we try the path")

    moments = stopped_at(0, lambda: stepped(shutil.copytree(made, tmp_path / "undisturbed")))
    assert moments
    for moment in range(1, moments + 1):
        folder = Path(shutil.copytree(made, tmp_path / str(moment)))
        assert stopped_at(moment, lambda: stepped(folder)) is None, moment  # noqa: B023
        if rollout.status(Run.open(folder))["stage"] == "pilot":
            stepped(folder)
        else:
            done("report", folder)
        assert [line["stage"] for line in rollout.read_log(Run.open(folder))] == ["tenth"], moment
        facts = audit(folder, Reporter(Console(quiet=True)))
        assert facts["whole"] and not facts["unverified"], (moment, facts["broken"], facts["unverified"])
        shutil.rmtree(folder)


def told(dictionary: str) -> dict[str, Any]:
    detector = Detector("kind", "label", "max", (3,), (1.0,), 0.0, 0.5, dictionary).to_dict()
    return {"detector": detector, "figures": {"auc": {"value": 0.9, "interval": [0.8, 0.95]}}}


def written(run: Run) -> None:
    """Goals of a run's own dictionary, and of another."""
    own, other = told(sha256_of(run.path("replicas/0/sae.safetensors"))), told("0" * 64)
    run.write_json("goals.json", file_of({"kind": own, "of another": other}))
    run.record("goals.json")


@pytest.mark.slow
def test_goals_of_the_runs_own_dictionary_are_weighed(folder: Path) -> None:
    run = Run.open(folder)
    written(run)
    assert standing_verdict(run) is None
    decided = decide_run(run)
    (goal,) = (ground for ground in decided["grounds"] if ground["name"] == "goal")
    assert goal["title"] == "goal kind" and goal["stance"] == "for" and goal["interval"] == [0.8, 0.95]
    assert standing_verdict(run) == decided == decide_run(run)


def test_goals_that_the_recipe_names_are_a_part_of_the_pilot(tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    labels.write_text("x" * 4000)
    recipe = Recipe().with_values({"dictionary.width": 512, "goals.labels": str(labels)})
    assert pilot.wanted_parts(recipe, ["topk"]) == [CONTROL, "goals", MEASURE, "baseline topk"]
    plan = FAST.plan(recipe)
    seconds = part_seconds(plan, recipe, ["goals"])["goals"]
    assert seconds == pytest.approx(plan.seconds["harvest"] * 1000 / recipe.source.num_tokens)
    gone = refused("pilot", tmp_path / "p", "--set", f"goals.labels={tmp_path / 'none.jsonl'}", "--minutes", 10)
    assert "Expected a file of labelled text" in gone and not (tmp_path / "p").exists()


@pytest.mark.slow
def test_a_pilot_tells_the_goals_of_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"a": "import os and sys, then return the path of a file", "b": "the quick brown fox jumps over the lazy dog"}
    labels = tmp_path / "labels.jsonl"
    labels.write_text("\n".join(json.dumps({"text": text, "label": kind == "a"}) for kind, text in words.items()))
    said = []
    monkeypatch.setattr(pilot, "nothing_certified", lambda run: False)
    monkeypatch.setattr(goals, "nothing_certified", lambda run: False)
    monkeypatch.setattr(goals, "goals_run", lambda run, asked, reporter: said.append(asked) or written(run))
    monkeypatch.setattr(pilot, "report_run", lambda run: run.path("report.html"))
    with tiny_pilots():
        settings = [*FIXED, "--set", f"goals.labels={labels}", "--set", "goals.names=[label]"]
        done("pilot", tmp_path / "p", *settings, "--tokens", 12_000, "--without", CONTROL, "--without", MEASURE, "--threads", 1)
    assert states(tmp_path / "p")["goals"] == "done" and said[0].file == labels and said[0].goals == ("label",)
    assert stances(tmp_path / "p")["goal"] == "for"


@pytest.mark.slow
def test_a_verdict_of_files_that_have_changed_opens_no_gate(folder: Path) -> None:
    run = Run.open(folder)
    judged(folder, "go")
    assert standing_verdict(run) is not None
    run.write_json("verdict.json", {**run.read_json("verdict.json"), "created": "2001-01-01"})  # by hand
    assert standing_verdict(run) is None and "a pilot that has ended" in refused("rollout", folder, "--to", "tenth")
    judged(folder, "go")
    run.write_json("premises.json", {**run.read_json("premises.json"), "verdict": "met"})
    assert "a pilot that has ended" in refused("rollout", folder, "--to", "tenth")
