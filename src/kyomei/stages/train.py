"""Directions and dictionaries of every replica, of baselines and of nulls, by one procedure."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

from kyomei.atomic import make_folder
from kyomei.errors import RunError
from kyomei.evidence.controls import Control
from kyomei.evidence.site import sample_figures
from kyomei.learning.directions import Directions
from kyomei.learning.fit import choose_device, fit_spread, starts_from_resonance, steps_done
from kyomei.learning.mesh import Mesh
from kyomei.learning.resonance import resonate
from kyomei.learning.workplace import Workplace
from kyomei.runs import Run
from kyomei.signals import saving
from kyomei.sinks import JsonlSink
from kyomei.source.rows import Rows, as_seen
from kyomei.stages.arms import Arm, Pair, baseline_pair, control_arm, main_arm, null_arm, random_weights_run, replica_seed
from kyomei.stages.beforehand import require_measurable
from kyomei.stages.harvest import harvest_run, streamed
from kyomei.stages.harvested import STAGE, activations, digests_of_rows, site_of
from kyomei.stages.named import NAMES, names_of, note_names
from kyomei.stages.progress import Reporter


def train_arm(run: Run, arm: Arm, reporter: Reporter) -> dict[str, Any]:
    """Train what is missing of an arm.

    Returns:
        Facts for the summary: width and number of directions of each replica.
    """
    facts = []
    mesh = reporter.mesh
    for replica in range(arm.replicas):
        if not mesh.tell(run.done(arm.stage(replica)))[0]:
            with _timed(run, arm.stage(replica), mesh):
                _train_replica(run, arm, replica, reporter)
            if mesh.leads:
                run.record(*(path for path in arm.path(run, replica).iterdir() if path.is_file()))
                run.finish(arm.stage(replica), _learnt_from(run, arm, replica))
            mesh.wait()
        facts.append({"width": arm.width(run, replica), **_direction_facts(run, arm, replica)})
    return {"folder": arm.folder, "mechanism": arm.recipe.mechanism.name, "replicas": facts}


def _learnt_from(run: Run, arm: Arm, replica: int) -> dict[str, str]:
    """Digests of what a replica learnt from: its part's rows, and its directions where it has some."""
    directions = arm.directions_path(run, replica).relative_to(run.folder).as_posix()
    return {**digests_of_rows(run, [f"replica-{replica}"]), **run.digests([directions])}


@contextlib.contextmanager
def _timed(run: Run, stage: str, mesh: Mesh) -> Iterator[None]:
    """Add the seconds of the block to those that the manifest has of a stage, those before an interruption included."""
    began = time.monotonic()
    try:
        yield
    finally:
        if mesh.leads:
            before = run.manifest.get("seconds", {})
            run.note(seconds={**before, stage: round(before.get(stage, 0.0) + time.monotonic() - began, 2)})


def _direction_facts(run: Run, arm: Arm, replica: int) -> dict[str, Any]:
    """How many directions there are, how many of them are stable by the run's rule, and how many training started from."""
    directions = arm.directions(run, replica)
    if directions is None:
        return {}
    # A null keeps unstable directions as well; beside the replicas' only its stable ones say something.
    stable = int((directions.stability >= run.recipe.resonance.min_stability).sum())
    used = len(_used(run, arm, directions))
    return {"directions": len(directions), "stable": stable, "used": used, "n_features": directions.n_features}


def _used(run: Run, arm: Arm, directions: Directions) -> Directions:
    """The directions that an arm trains from: no more than the arm has that it is the null of."""
    if arm.as_many_as is None:
        return directions
    # Nothing is refused on Gaussian rows: they have a direction for almost every start.
    return directions.no_more_than(_first_directions(run, arm.as_many_as))


def _first_directions(run: Run, folder: str) -> Directions:
    return Directions.load(run.path(f"{folder}/0/directions.safetensors"))


def trained(run: Run) -> bool:
    """Whether nothing is left of what `train_run` does, so that it only reads."""
    own = main_arm(run)
    arms = own, null_arm(own, own.recipe.mechanism.label)
    return run.done(STAGE) and all(run.done(arm.stage(i)) for arm in arms for i in range(arm.replicas))


