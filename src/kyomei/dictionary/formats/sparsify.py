"""sparsify (eai-sparsify): a folder named after its hookpoint, with `sae.safetensors` and `cfg.json`; TopK alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kyomei.dictionary.formats.files import read_json, read_safetensors, tensors_of, write_json, write_safetensors
from kyomei.dictionary.formats.parts import (
    Conversion,
    Parts,
    known,
    refuse_transcoder,
    relu_bias,
    require_expressible,
    whole_number,
)
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError

NAME = "sparsify"
TENSORS_FILE, CONFIG_FILE, RUN_FILE = "sae.safetensors", "cfg.json", "config.json"
NAMES = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")


def tensors_file(path: Path) -> Path | None:
    """Where the tensors of a folder of this format are; none: it is of another."""
    return path / TENSORS_FILE if (path / TENSORS_FILE).exists() and (path / CONFIG_FILE).exists() else None


def read(folder: Path) -> Conversion:
    """Read what `SparseCoder.save_to_disk` wrote, and what the training's config.json in the folder above says of it.

    Args:
        folder: of one hookpoint.

    Raises:
        DataError: it is damaged, or of a kind that a sparse autoencoder of ours cannot be.
    """
    config, path = read_json(folder / CONFIG_FILE), folder / TENSORS_FILE
    held = read_safetensors(path)
    if config.get("transcode") or config.get("skip_connection") or "W_skip" in held:
        refuse_transcoder(folder)
    kind = config.get("activation", "topk")
    if kind != "topk" or config.get("signed"):
        found = f"'{kind}', the highest of each group of latents" if kind == "groupmax" else f"'{kind}', signed or unknown"
        raise DataError(f"TopK latents in {folder}", found, "keep it in sparsify, or take one with activation topk")
    encoder, bias, decoder, center = tensors_of(held, NAMES, path)
    parts = Parts(encoder, bias, decoder, center)
    k = min(whole_number(config.get("k"), "k", folder / CONFIG_FILE), len(parts.encoder))
    sae, folded = parts.finished(folder, "topk", k=k, provenance=_provenance(config, folder))
    return Conversion(sae, NAME, "topk", folded)


def write(sae: SparseAutoencoder, folder: Path) -> Conversion:
    """Write a folder that sparsify loads with `SparseCoder.load_from_disk`.

    Args:
        sae: the autoencoder: topk, or relu, as the TopK that keeps all latents.
        folder: where it goes.

    Raises:
        DataError: it is of another kind.
    """
    if sae.activation == "jumprelu":
        do = "export it with --format saelens, which has thresholds, without loss"
        raise DataError("k active latents in every row, all that sparsify knows", "a threshold for each latent", do)
    require_expressible(sae, "sparsify")
    parts = Parts.of(sae)
    bias = relu_bias(sae) if sae.activation == "relu" else parts.encoder_bias
    tensors = dict(zip(NAMES, (parts.encoder, bias, parts.decoder, parts.decoder_bias), strict=True))
    config = {
        "activation": "topk",
        "expansion_factor": max(1, sae.width // sae.dim),
        "normalize_decoder": True,
        "num_latents": sae.width,
        "k": sae.k or sae.width,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.dim,
    }
    there = sae.provenance.get("metadata", {}) if sae.provenance.get("format") == NAME else {}
    write_safetensors(folder / TENSORS_FILE, tensors)
    write_json(folder / CONFIG_FILE, {**config, **there.get("cfg", {}), "k": config["k"], "kyomei": sae.provenance})
    kind = "topk" if sae.k else f"topk with k = {sae.width:,}, which is ReLU"
    return Conversion(sae, NAME, kind)


def _provenance(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    if isinstance(ours := config.get("kyomei"), dict):
        return ours
    run = read_json(folder.parent / RUN_FILE) if (folder.parent / RUN_FILE).exists() else {}
    return known(
        format=NAME,
        mechanism="topk",
        model=run.get("model"),
        hook_name=folder.resolve().name if run else None,
        context=run.get("ctx_len"),
        dataset=run.get("dataset"),
        metadata={"cfg": config, "run": run} if run else {"cfg": config},
    )
