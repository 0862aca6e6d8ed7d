"""From a pilot to all traffic in three steps, each behind a gate, in one file that only grows.

`rollout.jsonl` in the pilot's folder has one JSON object a line, the oldest first:

    stage             "pilot", "tenth" or "all": where the roll-out is from then on
    when              ISO 8601 in UTC
    who               KYOMEI_OPERATOR, or the name of the user of the machine
    host              on which machine
    gate              of the verdict at the stage before: "level", "decided_by", "run" (its folder, from the pilot's) and
                      "sha256" of its verdict.json; none for a step back, which needs no gate
    met               whether that verdict was go, of a run that is all that its stage asks for
    reason            why the step was taken all the same; none: none was given
    width, tokens, steps   of the stage's recipe
    traffic           share of the traffic that is watched at this stage
    recipe            the stage's recipe, from the pilot's folder
    before            SHA-256 of the line before, in hexadecimal; of the first line: of nothing

A line that was changed or removed breaks the chain, and nothing is added to a broken one.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kyomei.atomic import sha256_of, write_atomic
from kyomei.config import Recipe
from kyomei.errors import RecipeError, RunError
from kyomei.provenance import OPERATOR, now
from kyomei.runs import MANIFEST, Run
from kyomei.stages.deciding import FILE as VERDICT
from kyomei.stages.deciding import standing_verdict
from kyomei.stages.full import FILE as FULL_RECIPE
from kyomei.stages.full import ROLLOUT, pilot_above
from kyomei.stages.harvested import beside, harvest_of
from kyomei.stages.pilot import STAGE, finished
from kyomei.stages.report import report_run
from kyomei.views.decisions import headline

_SAME = ("model", "site", "side", "mechanism")
"""What the runs of all stages have in common."""
FOLDER = Path(ROLLOUT).stem
"""Folder of the stages' recipes and runs, in the pilot's."""


@dataclass(frozen=True)
class Stage:
    """One step of a roll-out.

    Attributes:
        name: by which it is asked for.
        traffic: share of the traffic that is watched.
        tokens: share of the full run's tokens; none: the pilot's own.
    """

    name: str
    traffic: float
    tokens: float | None


STAGES = (Stage("pilot", 0.0, None), Stage("tenth", 0.1, 0.1), Stage("all", 1.0, 1.0))
NAMES = tuple(stage.name for stage in STAGES)


def status(run: Run) -> dict[str, Any]:
    """Where a roll-out is.

    Args:
        run: a pilot that has ended.

    Returns:
        "stage", where it is; "stages", of each its name, traffic, size, folder of its run, verdict ("level" and "decided_by";
        none: there is none that holds) and state ("passed", "here" or "ahead"); "next", the stage that comes next, or none;
        "do", the command that goes on with it; "log", the lines of the file.

    Raises:
        RunError: it is no ended pilot, or the file's chain is broken.
    """
    require_pilot(run)
    log = read_log(run)
    at = NAMES.index(log[-1]["stage"]) if log else 0
    stages = []
    for number, stage in enumerate(STAGES):
        recipe, folder = stage_recipe(run, stage), stage_folder(run, stage)
        found = _verdict(folder)
        stages.append(
            {
                "name": stage.name,
                "state": "passed" if number < at else "here" if number == at else "ahead",
                "traffic": stage.traffic,
                **_size(recipe),
                "run": str(folder),
                "verdict": None if found is None else {key: found[key] for key in ("level", "decided_by")},
            }
        )
    following = STAGES[at + 1].name if at + 1 < len(STAGES) else None
    return {"stage": NAMES[at], "stages": stages, "next": following, "do": _next_command(run, at), "log": log}


def step(run: Run, to: str, reason: str | None = None) -> None:
    """Take a roll-out to a stage, through the gate before it; write the stage's recipe, and the pilot's report with the step.

    Args:
        run: the pilot, which this process holds.
        to: name of the stage: the next one, or one before.
        reason: why the step is taken though its gate is not met.

    Raises:
        RecipeError: no such stage, or it is not the next one.
        RunError: the gate is not met and no reason is given.
    """
    where = status(run)
    if to not in NAMES:
        raise RecipeError(f"a stage among {', '.join(NAMES)}", f"'{to}'", "choose one of them")
    at, wanted = NAMES.index(where["stage"]), NAMES.index(to)
    if wanted == at or wanted > at + 1:
        found, ahead = f"'{to}', with the roll-out at '{where['stage']}'", where["next"]
        do = f"take `--to {ahead}` first" if wanted > at else "there is nothing to do"
        raise RecipeError("the next stage, or one before", found, do)
    stage, gate, reason = STAGES[wanted], None, (reason or "").strip() or None
    if wanted > at:
        gate = _gate(run, STAGES[at])
        if not gate["met"] and reason is None:
            do = "give --reason to take the step all the same; it is written down with your name"
            raise RunError(f"go at stage '{where['stage']}'", f"in {stage_folder(run, STAGES[at])}: {gate['found']}", do)
    recipe = stage_recipe(run, stage)
    path = run.path(f"{FOLDER}/{stage.name}.yaml")
    if stage.tokens is not None:
        write_atomic(path, recipe.to_yaml().encode())
        run.record(path)
    line = {
        "stage": stage.name,
        "when": now(),
        "who": os.environ.get(OPERATOR) or getpass.getuser(),
        "host": socket.gethostname(),
        "gate": gate and {key: gate[key] for key in ("level", "decided_by", "run", "sha256")},
        "met": None if gate is None else gate["met"],
        "reason": reason,
        **_size(recipe),
        "traffic": stage.traffic,
        "recipe": "recipe.yaml" if stage.tokens is None else path.relative_to(run.folder).as_posix(),
    }
    _append(run, line)
    report_run(run)


def stage_of(folder: Path) -> tuple[Path, str, str | None] | None:
    """Of the run of a stage the pilot's folder, the stage and the one after it, or none; of another run none."""
    pilot = pilot_above(folder)
    if pilot is None or folder.resolve().name not in NAMES:
        return None
    at = NAMES.index(folder.resolve().name)
    return pilot, NAMES[at], NAMES[at + 1] if at + 1 < len(NAMES) else None