def train_run(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Harvest what is missing, then train the run's dictionaries and their null.

    Raises:
        DataError: before the first training, what measure would refuse after it.
        RunError: on a mesh, if the run is not harvested yet.
    """
    if reporter.mesh.size > 1 and not run.done(STAGE):
        do = "run `kyomei harvest` first, alone or under torchrun"
        raise RunError("a harvested run on a mesh", f"none in {run.folder}", do)
    if run.done(STAGE) and not trained(run):
        reporter.note_threads(run)
    harvested = harvest_run(run, reporter)
    if reporter.mesh.leads:
        note_names(run)
    own = main_arm(run)
    constant = {} if run.done(own.stage(0)) else require_measurable(run, reporter)
    arms = [train_arm(run, arm, reporter) for arm in (own, null_arm(own, own.recipe.mechanism.label))]
    return {"harvest": harvested, "constant": constant, "arms": arms}


def train_on_mesh(run: Run, data: int, features: int, reporter: Reporter) -> dict[str, Any] | None:
    """This rank's part of a training under torchrun.

    Args:
        run: harvested.
        data, features: parts of the rows and of the latents.
        reporter: of this process.

    Returns:
        What `train_run` does, on the leading rank; none on the others.

    Raises:
        RecipeError: if there are not data × features processes.
        RunError: if the run is not harvested, or a rank is lost.
    """
    mesh = Mesh.join(data, features, choose_device(run.recipe.device))
    # Ranks tell each other of a signal and leave together, where they ask in time.
    with saving(patient=False), run.lock() if mesh.leads else contextlib.nullcontext():
        mesh.wait()
        facts = train_run(run, reporter.on(mesh))
    mesh.leave()
    return facts if mesh.leads else None


def rows_of(run: Run, arm: Arm, replica: int) -> Rows:
    """The rows that a replica of an arm learns from."""
    rows = activations(run, f"replica-{replica}")
    return rows if arm.control is None else arm.control.rows(rows, replica_seed(arm.recipe.seed, replica, null=True))


def _train_replica(run: Run, arm: Arm, replica: int, reporter: Reporter) -> None:
    folder = arm.path(run, replica)
    make_folder(folder)
    rows = rows_of(run, arm, replica)
    seed = replica_seed(arm.recipe.seed, replica, null=arm.control is not None)
    directions = _directions(run, arm, rows, replica, seed, reporter)
    if directions is not None:
        directions = _used(run, arm, directions)
    mesh, began = reporter.mesh, time.monotonic()
    sink = JsonlSink(folder / "events.jsonl", last_step=steps_done(folder)) if mesh.leads else None
    try:
        with reporter.progress(f"train {arm.folder}/{replica}") as progress:
            stream = None if arm.control is not None and arm.control.gaussian else streamed(run, replica, mesh)
            work = Workplace(folder, resume=True, sink=sink, progress=progress, mesh=mesh)
            sae = fit_spread(rows, arm.recipe, seed=seed, directions=directions, stream=stream, workplace=work)
    finally:
        if sink is not None:
            sink.close()
    if stream is not None:
        reporter.note(f"train {arm.folder}/{replica}: {stream.account(time.monotonic() - began)}")
    known = {**_provenance(run, arm, replica), **sae.provenance}
    if arm.control is None:
        others = (activations(run, f"replica-{i}") for i in range(arm.replicas) if i != replica)
        known["other_parts"] = [sample_figures(sae, part).to_dict() for part in others]
    dataclasses.replace(sae, provenance=known).save(folder)


def _provenance(run: Run, arm: Arm, replica: int) -> dict[str, Any]:
    """What a dictionary that is copied out of its run has to say of the run."""
    source = run.recipe.source
    model = run.manifest.get("model") or {"name": source.model, "revision": source.revision}
    place = {"site": site_of(run), "side": source.side}
    control = {} if arm.control is None else {"control": arm.control.name}
    within = {"run": run.folder.resolve().name, "dictionary": f"{arm.folder}/{replica}"}
    return {
        "model": model["name"],
        "revision": model["revision"],
        "weights": model.get("weights"),
        **place,
        **control,
        **within,
        NAMES: names_of(run),
    }


def _directions(run: Run, arm: Arm, rows: Rows, replica: int, seed: int, reporter: Reporter) -> Directions | None:
    if not starts_from_resonance(arm.recipe):
        return None
    mesh, path, search = reporter.mesh, arm.directions_path(run, replica), arm.recipe.search
    if mesh.tell(path.exists())[0]:
        return Directions.load(path)
    if arm.as_many_as is not None:
        # A null is asked for as many as it may start from: on its rows almost every start is a direction.
        search = search.model_copy(update={"enough": max(1, len(_first_directions(run, arm.as_many_as)))})
    with reporter.progress(f"resonance {arm.folder}/{replica}") as progress:

        def frequency_done(done: int, total: int) -> None:
            progress(done, total)
            reporter.leave_if_asked("resonance")

        device = choose_device(arm.recipe.device)
        seen = as_seen(rows, arm.recipe.dictionary.unit_rows)
        directions = resonate(seen, seed=seed, recipe=search, device=device, progress=frequency_done, mesh=mesh)
    if mesh.leads:
        directions.save(path)
    mesh.wait()
    # Of a file's map only what a rank looks at is in its memory.
    return directions if mesh.size == 1 else Directions.load(path)


def train_baseline(run: Run, name: str, reporter: Reporter) -> Pair:
    """The baseline and its null, trained where they are not yet."""
    pair = baseline_pair(run, name)
    for arm in (pair.arm, pair.null):
        train_arm(run, arm, reporter)
    return pair


def train_control(run: Run, arm: Arm, name: str, control: Control, reporter: Reporter) -> tuple[Run, Arm]:
    """Train what is missing of a control.

    Args:
        run: the run that holds the arm.
        arm: what it is the control of.
        name: of the arm's mechanism.
        control: the null.
        reporter: shows progress.

    Returns:
        The run in which the control's replicas lie, and their arm.
    """
    null = control_arm(arm, name, control)
    if not control.own_activations:
        train_arm(run, null, reporter)
        return run, null
    nested = random_weights_run(run, reporter)
    with nested.lock():
        harvest_run(nested, reporter)
        train_arm(nested, null, reporter)
    return nested, null
