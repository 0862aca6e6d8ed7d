"""How an autoencoder lies on disk: `sae.safetensors` for the tensors, `config.json` for what they mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from kyomei.atomic import write_atomic
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError, KyomeiError

SCHEMA_VERSION = 1
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
    if sae.offset is not None:
        tensors["offset"] = sae.offset
    config = {
        "schema_version": SCHEMA_VERSION,
        "format": "kyomei",
        "width": sae.width,
        "dim": sae.dim,
        "tied": sae.tied,
        "activation": sae.activation,
        "k": sae.k,
        "dtype": str(sae.encoder.dtype).removeprefix("torch."),
        "provenance": sae.provenance,
    }
    payload = tensors_to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_atomic(folder / TENSORS_FILE, payload)
    _write_config(folder, config)


def note_certificate(folder: Path | str, certificate: Mapping[str, Any]) -> None:
    """Say in a saved autoencoder's config.json what its certificate says; its tensors stay as they are.

    Args:
        folder: holds `sae.safetensors` and `config.json`.
        certificate: a summary, as JSON can hold it.

    Raises:
        DataError: as `load` does for config.json.
    """
    config = _read_config(Path(folder) / CONFIG_FILE)
    provenance = {**(config.get("provenance") or {}), "certificate": dict(certificate)}
    _write_config(Path(folder), {**config, "provenance": provenance})


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    write_atomic(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def load(folder: Path | str) -> SparseAutoencoder:
    """Read an autoencoder that `SparseAutoencoder.save` wrote.

    Args:
        folder: holds `sae.safetensors` and `config.json`.

    Returns:
        The autoencoder, on the CPU, in the dtype it was saved in.

    Raises:
        DataError: if a file is missing, damaged or of a newer schema, or the two do not belong together.
    """
    if not isinstance(folder, str | PathLike):
        raise DataError("a folder of a saved autoencoder", f"a value of type {type(folder).__name__}", "pass its path")
    folder = Path(folder)
    config = _read_config(folder / CONFIG_FILE)
    path = folder / TENSORS_FILE
    try:
        tensors = tensors_from_bytes(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{TENSORS_FILE} beside {CONFIG_FILE}", f"none in {folder}", "copy the whole folder") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"safetensors in {path}", f"damage: {error}", "restore the file from a copy, or train again") from error
    expected = {"encoder", "threshold", "center"} | (set() if config["tied"] else {"decoder"})
    if set(tensors) - {"offset"} != expected:
        raise DataError(f"the tensors {sorted(expected)} in {path}", f"{sorted(tensors)}", "copy the whole folder anew")
    _require_sound(tensors, path)
    shape = [config["width"], config["dim"]]
    if list(tensors["encoder"].shape) != shape:
        found = f"an encoder of shape {list(tensors['encoder'].shape)}"
        raise DataError(f"shape {shape} as in {folder / CONFIG_FILE}", found, "copy the whole folder anew")
    try:
        return SparseAutoencoder(
            tensors["encoder"],
            tensors.get("decoder"),
            tensors["threshold"],
            tensors["center"],
            activation=config["activation"],
            k=config["k"],
            offset=tensors.get("offset"),
            provenance=config.get("provenance"),
        )
    except KyomeiError as error:
        raise DataError(f"a consistent autoencoder in {folder}: {error.expected}", error.found, "copy it anew") from error


def _require_sound(tensors: dict[str, Tensor], path: Path) -> None:
    """Raise DataError unless tensors are finite and of one floating dtype; the threshold of a silent latent may be infinite."""
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not all(dtype.is_floating_point for dtype in dtypes):
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise DataError(f"tensors of one floating dtype in {path}", found, "copy the whole folder anew")
    for name, tensor in tensors.items():
        values = tensor.float()
        wrong = int((values.isnan() if name == "threshold" else ~values.isfinite()).sum())
        if wrong:
            found = f"{wrong:,} value(s) that are NaN or infinite"
            raise DataError(f"a finite {name} in {path}", found, "restore the file from a copy, or train again")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError("a saved autoencoder", f"no {path}", "check the folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"JSON in {path}", f"{error}", "restore the file from a copy, or train again") from error
    if isinstance(config, dict) and not isinstance(config.get("provenance", {}), dict):
        raise DataError(f"a mapping as provenance in {path}", f"{config['provenance']!r}", "restore the file from a copy")
    if not isinstance(config, dict) or config.get("format") != "kyomei":
        raise DataError(f"a Kyomei autoencoder at {path.parent}", "another format", "convert it first")
    version = config.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(f"schema version {SCHEMA_VERSION} in {path}", f"version {version}", "read it with a newer Kyomei")
    missing = {"width", "dim", "tied", "activation", "k"} - set(config)
    if missing:
        raise DataError(f"{', '.join(sorted(missing))} in {path}", "nothing", "restore the file from a copy, or train again")
    for key, kinds in {"width": (int,), "dim": (int,), "tied": (bool,), "k": (int, NoneType), "activation": (str,)}.items():
        if type(config[key]) not in kinds:
            names = " or ".join(kind.__name__ for kind in kinds)
            raise DataError(f"{key} of type {names} in {path}", repr(config[key])[:80], "restore the file from a copy")
    return config
