"""Directions and dictionaries of every replica, of baselines and of nulls, by one procedure."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kyomei.config import Recipe
from kyomei.dictionary.formats import load
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import RunError
from kyomei.evidence.controls import GAUSSIAN, Control
from kyomei.learning.checkpoint import resume_step
from kyomei.learning.fit import WARM_FOLDER, choose_device, fit, starts_from_resonance
from kyomei.learning.mesh import Mesh
from kyomei.learning.resonance import Directions, resonate
from kyomei.runs import Run
from kyomei.sinks import JsonlSink
from kyomei.source.shards import Rows
from kyomei.stages.harvest import STAGE, activations, harvest_run, streamed
from kyomei.stages.watcher import Watcher


@dataclass(frozen=True)
class Arm:
    """One mechanism on one kind of data, in several replicas that differ in documents and seed.

    Attributes:
        folder: in the run's folder; replica i is `folder/i`.
        recipe: what is trained.
        replicas: how many.
        control: the null that this arm is; none: it is no null.
        directions_from: folder of the arm whose directions serve here too; none: its own.
        as_many_as: folder of the arm whose first replica says how many directions are kept, and so how wide a dictionary is
            whose width follows from them; none: all are kept.
    """

    folder: str
    recipe: Recipe
    replicas: int
    control: Control | None = None
    directions_from: str | None = None
    as_many_as: str | None = None

    def path(self, run: Run, replica: int) -> Path:
        return run.path(f"{self.folder}/{replica}")

    def stage(self, replica: int) -> str:
        return f"train {self.folder}/{replica}"

    def dictionary(self, run: Run, replica: int) -> SparseAutoencoder:
        return load(self.path(run, replica))

    def directions(self, run: Run, replica: int) -> Directions | None:
        """The replica's resonant directions; none for a mechanism that starts at random."""
        path = self.directions_path(run, replica)
        return Directions.load(path) if path.exists() else None

    def directions_path(self, run: Run, replica: int) -> Path:
        return run.path(f"{self.directions_from or self.folder}/{replica}") / "directions.safetensors"


def main_arm(run: Run) -> Arm:
    """The run's own dictionaries: replicas/0 is the one that ships."""
    return Arm("replicas", run.recipe, run.recipe.source.replicas)


def control_arm(arm: Arm, name: str, control: Control) -> Arm:
    """The same procedure with one thing taken away, two replicas.

    Args:
        arm: what it is the control of.
        name: of the arm's mechanism.
        control: the null. One that needs activations of its own learns from those of the run it is trained in.
    """
    recipe = control.recipe(arm.recipe)
    if control.own_activations:
        return replace(arm, recipe=recipe)
    # A frozen dictionary has other rows and learns none first: targets come from the same directions, and L0 is the same.
    shared = None if control.gaussian else arm.directions_from or arm.folder
    return Arm(f"controls/{control.name}/{name}", recipe, 2, control, shared, arm.directions_from or arm.folder)


def null_arm(arm: Arm, name: str) -> Arm:
    """The Gaussian surrogate of an arm."""
    return control_arm(arm, name, GAUSSIAN)


def replica_seed(seed: int, replica: int, *, null: bool = False) -> int:
    """Seed of one replica; nulls draw from streams of their own."""
    return int(np.random.SeedSequence([seed, replica, int(null)]).generate_state(1)[0])


def train_arm(run: Run, arm: Arm, watcher: Watcher) -> dict[str, Any]:
    """Train what is missing of an arm.

    Returns:
        Facts for the summary: width and number of directions of each replica.
    """
    facts = []
    mesh = watcher.mesh
    for replica in range(arm.replicas):
        if not mesh.tell(run.done(arm.stage(replica)))[0]:
            _train_replica(run, arm, replica, watcher)
            if mesh.leads:
                run.record(*(path for path in arm.path(run, replica).iterdir() if path.is_file()))
                run.finish(arm.stage(replica))
            mesh.wait()
        directions = arm.directions(run, replica)
        found = {} if directions is None else {"directions": len(directions), "n_features": directions.n_features}
        facts.append({"width": arm.dictionary(run, replica).width, **found})
    return {"folder": arm.folder, "mechanism": arm.recipe.mechanism.name, "replicas": facts}