def _next_command(run: Run, at: int) -> str:
    """What goes on with a roll-out, as a shell takes it: the stage's run where it has no verdict, else the step to the next."""
    stage, place, folder = STAGES[at], shlex.quote(str(run.folder)), stage_folder(run, STAGES[at])
    if _verdict(folder) is None:
        begun = "" if (folder / MANIFEST).exists() else f" --recipe {place}/{FOLDER}/{stage.name}.yaml{_rows(run, stage)}"
        return f"kyomei pilot {shlex.quote(str(folder))}{begun}"
    if at + 1 == len(STAGES):
        return f"kyomei watch {shlex.quote(str(folder))}"
    why = "" if _gate(run, stage)["met"] else ' --reason "…"'
    return f"kyomei rollout {place} --to {STAGES[at + 1].name}{why}"


def _rows(run: Run, stage: Stage) -> str:
    """The option that has a stage learn from the pilot's harvest, where that holds all that the stage asks for."""
    host, source = harvest_of(run), stage_recipe(run, stage).source
    # Where a stage would put rows of its own is no matter of what rows it asks for.
    own = {"sites": source.sites, "store": source.store}
    same = host is not run and host.recipe.source.model_copy(update=own) == source
    return f" --from {shlex.quote(os.path.relpath(host.folder))}" if same else ""


def require_pilot(run: Run) -> None:
    """Raise RunError unless a run is a pilot that has ended."""
    if run.manifest.get(STAGE) is None or not finished(run):
        do = "run `kyomei pilot` on it, until it ends"
        raise RunError("a pilot that has ended", f"none in {run.folder}", do)


