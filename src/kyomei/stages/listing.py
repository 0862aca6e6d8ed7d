"""The runs below a folder, as their files say; nothing is loaded, so that a list of hundreds takes a moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kyomei.config.family import Family
from kyomei.errors import KyomeiError
from kyomei.runs import MANIFEST, Run

_DONE = ("harvest", "check", "train", "certify", "measure", "report")
_WITHIN = {"controls", "activations", "tokens", "replicas", "baselines", "imported", "certificates", "earlier"}
"""Folders of a run that hold no runs of the user's."""
_IMPORTED = "imported"
"""Where a dictionary from elsewhere is, as `kyomei.stages.arms.imported_pair` has it; to ask there would load torch."""


def runs_below(folder: Path) -> list[dict[str, Any]]:
    """What each run below a folder is, by its path; members of a family among them, damaged ones with what is wrong.

    Args:
        folder: where to look; it may be a run itself.

    Returns:
        "name", "state" (stages that are done, or "damaged: …"), "model", "site", "mechanism", "width", "certified" (share of
        the width; of a run that was made for a dictionary from elsewhere these three are that one's) and "harvest" (the folder
        whose rows it learns from, or the address of its own; none: in it) of each.
    """
    return [_described(found, folder) for found in _run_folders(folder)]


def _run_folders(folder: Path) -> Iterator[Path]:
    for place, inside, files in os.walk(folder):
        is_run = MANIFEST in files
        if is_run:
            yield Path(place)
        inside[:] = sorted(name for name in inside if not (is_run and name in _WITHIN) and not name.startswith("."))


def _described(folder: Path, below: Path) -> dict[str, Any]:
    name = folder.relative_to(below).as_posix() if folder != below else str(folder)
    try:
        run = Run.open(folder)
        manifest, recipe = run.manifest, run.recipe
        varied = {key: tuple(values) for key, values in manifest.get("family", {}).items()}
        axes = Family(recipe, varied).axes
        named, made_for = manifest.get("harvest"), manifest.get("made_for")
        shown = "replicas" if made_for is None else f"{_IMPORTED}/{made_for}"
        facts = {
            "name": name,
            "state": _state(run, manifest),
            "model": recipe.source.model,
            "site": ", ".join(manifest.get("sites") or recipe.source.sites) or None,
            "mechanism": recipe.mechanism.label if made_for is None else f"{made_for}, imported",
            "width": _width(run, shown),
            "certified": _certified(run, shown),
            "harvest": _named(folder, named["path"], below) if named else recipe.source.store,
        }
        if axes:
            count = len(Family(recipe, varied).members())
            begun = len(list(folder.glob(f"members/*/{MANIFEST}")))
            state = f"{facts['state']}; family of {count}, {begun} begun"
            for key, setting in (("mechanism", "mechanism.name"), ("width", "dictionary.width")):
                facts[key] = ", ".join(map(str, axes[setting])) if setting in axes else facts[key]
            facts["state"] = state
        return facts
    except (KyomeiError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        said = error.found if isinstance(error, KyomeiError) else f"{type(error).__name__}: {error}"
        return {"name": name, "state": f"damaged: {said}"}


def _named(folder: Path, path: str, below: Path) -> str:
    return os.path.relpath(os.path.normpath(folder.resolve() / path), below.resolve())


def _state(run: Run, manifest: dict[str, Any]) -> str:
    """Stages that are done, by their verbs."""
    stages = manifest["stages"]
    replicas = [f"train replicas/{i}" for i in range(run.recipe.source.replicas)]
    trained = sum(stage in stages for stage in replicas)
    done = {
        "harvest": "harvest" in stages,
        "check": "check" in stages,
        "train": trained == len(replicas),
        "certify": run.path("certificate.json").exists(),
        "measure": "measure" in stages,
        "report": run.path("report.html").exists(),
    }
    words = [verb for verb in _DONE if done[verb]]
    if 0 < trained < len(replicas):
        words.append(f"train {trained}/{len(replicas)}")
    return ", ".join(words) or "begun"


def _width(run: Run, shown: str) -> int | None:
    """Of the dictionary that the run is about, or else as it is asked for."""
    config = f"{shown}/0/config.json"
    width = run.read_json(config)["width"] if run.path(config).exists() else run.recipe.dictionary.width
    return None if width is None else int(width)


def _certified(run: Run, shown: str) -> float | None:
    """Share of its latents that are certified; none: it has no certificate, or has lost it."""
    file = "certificate.json" if shown == "replicas" else f"{shown}/certificate.json"
    if not run.path(file).exists():
        return None
    certificate = run.read_json(file)
    return None if certificate.get("expired") else float(certificate["shares"]["count"]["status"]["certified"])
