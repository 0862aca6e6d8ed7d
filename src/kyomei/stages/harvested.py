"""The harvest that a run learns from, its own or one that many runs share: whoever reads rows or tokens asks here."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kyomei.config import Recipe
from kyomei.errors import RecipeError, RunError
from kyomei.runs import Run
from kyomei.sealing import UNFINISHED
from kyomei.source.shards import ShardFolder
from kyomei.source.text import Tokens
from kyomei.stages.tombstones import Tombstones
from kyomei.stores import Store

STAGE = "harvest"
NAMED = "harvest"
"""Where a manifest names the harvest in another folder: "path" from the run's folder, and "sha256"."""
_COPIED = ("model", "split", "corpus")
"""What a run's manifest has of the harvest that it names."""


def part_names(recipe: Recipe) -> list[str]:
    """Names of the parts of the documents, replicas first."""
    return [f"replica-{i}" for i in range(recipe.source.replicas)] + ["evidence"]


def beside(recipe: Recipe, name: str) -> Recipe:
    """The recipe of a run that is made for another's: its rows are below that one's, where they are at an address."""
    store = recipe.source.store
    return recipe if store is None else recipe.with_values({"source.store": f"{store}/{name}"})


def harvest_of(run: Run) -> Run:
    """The run whose folder holds the rows and tokens that a run learns from: itself, or another that it names.

    Raises:
        RunError: the harvest has not ended, is not where it was, or is another one than it was.
    """
    named = run.manifest.get(NAMED)
    if named is None:
        require_ended(run)
        return run
    folder = Path(os.path.normpath(run.folder.resolve() / named["path"]))
    do = f"say where it is with `kyomei train {shlex.quote(str(run.folder))} --resume --from FOLDER`"
    try:
        host = Run.open(folder)
        require_ended(host)
    except RunError as error:
        raise RunError(f"the harvest that {run.folder} learns from", f"none in {folder}: {error.found}", do) from error
    found = digest(host)
    if found != named["sha256"]:
        refuse_forgotten(run, host, named["sha256"])
        expected = f"the harvest that {run.folder} learns from (sha256 {named['sha256'][:12]})"
        raise RunError(expected, f"another one (sha256 {found[:12]}) in {folder}", f"{do}, or train anew with --overwrite")
    return host


def require_ended(run: Run) -> None:
    """Raise RunError unless a run's harvest has ended."""
    if run.path(UNFINISHED).exists():
        do = f"run `kyomei forget {shlex.quote(str(run.folder))}`, which ends it"
        raise RunError("a harvest in one piece", f"{run.folder}, where forgetting a document has not ended", do)
    if run.manifest.get("sites") is None:
        do = f"wait for it where it is going on, or finish it with `kyomei harvest {shlex.quote(str(run.folder))} --resume`"
        raise RunError("a harvested run", f"a harvest in {run.folder} that has not ended", do)


def refuse_forgotten(run: Run, host: Run, named: str) -> None:
    """Raise RunError if a harvest is another one than a run names because it has forgotten documents since."""
    date = Tombstones.read(host.folder).leads(named, digest(host))
    if date is not None:
        found = f"{run.folder}, which has not followed what {host.folder} forgot on {date}"
        places = f"{shlex.quote(str(host.folder))} --runs {shlex.quote(str(run.folder))}"
        raise RunError("a run that knows what its harvest forgot", found, f"run `kyomei forget {places}`")


def digest(host: Run, changed: Mapping[str, str] | None = None) -> str:
    """SHA-256 of a whole harvest, in hexadecimal: of the indices of all its rows and tokens, which hold those of every file.

    Args:
        host: the harvest.
        changed: SHA-256 by name of files that are about to be others.
    """
    lines = (f"{(changed or {}).get(name) or host.store.sha256(name)}  {name}\n" for name in _indices(host.store))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _indices(store: Store) -> list[str]:
    """Names of what says which files a harvest has."""
    return sorted([*store.names("activations/*/*/index.json"), *store.names("tokens/*/index.json")], key=PurePosixPath)


def digests_by_index(store: Store) -> dict[str, str]:
    """SHA-256 by name of every file of a harvest, as its indices say; no row is read."""
    found: dict[str, str] = {}
    for name in _indices(store):
        content = store.read(name)
        index, folder = json.loads(content), name.removesuffix("/index.json")
        shards = {entry["file"]: entry["sha256"] for entry in index.get("shards", ())}
        files = shards or index["sha256"]
        found |= {name: hashlib.sha256(content).hexdigest(), **{f"{folder}/{file}": sha for file, sha in files.items()}}
    return found


