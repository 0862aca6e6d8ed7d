"""Autoencoders on disk, ours and those of other libraries: the one place that recognises a file and reads or writes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from kyomei.dictionary.formats import dictionary_learning, gemma_scope, openai, ours, saelens, sparsify
from kyomei.dictionary.formats.ours import CONFIG_FILE, TENSORS_FILE, note_certificate, save, unit_rows_of, width_of
from kyomei.dictionary.formats.parts import Conversion
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError

__all__ = [
    "CONFIG_FILE",
    "FORMATS",
    "TENSORS_FILE",
    "Conversion",
    "load",
    "note_certificate",
    "read",
    "recognised",
    "save",
    "tensors_path",
    "unit_rows_of",
    "width_of",
    "write",
]


@dataclass(frozen=True)
class Format:
    """One way of writing autoencoders down.

    Attributes:
        title: for people.
        tensors_file: gives the file of the tensors in a folder or file of this format; none: it is of another.
        read: reads it.
        write: writes it; none: it is only read.
    """

    title: str
    tensors_file: Callable[[Path], Path | None]
    read: Callable[[Path], Conversion]
    write: Callable[[SparseAutoencoder, Path], Conversion] | None = None


FORMATS: dict[str, Format] = {
    saelens.NAME: Format("SAELens", saelens.tensors_file, saelens.read, saelens.write),
    sparsify.NAME: Format("sparsify", sparsify.tensors_file, sparsify.read, sparsify.write),
    dictionary_learning.NAME: Format(
        "dictionary_learning", dictionary_learning.tensors_file, dictionary_learning.read, dictionary_learning.write
    ),
    gemma_scope.NAME: Format("Gemma Scope", gemma_scope.tensors_file, gemma_scope.read),
    openai.NAME: Format("OpenAI sparse_autoencoder", openai.tensors_file, openai.read),
}
"""Formats of others by name, in the order in which they are looked for."""


def load(path: Path | str) -> SparseAutoencoder:
    """Read an autoencoder that `SparseAutoencoder.save` or another library wrote.

    Args:
        path: of its folder or file; `docs/formats.md` says what is recognised. Its `provenance` says where it comes from: of
            ours all that is known; of others "format", "model", "hook_name", "site", "context", "dataset" and "metadata",
            as far as the file says it.

    Returns:
        The autoencoder, on the CPU, in the dtype it was saved in; the same function as in the other library to about 1e-5.

    Raises:
        DataError: a file is missing, damaged or of a newer schema, files do not belong together, or it is something that a
            sparse autoencoder of ours cannot be; the message says why.
    """
    return read(path).sae


def read(path: Path | str) -> Conversion:
    """The same, with what was folded on the way.

    Args:
        path: of its folder or file.

    Raises:
        DataError: as `load`.
    """
    if not isinstance(path, str | PathLike):
        raise DataError("a folder of a saved autoencoder", f"a value of type {type(path).__name__}", "pass its path")
    path = _place(Path(path))
    name = recognised(path)
    if name == ours.NAME:
        _require_one(path)
        sae = ours.read(path)
        return Conversion(sae, ours.NAME, str(sae.provenance.get("mechanism") or sae.activation))
    return FORMATS[name].read(path)


def write(sae: SparseAutoencoder, folder: Path | str, name: str) -> Conversion:
    """Write an autoencoder as another library does.

    Args:
        sae: the autoencoder.
        folder: where the files go, made if need be.
        name: of the format.

    Raises:
        DataError: the format cannot be written, or has no such autoencoder; the message says why and what to do.
        RunError: the disk is full.
    """
    writers = {name: one.write for name, one in FORMATS.items() if one.write is not None}
    if name not in writers:
        raise DataError(f"a format among {', '.join(writers)}", f"'{name}'", "choose one of them")
    return writers[name](sae, Path(folder))


def recognised(path: Path) -> str:
    """The name of the format that a folder or file is of; ours where it is of none, so that the error says what is missing."""
    path = _place(path)
    return next((name for name, one in FORMATS.items() if one.tensors_file(path) is not None), ours.NAME)


def tensors_path(path: Path) -> Path | None:
    """The file that holds a dictionary's tensors; none: there is no dictionary there."""
    path = _place(path)
    found = (one.tensors_file(path) for one in FORMATS.values())
    return next((file for file in found if file is not None), ours.tensors_file(path))


def _place(path: Path) -> Path:
    """The folder of a file that says nothing without the settings beside it; anything else as it is."""
    needs_settings = path.name == dictionary_learning.TENSORS_FILE or path.suffix == ".safetensors"
    return path.parent if needs_settings and path.is_file() else path


def _require_one(folder: Path) -> None:
    """Raise DataError for a folder of several dictionaries."""
    if (folder / CONFIG_FILE).exists() or not folder.is_dir():
        return
    if tensors_path(first := folder / "replicas" / "0") is not None:
        raise DataError("the folder of one dictionary", f"a run in {folder}", f"name the dictionary that ships: {first}")
    inside = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and tensors_path(path) is not None]
    if inside:
        found = f"{folder}, which holds {len(inside)}: {', '.join(inside[:8])}{' …' if len(inside) > 8 else ''}"
        raise DataError("the folder of one dictionary", found, "name one of them")
