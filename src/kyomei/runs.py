"""A run is a folder: atomic writes, a lock, and a manifest of what was made, from what and where. Torch-free."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import shlex
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from kyomei import __version__
from kyomei.atomic import TEMPORARY, refusals_named, remove, remove_temporaries, sha256_of, sync_folder, write_atomic
from kyomei.config import Recipe
from kyomei.errors import KyomeiError, RunError
from kyomei.locks import LOCK, locked, refuse_if_locked
from kyomei.provenance import begun, ended, now
from kyomei.sealing import SEAL, Stat, digest_of, files_of, seal_of, sealed, settled, untouched, written_since
from kyomei.stores import LocalStore, Store, store_at

SCHEMA_VERSION = 2
"""Version of the run folder's layout and manifest; a run of another one is refused. Dictionaries have their own version."""

RECIPE, MANIFEST = "recipe.yaml", "manifest.json"
BIRTH = "manifest.json.new"
"""The manifest of a run whose recipe is not yet written."""
CHANGED = "changed_by_others"
"""Where a manifest says when it was found to have been changed by others than Kyomei."""
OWNER, CLAIM = "run.json", "store"
"""File that says at an address whose rows lie there, and where that run's manifest has the same name of it."""
HARVESTED = ("activations", "tokens")
"""Folders of rows and tokens, which may be at an address."""
PRIVATE = 0o700
"""Mode of a run's folder: it holds text that others may not be meant to read."""
_RECORDED_PACKAGES = ("torch", "numpy", "scipy", "transformers", "tokenizers", "safetensors")