def train_run(run: Run, watcher: Watcher) -> dict[str, Any]:
    """Harvest what is missing, then train the run's dictionaries and their null.

    Raises:
        RunError: on a mesh, if the run is not harvested yet: one process does that.
    """
    if watcher.mesh.size > 1 and not run.done(STAGE):
        raise RunError("a harvested run on a mesh", f"none in {run.folder}", "run `kyomei harvest` first, in one process")
    harvested = harvest_run(run, watcher)
    own = main_arm(run)
    arms = [train_arm(run, arm, watcher) for arm in (own, null_arm(own, own.recipe.mechanism.label))]
    return {"harvest": harvested, "arms": arms}


def train_on_mesh(run: Run, data: int, features: int, watcher: Watcher) -> dict[str, Any] | None:
    """This rank's part of a training under torchrun.

    Args:
        run: harvested.
        data, features: parts of the rows and of the latents.
        watcher: of this process.

    Returns:
        What `train_run` does, on the leading rank; none on the others.

    Raises:
        RecipeError: if there are not data × features processes.
        RunError: if the run is not harvested, or a rank is lost.
    """
    mesh = Mesh.join(data, features, choose_device(run.recipe.device))
    with run.lock() if mesh.leads else contextlib.nullcontext():
        mesh.wait()
        facts = train_run(run, watcher.on(mesh))
    mesh.leave()
    return facts if mesh.leads else None


def rows_of(run: Run, arm: Arm, replica: int) -> Rows:
    """The rows that a replica of an arm learns from."""
    rows = activations(run, f"replica-{replica}")
    return rows if arm.control is None else arm.control.rows(rows, replica_seed(arm.recipe.seed, replica, null=True))


def _train_replica(run: Run, arm: Arm, replica: int, watcher: Watcher) -> None:
    folder = arm.path(run, replica)
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(run, arm, replica)
    seed = replica_seed(arm.recipe.seed, replica, null=arm.control is not None)
    directions = _directions(arm, rows, arm.directions_path(run, replica), seed, f"{arm.folder}/{replica}", watcher)
    if directions is not None and arm.as_many_as is not None:
        # Nothing is refused on Gaussian rows: they have a direction for almost every start.
        directions = directions.no_more_than(Directions.load(run.path(f"{arm.as_many_as}/0/directions.safetensors")))
    mesh = watcher.mesh
    last_step = resume_step(folder / WARM_FOLDER) + resume_step(folder)
    sink = JsonlSink(folder / "events.jsonl", last_step=last_step) if mesh.leads else None
    try:
        with watcher.progress(f"train {arm.folder}/{replica}") as progress:
            sae = fit(
                rows,
                arm.recipe,
                seed=seed,
                directions=directions,
                stream=None if arm.control is not None and arm.control.gaussian else streamed(run, replica),
                folder=folder,
                resume=True,
                sink=sink,
                stop=watcher.stop,
                progress=progress,
                mesh=mesh,
            )
    finally:
        if sink is not None:
            sink.close()
    if mesh.leads:
        sae.save(folder)


def _directions(arm: Arm, rows: Rows, path: Path, seed: int, label: str, watcher: Watcher) -> Directions | None:
    if not starts_from_resonance(arm.recipe):
        return None
    mesh = watcher.mesh
    if mesh.tell(path.exists())[0]:
        return Directions.load(path)
    with watcher.progress(f"resonance {label}") as progress:

        def frequency_done(done: int, total: int) -> None:
            progress(done, total)
            watcher.leave_if_asked("resonance")

        device = choose_device(arm.recipe.device)
        recipe = arm.recipe.search
        directions = resonate(rows, seed=seed, recipe=recipe, device=device, progress=frequency_done, mesh=mesh)
    if mesh.leads:
        directions.save(path)
    mesh.wait()
    return directions
