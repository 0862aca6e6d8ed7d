"""Gemma Scope: `params.npz` (Gemma 2) or `params.safetensors` (Gemma 3, Gemma Scope 2); JumpReLU, read only."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from kyomei.dictionary.formats.files import read_json, read_npz, read_safetensors, tensors_of
from kyomei.dictionary.formats.parts import Conversion, Parts, known, module_place, refuse_transcoder
from kyomei.errors import DataError

NAME = "gemma_scope"
READERS = {".npz": read_npz, ".safetensors": read_safetensors}
TENSORS_FILES = tuple(f"params{suffix}" for suffix in READERS)
NAMES = ("w_enc", "b_enc", "w_dec", "b_dec", "threshold")
HOOKS = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
_RELEASE = re.compile(r"gemma-scope-(?P<model>\d+b(?:-(?:pt|it))?)-(?P<site>res|mlp|att)")
_LAYER = re.compile(r"layer_(\d+)")


def tensors_file(path: Path) -> Path | None:
    """Where the tensors of a folder of this format are, or the file itself; none: it is of another."""
    if path.suffix in READERS and path.is_file():
        return path if path.suffix == ".npz" or path.name in TENSORS_FILES else None
    return next((path / name for name in TENSORS_FILES if (path / name).exists()), None)


def read(path: Path) -> Conversion:
    """Read the five tensors of a release; model and hook are taken from its path, or from config.json beside it.

    Args:
        path: of the file, or of its folder.

    Raises:
        DataError: it is damaged, or a transcoder or crosscoder.

    Source: arXiv:2408.05147, and the layout of huggingface.co/google/gemma-scope-2b-pt-res.
    """
    file = tensors_file(path) or path
    held = {name.lower(): tensor for name, tensor in READERS[file.suffix](file).items()}
    if "affine_skip_connection" in held or any("transcoder" in part for part in file.parts[-6:]):
        refuse_transcoder(file)
    encoder, bias, decoder, center, threshold = tensors_of(held, NAMES, file)
    if encoder.ndim == 2 and decoder.ndim == 2 and encoder.shape[0] != decoder.shape[-1]:
        refuse_transcoder(file)
    parts = Parts(encoder.mT, bias, decoder, center, centred=False)
    if "embedding" in file.parts[-4:-1]:
        # As SAELens reads them: the decoder's bias is left as it is.
        root = len(center) ** 0.5
        words = ("the √dim that the model multiplies embeddings by, into encoder and decoder",)
        parts = replace(parts, encoder=parts.encoder / root, decoder=decoder * root, folded=words)
    sae, folded = parts.finished(file, "jumprelu", threshold, provenance=_provenance(file))
    return Conversion(sae, NAME, "jumprelu", folded)


def _provenance(file: Path) -> dict[str, Any]:
    """What path and config.json say."""
    config = read_json(file.parent / "config.json") if (file.parent / "config.json").exists() else {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise DataError(f"JumpReLU in {file}", repr(config["architecture"])[:80], "keep it in its own library")
    # Not resolved: the hub's cache links to files that are named by their digests.
    words = file.absolute().as_posix()
    release, layer = _RELEASE.search(words), _LAYER.search(words)
    facts = {"format": NAME, "mechanism": "jumprelu", "model": config.get("model_name"), "metadata": config}
    if isinstance(point := config.get("hf_hook_point_in"), str):
        facts |= module_place(point)
    if release is None:
        return known(**facts)
    hook = f"blocks.{layer[1]}.{HOOKS[release['site']]}" if layer else "hook_embed" if "embedding" in words else None
    model = f"google/gemma-2-{release['model'].removesuffix('-pt')}"
    reshape = "hook_z" if release["site"] == "att" else None
    return known(**{**facts, "model": model, "hook_name": hook, "reshape": reshape, "context": 1024, "prepend_bos": True})
