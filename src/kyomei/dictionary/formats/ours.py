"""Kyomei's own format: `sae.safetensors` for the tensors, `config.json` for what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from kyomei.dictionary.formats.files import (
    consistent,
    read_json,
    read_safetensors,
    require_sound,
    write_json,
    write_safetensors,
)
from kyomei.dictionary.sae import SparseAutoencoder
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
    config = {
        "schema_version": 3 if sae.unit_rows else 1 if sae.bias is None else 2,
        "format": NAME,
        "width": sae.width,
        "dim": sae.dim,
        "tied": sae.tied,
        "activation": sae.activation,
        "k": sae.k,
        **({"unit_rows": True} if sae.unit_rows else {}),
        "dtype": str(sae.encoder.dtype).removeprefix("torch."),
        "provenance": sae.provenance,
    }
    write_safetensors(folder / TENSORS_FILE, tensors)
    write_json(folder / CONFIG_FILE, config)


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
    config = _read_config(folder / CONFIG_FILE)
    path = folder / TENSORS_FILE
    if not path.exists():
        raise DataError(f"{TENSORS_FILE} beside {CONFIG_FILE}", f"none in {folder}", "copy the whole folder")
    tensors = read_safetensors(path)
    expected = {"encoder", "threshold", "center"} | (set() if config["tied"] else {"decoder"})
    if set(tensors) - {"bias", "offset"} != expected:
        raise DataError(f"the tensors {sorted(expected)} in {path}", f"{sorted(tensors)}", "copy the whole folder anew")
    require_sound(tensors, path)
    shape = [config["width"], config["dim"]]
    if list(tensors["encoder"].shape) != shape:
        found = f"an encoder of shape {list(tensors['encoder'].shape)}"
        raise DataError(f"shape {shape} as in {folder / CONFIG_FILE}", found, "copy the whole folder anew")
    if (offset := tensors.get("offset")) is not None and offset.shape == tensors["threshold"].shape:
        # In schema 1 the threshold was of the score before what was added to it.
        tensors |= {"bias": offset, "threshold": tensors["threshold"] + offset}
    try:
        return SparseAutoencoder(
            tensors["encoder"],
            tensors.get("decoder"),
            tensors["threshold"],
            tensors["center"],
            activation=config["activation"],
            k=config["k"],
            bias=tensors.get("bias", offset),
            unit_rows=config.get("unit_rows", False),
            provenance=config.get("provenance"),
        )
    except KyomeiError as error:
        raise consistent(folder, error) from error


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