def open_harvest(folder: Path) -> Run:
    """The harvest in a folder; of a run that learns from another's harvest, that one.

    Raises:
        RunError: no run is there, or its harvest has not ended.
    """
    return harvest_of(Run.open(folder))


def naming(host: Run, folder: Path, sites: tuple[str, ...]) -> dict[str, Any]:
    """What the manifest of a run in `folder` says of the harvest that it learns from."""
    manifest = host.manifest
    path = Path(os.path.relpath(host.folder.resolve(), folder.resolve())).as_posix()
    return {
        NAMED: {"path": path, "sha256": digest(host)},
        "sites": list(sites),
        "stages": {STAGE: manifest["stages"][STAGE]},
        **{key: manifest[key] for key in _COPIED if key in manifest},
    }


def rename(run: Run, host: Run) -> None:
    """Let a run that names a harvest find it in its new place.

    Raises:
        RunError: the run has a harvest of its own, or `host` is not the one that it learns from.
    """
    named = run.manifest.get(NAMED)
    if named is None:
        do = "leave --from out, or choose another folder for a run on that harvest"
        raise RunError(f"a run on the harvest in {host.folder}", f"{run.folder}, which has a harvest of its own", do)
    new = naming(host, run.folder, ())[NAMED]
    if new["sha256"] != named["sha256"]:
        refuse_forgotten(run, host, named["sha256"])
        expected = f"the harvest that {run.folder} learns from (sha256 {named['sha256'][:12]})"
        found = f"another one (sha256 {new['sha256'][:12]}) in {host.folder}"
        raise RunError(expected, found, "give the folder of that harvest, or another folder for a new run")
    if new != named:
        run.note(**{NAMED: new})


def source_from(host: Run, recipe: Recipe, said: set[str]) -> Recipe:
    """A recipe with the source of a harvest.

    Args:
        host: the harvest.
        recipe: what is asked.
        said: names of settings of the source that are asked for; sites may be some of those harvested, and a store is where
            rows of its own would go.

    Raises:
        RecipeError: the harvest has another value of one of them.
    """
    asked, there = recipe.source, host.recipe.source
    sites = sites_of(host)
    unknown = [site for site in asked.sites if "sites" in said and site not in sites]
    if unknown:
        expected = f"a site of the harvest in {host.folder}: {', '.join(sites)}"
        raise RecipeError(expected, f"'{unknown[0]}'", "choose among these")
    other = [name for name in sorted(said - {"sites", "store"}) if getattr(asked, name) != getattr(there, name)]
    if other:
        found = ", ".join(f"source.{name} = {getattr(asked, name)!r} (there {getattr(there, name)!r})" for name in other)
        do = "leave these out, or harvest anew without --from"
        raise RecipeError(f"the source of the harvest in {host.folder}", found, do)
    chosen = asked.sites if "sites" in said and asked.sites else tuple(sites)
    return recipe.model_copy(update={"source": there.model_copy(update={"sites": chosen})})


# ── What stages read ──


def sites_of(run: Run) -> list[str]:
    """The sites whose rows a run has.

    Raises:
        RunError: its harvest has not ended.
    """
    require_ended(run)
    sites: list[str] = run.manifest["sites"]
    return sites


def site_of(run: Run) -> str:
    """The one site whose activations a run learns from.

    Raises:
        RunError: as `sites_of` does; there are several, of which none may be taken in silence.
    """
    first, *others = sites_of(run)
    if others:
        do = "train a run for each with `kyomei train`, or name one of its members"
        raise RunError("a run of one site", f"{', '.join([first, *others])} in {run.folder}", do)
    return first


def activations(run: Run, part: str, *, site: str | None = None, verify: bool = True) -> ShardFolder:
    """The shards of a part at a site; none: the one that the run learns from."""
    return ShardFolder(harvest_of(run).store / f"activations/{part}/{site or site_of(run)}", verify=verify)


def tokens_of(run: Run, part: str) -> Tokens:
    """The windows of a part, or of what training streams."""
    return Tokens.load(harvest_of(run).store / f"tokens/{part}")


def digests_of_rows(run: Run, parts: list[str]) -> Mapping[str, str]:
    """SHA-256, by its name in the harvest, of the index of some parts at the run's site; one that is gone is left out."""
    return harvest_of(run).digests(f"activations/{part}/{site_of(run)}/index.json" for part in parts)
