"""Kyomei's own format: `sae.safetensors` for the tensors, `config.json` for what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from kyomei.dictionary.formats.files import (
    consistent,
    read_json,
    read_rows_of_safetensors,
    read_safetensors,
    require_sound,
    write_json,
    write_safetensors,
    write_safetensors_in_pieces,
)
from kyomei.dictionary.sae import Activation, SparseAutoencoder
from kyomei.errors import DataError, KyomeiError

NAME = "kyomei"
SCHEMA_VERSION = 3
"""2 brought biases, 3 unit rows. What has neither is written as 1, so that older readers read it."""
TENSORS_FILE = "sae.safetensors"
CONFIG_FILE = "config.json"


def save(sae: SparseAutoencoder, folder: Path | str) -> None:
    """Write an autoencoder into a folder, made if need be; each file appears whole or not at all.

    Args:
        sae: the autoencoder.
        folder: where `sae.safetensors` and `config.json` go.

    Raises:
        RunError: if the disk is full; what was there before is untouched.
    """
    folder = Path(folder)
    tensors = {"encoder": sae.encoder, "threshold": sae.threshold, "center": sae.center}
    if not sae.tied:
        tensors["decoder"] = sae.decoder
    if sae.bias is not None:
        tensors["bias"] = sae.bias
    facts = Facts(sae.width, sae.dim, sae.tied, sae.activation, sae.k, sae.unit_rows, sae.provenance)
    write_safetensors(folder / TENSORS_FILE, tensors)
    write_json(folder / CONFIG_FILE, facts.config("bias" in tensors, sae.encoder.dtype))


@dataclass(frozen=True)
class Facts:
    """What is known of an autoencoder beside its tensors."""

    width: int
    dim: int
    tied: bool
    activation: Activation
    k: int | None
    unit_rows: bool
    provenance: dict[str, Any]

    def config(self, has_bias: bool, dtype: torch.dtype) -> dict[str, Any]:
        """What `config.json` holds."""
        return {
            "schema_version": 3 if self.unit_rows else 2 if has_bias else 1,
            "format": NAME,
            "width": self.width,
            "dim": self.dim,
            "tied": self.tied,
            "activation": self.activation,
            "k": self.k,
            **({"unit_rows": True} if self.unit_rows else {}),
            "dtype": str(dtype).removeprefix("torch."),
            "provenance": self.provenance,
        }


@dataclass(frozen=True)
class Part(Facts):
    """Some latents of a saved autoencoder; `width` is that of the whole.

    Attributes:
        tensors: by name, of these latents alone.
    """

    tensors: dict[str, Tensor]


def save_pieces(
    folder: Path, facts: Facts, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype, pieces: Iterable[Tensor]
) -> None:
    """Write what `save` writes of tensors that are never here as a whole.

    Args:
        folder: where the files go, made if need be.
        facts: of the whole.
        shapes, dtype, pieces: as `write_safetensors_in_pieces` takes them.

    Raises:
        RunError: if the disk is full; what was there before is untouched.
    """
    write_safetensors_in_pieces(folder / TENSORS_FILE, shapes, dtype, pieces)
    write_json(folder / CONFIG_FILE, facts.config("bias" in shapes, dtype))


def note_certificate(folder: Path | str, certificate: Mapping[str, Any]) -> None:
    """Say in a saved autoencoder's config.json what its certificate says; its tensors stay as they are.

    Args:
        folder: holds `sae.safetensors` and `config.json`.
        certificate: a summary, as JSON can hold it.

    Raises:
        DataError: as `read` does for config.json.
    """
    config = _read_config(Path(folder) / CONFIG_FILE)
    provenance = {**(config.get("provenance") or {}), "certificate": dict(certificate)}
    write_json(Path(folder) / CONFIG_FILE, {**config, "provenance": provenance})


def width_of(folder: Path) -> int:
    """The width of an autoencoder that `save` wrote, whose tensors are not read (raises as `read` does)."""
    return int(_read_config(folder / CONFIG_FILE)["width"])


def unit_rows_of(folder: Path) -> bool:
    """Whether an autoencoder that `save` wrote is of rows of norm 1; its tensors are not read (raises as `read` does)."""
    return bool(_read_config(folder / CONFIG_FILE).get("unit_rows", False))


def tensors_file(path: Path) -> Path | None:
    """Where the tensors of a folder of this format are; none: it is of another."""
    return path / TENSORS_FILE if (path / TENSORS_FILE).exists() and (path / CONFIG_FILE).exists() else None


def read(folder: Path) -> SparseAutoencoder:
    """Read an autoencoder that `save` wrote.

    Args:
        folder: holds `sae.safetensors` and `config.json`.

    Returns:
        The autoencoder, on the CPU, in the dtype it was saved in.

    Raises:
        DataError: if a file is missing, damaged or of a newer schema, or the two do not belong together.
    """
    held = read_part(folder, lambda width: slice(0, width))
    try:
        return SparseAutoencoder(
            held.tensors["encoder"],
            held.tensors.get("decoder"),
            held.tensors["threshold"],
            held.tensors["center"],
            activation=held.activation,
            k=held.k,
            bias=held.tensors.get("bias"),
            unit_rows=held.unit_rows,
            provenance=held.provenance,
        )
    except KyomeiError as error:
        raise consistent(folder, error) from error


def read_part(folder: Path, which: Callable[[int], slice]) -> Part:
    """Read some latents of an autoencoder that `save` wrote, and no others.

    Args:
        folder: holds `sae.safetensors` and `config.json`.
        which: of so many latents.

    Raises:
        DataError: as `read`.
    """
    config = _read_config(folder / CONFIG_FILE)
    path = folder / TENSORS_FILE
    if not path.exists():
        raise DataError(f"{TENSORS_FILE} beside {CONFIG_FILE}", f"none in {folder}", "copy the whole folder")
    width = config["width"]
    own = range(width)[which(width)]

    def rows(name: str, length: int) -> slice | None:
        # What is of another length than it should be is found out below.
        return which(width) if name != "center" and length == width else None

    tensors = read_safetensors(path) if len(own) == width else read_rows_of_safetensors(path, rows)
    expected = {"encoder", "threshold", "center"} | (set() if config["tied"] else {"decoder"})
    if set(tensors) - {"bias", "offset"} != expected:
        raise DataError(f"the tensors {sorted(expected)} in {path}", f"{sorted(tensors)}", "copy the whole folder anew")
    require_sound(tensors, path)
    shape = [len(own), config["dim"]]
    if list(tensors["encoder"].shape) != shape:
        whole = [width, config["dim"]]
        found = f"an encoder of shape {list(tensors['encoder'].shape)}"
        raise DataError(f"shape {whole} as in {folder / CONFIG_FILE}", found, "copy the whole folder anew")
    if (offset := tensors.pop("offset", None)) is not None:
        # In schema 1 the threshold was of the score before what was added to it.
        if offset.shape == tensors["threshold"].shape:
            tensors["threshold"] = tensors["threshold"] + offset
        tensors.setdefault("bias", offset)
    known = {key: config[key] for key in ("width", "dim", "tied", "activation", "k")}
    return Part(**known, unit_rows=config.get("unit_rows", False), provenance=config.get("provenance") or {}, tensors=tensors)


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config.get("provenance", {}), dict):
        raise DataError(f"a mapping as provenance in {path}", f"{config['provenance']!r}", "restore the file from a copy")
    if config.get("format") != NAME:
        raise DataError(f"a Kyomei autoencoder at {path.parent}", "another format", "see docs/formats.md for what is read")
    version = config.get("schema_version")
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        found = f"version {version}"
        raise DataError(f"schema version {SCHEMA_VERSION} or less in {path}", found, "read it with a newer Kyomei")
    missing = {"width", "dim", "tied", "activation", "k"} - set(config)
    if missing:
        raise DataError(f"{', '.join(sorted(missing))} in {path}", "nothing", "restore the file from a copy, or train again")
    if not isinstance(config.get("unit_rows", False), bool):
        raise DataError(f"unit_rows of type bool in {path}", repr(config["unit_rows"])[:80], "restore the file from a copy")
    for key, kinds in {"width": (int,), "dim": (int,), "tied": (bool,), "k": (int, NoneType), "activation": (str,)}.items():
        if type(config[key]) not in kinds:
            names = " or ".join(kind.__name__ for kind in kinds)
            raise DataError(f"{key} of type {names} in {path}", repr(config[key])[:80], "restore the file from a copy")
    return config