def plain(value: Any) -> Any:
    """A value as JSON can hold it: numpy and torch numbers and arrays as lists, paths as text, NaN and infinity as None.

    Raises:
        TypeError: the value has no such form.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    for conversion in ("to_dict", "tolist"):
        if hasattr(value, conversion):
            return plain(getattr(value, conversion)())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


@dataclass(frozen=True)
class Run:
    """A run's folder. Make one with `Run.create`, find one with `Run.open`.

    Attributes:
        folder: where it is.
        recipe: what was asked, defaults filled in.
    """

    folder: Path
    recipe: Recipe

    @classmethod
    def create(
        cls,
        folder: Path | str,
        recipe: Recipe,
        *,
        resume: bool = False,
        overwrite: bool = False,
        command: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> Run:
        """Start a run, or go on with one.

        Args:
            folder: a new folder, unless one of the options says what to do with the old one. Only its owner can read it.
            recipe: what is asked.
            resume: go on with the run that is there, which must have the same recipe; start it if there is none.
            overwrite: delete the run that is there, and start anew.
            command: what began it, for the manifest of a new run.
            facts: what else the manifest of a new run says from its birth on, such as where its harvest is.

        Raises:
            RunError: the folder exists and neither option is given (or both), is not a run, is of another layout, has another
                recipe, or a live process holds its lock.
        """
        run = cls.find(folder, recipe, resume=resume, overwrite=overwrite)
        if run is not None:
            return run
        run = cls(Path(folder), recipe)
        if overwrite and run.folder.exists():
            _clear_addresses(run.folder)
            with refusals_named(run.folder):
                _empty(run.folder)
        # The manifest gets its name last: a folder without it is a run that a crash kept from being born.
        with refusals_named(run.folder):
            run.folder.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
            with contextlib.suppress(PermissionError):  # a folder that someone else made
                run.folder.chmod(PRIVATE)
        asked = recipe.to_yaml().encode()
        outputs = {RECIPE: hashlib.sha256(asked).hexdigest()}
        write_atomic(run.path(BIRTH), sealed(plain({**_new_manifest(recipe, command), "outputs": outputs, **(facts or {})})))
        write_atomic(run.path(RECIPE), asked)
        finish_birth(run.folder)
        return run

    @classmethod
    def find(cls, folder: Path | str, recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> Run | None:
        """The run that `create` would go on with; none where it would start one. Nothing is written or deleted.

        Raises:
            RunError: as `create` does.
        """
        folder = Path(folder)
        if resume and overwrite:
            raise RunError("either --resume or --overwrite", "both", "choose one of them")
        if not folder.exists():
            return None
        if not folder.is_dir():
            raise RunError("a folder for the run", f"a file at {folder}", "choose another folder")
        if not (resume or overwrite):
            raise RunError(
                "a new folder for the run",
                f"{folder}, which exists",
                "choose another folder, or add --resume to go on with it or --overwrite to start anew",
            )
        if not _is_run(folder) and not _is_unborn(folder):
            found = f"{folder}, which has files but no {MANIFEST}"
            raise RunError("the folder of a run", found, "choose another folder; nothing was deleted")
        if overwrite:
            refuse_if_locked(folder)
        else:
            finish_birth(folder)
        if overwrite or not _is_run(folder):
            return None
        run = cls.open(folder)
        refuse_other_recipe(run, recipe)
        return run

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """The run in a folder.

        Raises:
            RunError: no run is there, its manifest is damaged, or its layout is not this Kyomei's.
        """
        folder = Path(folder)
        if not _is_run(folder):
            raise RunError("the folder of a run", f"no {MANIFEST} in {folder}", "check the path")
        _read_manifest(folder)  # first: the recipe of an older layout may have keys that are gone
        return cls(folder, Recipe.read(folder / RECIPE))

    def anew(self, recipe: Recipe, kept: Iterable[str], *, command: str = "", facts: Mapping[str, Any] | None = None) -> Run:
        """Start the run of another recipe in the same folder; its history goes on.

        The recipe is written first and the manifest last: until then the manifest is the old one, and this can be done again.

        Args:
            recipe: what is asked now.
            kept: names in the folder that stay; all else is deleted.
            command, facts: as `create` takes them.
        """
        history, stay = self._history, {*kept, RECIPE, MANIFEST, LOCK}
        _clear_addresses(self.folder, {*kept})
        write_atomic(self.path(RECIPE), recipe.to_yaml().encode())
        with refusals_named(self.folder):
            for path in sorted(self.folder.iterdir()):
                if path.name not in stay:
                    remove(path)
        self.write_json(MANIFEST, {**_new_manifest(recipe, command), "history": history, **(facts or {})})
        return Run(self.folder, recipe)

    def path(self, name: str) -> Path:
        """The path of a file or folder of the run, such as "evidence.json" or "replicas/0"."""
        return self.folder / name

    @property
    def store(self) -> Store:
        """Where rows and tokens of its own harvest are: its folder, or the address that its recipe names."""
        address = self.recipe.source.store
        return store_at(self.folder if address is None else address)

    def store_of(self, name: str) -> Store:
        """Where a file of the run is, by its name."""
        return self.store if name.partition("/")[0] in HARVESTED else LocalStore(self.folder)

    def claim(self) -> None:
        """Let an address be this run's, before anything is written there.

        Raises:
            RunError: it is another's.
            AddressError: it does not answer.
        """
        if not self.store.is_here:
            own = self.manifest.get(CLAIM) or uuid.uuid4().hex
            self.note(**{CLAIM: own})
            refuse_taken(self.recipe, own)
            self.store.prepare()
            self.store.write(OWNER, json.dumps({"id": own, "run": self.folder.resolve().name}).encode())

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file of the run atomically (see `plain` for what it can hold); returns its path."""
        path = self.path(name)
        write_atomic(path, (json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n").encode())
        return path

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the run.

        Raises:
            RunError: it is not there, or not JSON.
        """
        return _read_json(self.folder, name)

    @property
    def writable(self) -> bool:
        """Whether this process may write into the folder: not into another user's, or one on a read-only disk."""
        return os.access(self.folder, os.W_OK | os.X_OK)

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it stands on disk."""
        return _read_manifest(self.folder)

    def note(self, **facts: Any) -> None:
        """Add facts to the manifest, such as the document split or the device.

        A manifest that was changed by others says so from then on.
        """
        path = self.path(MANIFEST)
        known = {**self.manifest, **({} if seal_of(path.read_bytes()) != "broken" else {CHANGED: now()})}
        write_atomic(path, sealed(plain({**known, **facts})))

    def record(self, *paths: Path | str) -> None:
        """Add the SHA-256 of outputs to the manifest.

        Args:
            paths: files or folders (then every file in them) of the run, relative to it or with it.

        Raises:
            RunError: one of them is not there, or lies outside the run.
        """
        outputs = {name: digest_of(self.path(name)) for path in paths for name in self._files(path)}
        manifest = self.manifest
        self.note(outputs=dict(sorted({**manifest["outputs"], **outputs}.items())))

    def recorded(self, path: Path | str) -> bool:
        """Whether the manifest has the SHA-256 of an output as it is now."""
        outputs = self.manifest["outputs"]
        return all(outputs.get(name) == sha256_of(self.path(name)) for name in self._files(path))

    def _files(self, path: Path | str) -> list[str]:
        root = self.folder.resolve()
        at = Path(path).resolve() if Path(path).resolve().is_relative_to(root) else (root / path).resolve()
        if not at.is_relative_to(root):
            raise RunError(f"an output inside {self.folder}", str(path), "write outputs into the run's folder")
        if not at.exists():
            raise RunError("an output to record", f"nothing at {at}", "write it first")
        files = sorted(file for file in at.rglob("*") if file.is_file()) if at.is_dir() else [at]
        return [file.relative_to(root).as_posix() for file in files if not TEMPORARY.fullmatch(file.name)]

    def done(self, stage: str, made_from: dict[str, str] | None = None) -> bool:
        """Whether a stage has finished, and if `made_from` is given, from just that."""
        manifest = self.manifest
        return stage in manifest["stages"] and made_from in (None, manifest["made_from"].get(stage))

    def finish(self, stage: str, made_from: dict[str, str] | None = None) -> None:
        """Mark a stage as finished.

        Args:
            stage: its name.
            made_from: digests by name of all that its results rest on; with others than these it is not done.
        """
        manifest = self.manifest
        rests = {**manifest["made_from"], stage: made_from} if made_from is not None else manifest["made_from"]
        self.note(stages={**manifest["stages"], stage: now()}, made_from=rests)

    def digests(self, names: Iterable[str]) -> dict[str, str]:
        """SHA-256 by name of those of some files of the run that are there."""
        found = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found[name] = self.store_of(name).sha256(name)
        return found

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process, and write down in its history who did what.

        What is left of temporary files of a killed process is removed. In the end the manifest has the digest of every file
        that was written meanwhile, whoever wrote it. A run that this process cannot write to is only read: there is nothing to
        hold, and what would write is refused where it does.

        Raises:
            RunError: a live process holds it. The lock of a dead one is taken over.
        """
        if not self.writable:
            yield
            return
        with locked(self.folder):
            remove_temporaries(self.folder)
            before = self.files()
            self.note(outputs=self._trusted(before), history=begun(self._history))
            try:
                yield
            except BaseException as error:
                with contextlib.suppress(OSError, KyomeiError):  # what went wrong first is what is told
                    outputs = settled(self.folder, before, self.files(), self.manifest["outputs"])
                    self.note(outputs=outputs, history=ended(self._history, error))
                raise
            outputs = written_since(self.folder, before, self.files(), self.manifest["outputs"])
            self.note(outputs=outputs, history=ended(self._history))

    def files(self) -> dict[str, Stat]:
        """The files that belong to the run, by name relative to it; those of runs in its folder are theirs."""
        return files_of(self.folder, MANIFEST)

    def _trusted(self, files: Mapping[str, Stat]) -> dict[str, str]:
        """The digests that the manifest holds, but for files that a process wrote before it was killed."""
        manifest, last = self.manifest, (self._history or [{}])[-1]
        outputs: dict[str, str] = manifest["outputs"]
        killed = last.get("began") if last.get("ended", "") is None else None
        return outputs if killed is None else untouched(files, outputs, killed)

    @property
    def _history(self) -> list[dict[str, Any]]:
        history: list[dict[str, Any]] = self.manifest.get("history", [])
        return history


def _is_run(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def finish_birth(folder: Path) -> None:
    """Let a folder be a run if all of one is there, so that what was asked of it need not be said again after a crash."""
    if not _is_run(folder) and (folder / BIRTH).is_file() and (folder / RECIPE).is_file():
        with refusals_named(folder):
            os.replace(folder / BIRTH, folder / MANIFEST)
        sync_folder(folder)


def _is_unborn(folder: Path) -> bool:
    """Whether a crash may have stopped `Run.create` here before it wrote the manifest, or the folder is empty."""
    return all(path.name in (RECIPE, BIRTH, LOCK) or TEMPORARY.fullmatch(path.name) for path in folder.iterdir())


def refuse_taken(recipe: Recipe, own: str | None) -> None:
    """Raise RunError where a recipe's address, if it has one, holds what is not of the run that is called `own` there."""
    if recipe.source.store is None:
        return
    store = store_at(recipe.source.store)
    owner = _owner(store)
    if owner.get("id") == own and owner:
        return
    if owner or any(store.has(name) for name in HARVESTED):
        found = f"those of {owner.get('run', 'something else')} at {store}"
        do = "choose another source.store, or delete what is there if nothing needs it"
        raise RunError("an address for the rows and tokens of this run alone", found, do)


def _owner(store: Store) -> dict[str, Any]:
    """What an address says of the run whose rows lie there; nothing where it says nothing."""
    if not store.has(OWNER):
        return {}
    try:
        owner = json.loads(store.read(OWNER))
    except ValueError:
        return {"run": "a run that cannot be read"}
    return owner if isinstance(owner, dict) else {"run": "a run that cannot be read"}


def claim_of(folder: Path) -> str | None:
    """How the run in a folder is called at its address; none where there is no run, or none that has an address."""
    if not _is_run(folder):
        return None
    with contextlib.suppress(RunError, AttributeError):
        claim: str | None = _read_manifest(folder).get(CLAIM)
        return claim
    return None


def _clear_addresses(folder: Path, kept: Collection[str] = ()) -> None:
    """Delete what the run in a folder, and those below it but for some folders, wrote at addresses; nothing of another's."""
    for path in sorted(folder.rglob(MANIFEST)):
        own = None if path.relative_to(folder).parts[0] in kept else claim_of(path.parent)
        store = None if own is None else Run.open(path.parent).store
        if store is not None and _owner(store).get("id") == own:
            store.clear(*HARVESTED, OWNER)


def _empty(folder: Path) -> None:
    """Delete a run's files, the manifest last: a crash on the way leaves what is still known to be a run."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
        remove(path)


def refuse_other_recipe(run: Run, recipe: Recipe) -> None:
    """Raise RunError, naming every setting that differs, unless a run has this recipe."""
    old, new = _flat(run.recipe.model_dump(mode="json")), _flat(recipe.model_dump(mode="json"))
    differing = [f"{key} (was {old.get(key)!r}, now {new.get(key)!r})" for key in new if old.get(key) != new.get(key)]
    if differing:
        raise RunError(
            f"the recipe that {run.folder} was started with",
            f"other values of {', '.join(differing)}",
            "resume with the old values, or choose another folder or --overwrite",
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return found


def _new_manifest(recipe: Recipe, command: str) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "created": now(),
        "versions": {
            "kyomei": __version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in _RECORDED_PACKAGES},
        },
        "seed": recipe.seed,
        "hardware": {
            "system": platform.system(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
        "history": [],
        "split": {},
        "stages": {},
        "made_from": {},
        "outputs": {},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read_json(folder: Path, name: str) -> Any:
    path = folder / name
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise RunError(f"{name} in the run", f"nothing at {path}", "run the stage that writes it") from error
    except ValueError as error:
        raise RunError("JSON", f"{path}: {error}", "delete the damaged file and repeat the stage that writes it") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run of this layout."""
    manifest = _read_json(folder, MANIFEST)
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if not isinstance(version, int):
        found = f"{version!r} in {folder / MANIFEST}"
        raise RunError("a manifest with a schema_version", found, "check that this is a run's folder")
    if version > SCHEMA_VERSION:
        raise RunError(
            f"a run of layout {SCHEMA_VERSION}",
            f"layout {version} in {folder}, written by a newer Kyomei",
            "install the Kyomei that wrote it, or a newer one",
        )
    if version < SCHEMA_VERSION:
        command = str(manifest.get("command") or f"kyomei train {shlex.quote(str(folder))}").removesuffix(" --overwrite")
        raise RunError(
            f"a run of layout {SCHEMA_VERSION}",
            f"layout {version} in {folder}, made by an older Kyomei (its dictionaries still load with kyomei.load)",
            f"make it anew with: {command} --overwrite",
        )
    return {key: value for key, value in manifest.items() if key != SEAL}
