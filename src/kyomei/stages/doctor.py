"""What of this machine Kyomei can use, what would fail here, and what to do about it; works without a network."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Literal

from kyomei import __version__
from kyomei.errors import KyomeiError
from kyomei.extras import EXTRAS, absent, installation

State = Literal["ok", "note", "fails"]
LITTLE_DISK_GB = 5.0
"""Less is soon full: a million rows of width 1024 take 2 GB."""
LITTLE_MEMORY_GB = 4.0
_BILLION = 1e9


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        state: "ok"; "note", where something else than the usual cannot be done; "fails", where every verb would.
        found: what is there.
        do: what to do, as a sentence; empty where nothing is.
    """

    name: str
    state: State
    found: str
    do: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain values."""
        return asdict(self)


def doctor(folder: Path, seconds: float) -> list[Check]:
    """Look at everything; what goes wrong while looking is itself a finding.

    Args:
        folder: where runs are to go.
        seconds: to wait for the hub.
    """
    looks: dict[str, Callable[[], Iterator[Check]]] = {
        "Python": _python,
        "packages": _packages,
        "devices": _devices,
        "memory": _memory,
        "disk": lambda: _disk(folder),
        "hub": lambda: _hub(seconds),
        "embedded model": _embedded,
        "extras": _extras,
    }
    found: list[Check] = []
    for name, look in looks.items():
        try:
            found += look()
        except Exception as error:  # a broken installation raises anything
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            do = error.do if isinstance(error, KyomeiError) else "install Kyomei anew, in an environment of its own"
            found.append(Check(name, "fails", said, f"{do[:1].upper()}{do[1:]}."))
    return found


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    yield Check("Python", "ok", found)
    yield Check("kyomei", "ok", f"{__version__}, {Path(__file__).parents[1]}")


def _packages() -> Iterator[Check]:
    from packaging.requirements import Requirement

    for line in metadata.requires("kyomei") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        name, do = re.sub(r"[-_.]+", "-", wanted.name).lower(), f"Run `pip install '{wanted.name}{wanted.specifier}'`."
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            yield Check(name, "fails", f"not installed; {wanted.specifier} is asked for", do)
            continue
        if wanted.specifier.contains(version, prereleases=True):
            yield Check(name, "ok", version)
        else:
            yield Check(name, "note", f"{version}, which was not tested; {wanted.specifier} is asked for", do)


def _devices() -> Iterator[Check]:
    import torch

    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    yield Check("CPU", "ok", f"{cores} core(s), {threads} thread(s)")
    for number in range(torch.cuda.device_count()):
        name, memory = torch.cuda.get_device_name(number), torch.cuda.get_device_properties(number).total_memory
        yield from _works(f"GPU {number}", f"cuda:{number}", f"{name}, {memory / _BILLION:.0f} GB")
    if torch.backends.mps.is_available():
        yield from _works("GPU", "mps", "Apple's, through MPS")
    if torch.cuda.device_count():
        from kyomei.dictionary.kernels import supported

        do = "" if supported("cuda") else "Run `pip install triton`; without it training steps on a GPU are dense, and slower."
        yield Check("sparse step on GPUs", "ok" if supported("cuda") else "note", "Triton" if not do else "no Triton", do)
    elif not torch.backends.mps.is_available():
        yield Check("GPU", "note", "none that torch can use", "Nothing needs one; models beyond a billion parameters want one.")


def _works(name: str, device: str, words: str) -> Iterator[Check]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            float((torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)).sum())
    except Exception as error:  # drivers raise anything
        said = " ".join(str(error).split())[:120]
        yield Check(name, "note", f"{words}, which does not compute: {said}", "Say `--device cpu`, or mend its driver.")
    else:
        yield Check(name, "ok", words)


def _memory() -> Iterator[Check]:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _BILLION
    except (AttributeError, ValueError, OSError):
        return  # Windows does not say it so
    do = "Take few rows and a small model; `kyomei plan` says what a run needs." if total < LITTLE_MEMORY_GB else ""
    yield Check("memory", "note" if do else "ok", f"{total:.0f} GB", do)


def _disk(folder: Path) -> Iterator[Check]:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    yield _room("disk for runs", place, "Runs cannot be written here: say another folder, or ask for the right to write.")
    yield _room("temporary files", Path(tempfile.gettempdir()), "Set TMPDIR to a folder that can be written.")


def _room(name: str, place: Path, unwritable: str) -> Check:
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Check(name, "fails", f"{place}: {error.strerror or error}", unwritable)
    free = shutil.disk_usage(place).free / _BILLION
    do = "Make room: `kyomei plan` says what a run needs." if free < LITTLE_DISK_GB else ""
    return Check(name, "note" if do else "ok", f"{free:,.0f} GB free at {place}", do)


def _hub(seconds: float) -> Iterator[Check]:
    from kyomei.dictionary.hub import access

    found = access(seconds)
    others = "Models and dictionaries by hub id are found only if they were fetched before; name folders."
    if found.offline:
        yield Check("hub", "note", f"{found.endpoint} is not asked: HF_HUB_OFFLINE is set", others)
    elif found.problem is not None:
        yield Check("hub", "note", f"{found.endpoint} does not answer: {found.problem}", others)
    else:
        yield Check("hub", "ok", f"{found.endpoint} answers")
    do = "" if found.token else "Run `hf auth login` for gated models and for publishing."
    yield Check("hub token", "ok" if found.token else "note", "there" if found.token else "none", do)
    cache = found.cache
    while not cache.exists():
        cache = cache.parent
    yield _room("disk for models", cache, "Set HF_HOME to a folder that can be written.")


def _embedded() -> Iterator[Check]:
    file = resources.files("kyomei") / "source" / "embedded" / "model" / "model.safetensors"
    there = file.is_file()
    do = "" if there else "Install Kyomei anew; `kyomei demo` and the tutorial need it."
    yield Check("embedded model", "ok" if there else "note", "there" if there else "not there", do)


def _extras() -> Iterator[Check]:
    for name, extra in EXTRAS.items():
        missing = absent(name)
        do = f"For {extra.use}: {installation(name)}." if missing else ""
        yield Check(f"kyomei[{name}]", "note" if missing else "ok", f"no {', '.join(missing)}" if missing else "installed", do)


def facts(checks: list[Check]) -> dict[str, Any]:
    """Checks for a program: whether anything fails, and each by its name."""
    return {"fails": any(check.state == "fails" for check in checks), "checks": [check.to_dict() for check in checks]}