def stage_recipe(run: Run, stage: Stage) -> Recipe:
    """The recipe of a stage: the pilot's own, or a part of the full run's.

    A tenth has a tenth of the tokens and of the steps, no fewer than the pilot, and twice the pilot's width at most.
    """
    pilot = run.recipe
    if stage.tokens is None:
        return pilot
    full = Recipe.read(run.path(FULL_RECIPE))
    if stage.tokens == 1:
        return full
    tokens = max(pilot.source.num_tokens, round(stage.tokens * full.source.num_tokens))
    steps = max(pilot.train.steps, round(stage.tokens * full.train.steps))
    widths = full.dictionary.width, pilot.dictionary.width
    width = min(widths[0], 2 * widths[1]) if widths[0] and widths[1] else widths[0]
    part = full.with_values({"source.num_tokens": tokens, "train.steps": steps, "dictionary.width": width})
    return beside(part, stage.name)


def stage_folder(run: Run, stage: Stage) -> Path:
    """Where the run of a stage is or will be."""
    return run.folder if stage.tokens is None else run.path(f"{FOLDER}/{stage.name}")


def read_log(run: Run) -> list[dict[str, Any]]:
    """The lines of rollout.jsonl.

    Raises:
        RunError: a line was changed or removed.
    """
    lines, before, found = _lines(run), hashlib.sha256(b"").hexdigest(), []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            intact = entry["before"] == before and entry["stage"] in NAMES
        except (ValueError, KeyError, TypeError):
            entry, intact = {}, False
        if not intact:
            do = "restore the file from a copy; a roll-out without its history passes no gate"
            raise RunError(f"{ROLLOUT} as it was written", f"line {number} of {run.path(ROLLOUT)} changed or missing", do)
        before = hashlib.sha256(line).hexdigest()
        found.append(entry)
    return found


def _lines(run: Run) -> list[bytes]:
    path = run.path(ROLLOUT)
    return path.read_bytes().splitlines() if path.exists() else []


def _append(run: Run, line: dict[str, Any]) -> None:
    lines = _lines(run)
    before = hashlib.sha256(lines[-1] if lines else b"").hexdigest()
    added = json.dumps({**line, "before": before}, ensure_ascii=False).encode()
    # All of it anew and at once: half a line, from a full disk, would end the file for good.
    write_atomic(run.path(ROLLOUT), b"".join(each + b"\n" for each in [*lines, added]))


def _gate(run: Run, stage: Stage) -> dict[str, Any]:
    """The verdict at a stage, as a gate."""
    folder = stage_folder(run, stage)
    found = _verdict(folder)
    where = os.path.relpath(folder, run.folder)
    if found is None:
        return {"level": None, "decided_by": [], "run": where, "sha256": None, "met": False, "found": "no verdict that holds"}
    other = _otherwise(run, stage, found)
    said = headline(found).rstrip(".") + (f"; but it is of {', '.join(other)}" if other else "")
    own = {"level": found["level"], "decided_by": found["decided_by"], "found": said}
    return {**own, "run": where, "sha256": sha256_of(folder / VERDICT), "met": found["level"] == "go" and not other}


def _otherwise(run: Run, stage: Stage, verdict: dict[str, Any]) -> list[str]:
    """In what the run of a stage is another one than the roll-out's, or smaller than the stage asks for."""
    pilot, asked = (standing_verdict(run) or verdict)["run"], _size(stage_recipe(run, stage))
    of = verdict["run"]
    other = [f"{name} {of[name]} instead of {pilot[name]}" for name in _SAME if of[name] != pilot[name]]
    size = _size(Run.open(stage_folder(run, stage)).recipe)
    smaller = [name for name in asked if (size[name] or 0) < (asked[name] or 0)]
    return [*other, *(f"{name} {size[name] or 0:,} where the stage asks for {asked[name]:,}" for name in smaller)]


def _verdict(folder: Path) -> dict[str, Any] | None:
    """The verdict in a folder, if there is one that still holds."""
    return standing_verdict(Run.open(folder)) if (folder / MANIFEST).exists() else None


def _size(recipe: Recipe) -> dict[str, Any]:
    return {"width": recipe.dictionary.width, "tokens": recipe.source.num_tokens, "steps": recipe.train.steps}
