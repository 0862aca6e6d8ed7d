"""What a run consists of: its arms, the null and the baselines of each, their seeds and their folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kyomei.config import SETTINGS, Recipe
from kyomei.dictionary.formats import load, width_of
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import RecipeError, RunError
from kyomei.evidence.controls import GAUSSIAN, RANDOM_WEIGHTS, Control
from kyomei.evidence.fidelity import fidelity
from kyomei.evidence.reproduction import Dictionary
from kyomei.learning.directions import Directions
from kyomei.learning.mesh import Mesh
from kyomei.learning.spread import Spread
from kyomei.runs import Run
from kyomei.stages.harvest import harvest_run
from kyomei.stages.harvested import (
    STAGE,
    activations,
    beside,
    digests_of_rows,
    harvest_of,
    naming,
    part_names,
    site_of,
    sites_of,
)
from kyomei.stages.progress import Reporter


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
        made_by: the verb that makes its dictionaries; "import": they come from elsewhere.
    """

    folder: str
    recipe: Recipe
    replicas: int
    control: Control | None = None
    directions_from: str | None = None
    as_many_as: str | None = None
    made_by: str = "train"

    def path(self, run: Run, replica: int) -> Path:
        return run.path(f"{self.folder}/{replica}")

    def stage(self, replica: int) -> str:
        return f"{self.made_by} {self.folder}/{replica}"

    def dictionary(self, run: Run, replica: int) -> SparseAutoencoder:
        return load(self.path(run, replica))

    def width(self, run: Run, replica: int) -> int:
        """Of a replica's dictionary, which is not read for it."""
        return width_of(self.path(run, replica))

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
    return Arm(
        f"controls/{control.name}/{name.replace(' ', '-')}", recipe, 2, control, shared, arm.directions_from or arm.folder
    )


def null_arm(arm: Arm, name: str) -> Arm:
    """The Gaussian surrogate of an arm."""
    return control_arm(arm, name, GAUSSIAN)


def replica_seed(seed: int, replica: int, *, null: bool = False) -> int:
    """Seed of one replica; nulls draw from streams of their own."""
    return int(np.random.SeedSequence([seed, replica, int(null)]).generate_state(1)[0])


BASELINES = tuple(name for name, settings in SETTINGS.items() if "random" in settings.starts)
"""Every mechanism that can start at random."""


@dataclass(frozen=True)
class Pair:
    """An arm and its null.

    Attributes:
        name: under which evidence.json lists them.
        title: as tables and figures show it.
        tested_by: the arm whose replicas test the one dictionary that comes from elsewhere; none: the arm's own others do.
    """

    name: str
    title: str
    arm: Arm
    null: Arm
    tested_by: Arm | None = None

    @property
    def arms(self) -> list[Arm]:
        """All whose dictionaries its figures rest on."""
        return [self.arm, self.null, *([] if self.tested_by is None else [self.tested_by])]

    @property
    def places(self) -> list[str]:
        """Folder of the dictionary that ships, then of those that test it."""
        arms = (self.arm,) if self.tested_by is None else (self.arm, self.tested_by)
        return [f"{arm.folder}/{i}" for arm in arms for i in range(arm.replicas)]

    def dictionaries(self, run: Run) -> list[SparseAutoencoder]:
        """The dictionaries of its places."""
        return [load(run.path(place)) for place in self.places]

    def shared_out(self, run: Run, mesh: Mesh) -> tuple[list[Dictionary], tuple[Dictionary, Dictionary]]:
        """The same and the two of the null, of which each of several ranks reads its share."""
        first, second = (dictionary_on(mesh, self.null.path(run, i)) for i in range(2))
        return [dictionary_on(mesh, run.path(place)) for place in self.places], (first, second)


def dictionary_on(mesh: Mesh, folder: Path) -> Dictionary:
    """A saved dictionary, of which each of several ranks reads its share."""
    return load(folder) if mesh.size == 1 else Spread.load(folder, mesh)


def own_pair(run: Run) -> Pair:
    """The run's own mechanism beside its null."""
    own, mechanism = main_arm(run), run.recipe.mechanism
    return Pair(mechanism.label, mechanism.full_title, own, null_arm(own, mechanism.label))


def baseline_pair(run: Run, name: str) -> Pair:
    """A usual mechanism of the run's width and steps, with as many active latents as the run's first dictionary has.

    Args:
        run: its own dictionaries are trained.
        name: of a mechanism; it starts at random, with its usual settings.

    Raises:
        RecipeError: no such baseline.
    """
    if name not in BASELINES:
        raise RecipeError(f"a baseline among {', '.join(BASELINES)}", f"'{name}'", "choose one of them")
    shape = {f"dictionary.{key}": value for key, value in _matched(run).items()}
    recipe = run.recipe.with_values({"mechanism": {"name": name, "start": "random"}, **shape})
    arm = Arm(f"baselines/{name}", recipe, run.recipe.source.replicas)
    # The run's own mechanism may be a baseline too: name, null and figures of that are its own.
    return Pair(f"baseline {name}", f"{recipe.mechanism.title}, baseline", arm, null_arm(arm, f"baseline-{name}"))


IMPORTED = "imported"
"""Folder of dictionaries that come from elsewhere, in a run's folder."""
IMPORT_FILE = "import.json"
"""Beside them: where from, and which latents are tested."""


def imported_pair(run: Run, name: str) -> Pair:
    """A dictionary from elsewhere, which the run's own replicas test; their null is its null."""
    own = own_pair(run)
    arm = Arm(f"{IMPORTED}/{name}", run.recipe, 1, made_by="import")
    return Pair(f"{IMPORTED} {name}", f"{name}, imported", arm, own.null, own.arm)


def imported_pairs(run: Run) -> list[Pair]:
    """Every dictionary from elsewhere that the run has."""
    names = sorted(path.parent.name for path in run.path(IMPORTED).glob(f"*/{IMPORT_FILE}"))
    return [pair for name in names if run.done((pair := imported_pair(run, name)).arm.stage(0))]


def made_for(name: str) -> dict[str, Any]:
    """What the manifest of a run says that is made to test a dictionary from elsewhere (see `main_pair`)."""
    return {"made_for": name}


def main_pair(run: Run) -> Pair:
    """The dictionary that a run is about: the one from elsewhere that it was made for, otherwise its own."""
    name = run.manifest.get("made_for")
    return own_pair(run) if name is None else imported_pair(run, name)


def require_trained(run: Run, *pairs: Pair) -> None:
    """Raise RunError, with the first thing missing, unless all replicas of the pairs and of their nulls are trained."""
    for arm in (arm for pair in pairs for arm in pair.arms):
        missing = [arm.stage(i) for i in range(arm.replicas) if not run.done(arm.stage(i))]
        if missing:
            raise RunError("a trained run", f"no '{missing[0]}' in {run.folder}", "run `kyomei train` with --resume first")


def trained_pairs(run: Run) -> list[Pair]:
    """The run's own pair, baselines that were trained beside it, and what comes from elsewhere; what it is about before all."""
    baselines = [baseline_pair(run, name) for name in BASELINES if _is_trained(run, name)]
    return main_first(run, [own_pair(run), *baselines, *imported_pairs(run)])


def main_first(run: Run, pairs: Sequence[Pair]) -> list[Pair]:
    """The same pairs, the one that the run is about before the others."""
    main = main_pair(run).name
    return sorted(pairs, key=lambda pair: pair.name != main)


def made_from(run: Run, *pairs: Pair) -> dict[str, str]:
    """Digests of what figures of some pairs rest on: data, dictionaries, nulls. A file that is gone is left out."""
    arms = [arm for pair in pairs for arm in pair.arms]
    files = [f"{arm.folder}/{i}/sae.safetensors" for arm in arms for i in range(arm.replicas)]
    files += [f"{arm.folder}/{IMPORT_FILE}" for arm in arms if arm.made_by == "import"]
    return {**digests_of_rows(run, part_names(run.recipe)), **run.digests(dict.fromkeys(files))}


def _is_trained(run: Run, name: str) -> bool:
    folders = (f"baselines/{name}/0", f"controls/gaussian/baseline-{name}/1")
    return all(run.done(f"train {folder}") for folder in folders)


def random_weights_run(run: Run, reporter: Reporter) -> Run:
    """The run inside a run that repeats it with the model's weights drawn at random: same text, same site, same recipe.

    It has a harvest of its own, unless the run learns from a harvest that many share: then they share this one too.
    """
    control, host = f"controls/{RANDOM_WEIGHTS.name}", harvest_of(run)
    recipe = beside(RANDOM_WEIGHTS.recipe(run.recipe.with_values({"source.sites": [site_of(run)]})), control)
    if host is run:
        return Run.create(run.path(control), recipe, resume=True)
    every_site = beside(RANDOM_WEIGHTS.recipe(host.recipe.with_values({"source.sites": sites_of(host)})), control)
    shared = Run.create(host.path(control), every_site, resume=True)
    if not shared.done(STAGE):
        with shared.lock():
            harvest_run(shared, reporter)
    folder = run.path(control)
    return Run.create(folder, recipe, resume=True, facts=naming(shared, folder, recipe.source.sites))


def _matched(run: Run) -> dict[str, Any]:
    """Width and L0 of the run's first dictionary on unseen documents, measured once."""
    file = "baselines/matched.json"
    if not run.path(file).exists():
        shipped = main_arm(run).dictionary(run, 0)
        l0 = fidelity(shipped, activations(run, "evidence")).l0_mean
        run.write_json(file, {"l0": max(1.0, l0), "width": shipped.width})
    values: dict[str, Any] = run.read_json(file)
    return values
