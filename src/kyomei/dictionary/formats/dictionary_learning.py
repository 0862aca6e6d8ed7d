"""dictionary_learning: a folder with `ae.pt`, a state_dict, and `config.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kyomei.dictionary.formats.files import read_json, read_torch, tensors_of, write_json, write_torch
from kyomei.dictionary.formats.parts import (
    Conversion,
    Parts,
    gated,
    known,
    relu_bias,
    require_expressible,
    whole_number,
)
from kyomei.dictionary.sae import Activation, SparseAutoencoder
from kyomei.errors import DataError

NAME = "dictionary_learning"
TENSORS_FILE, CONFIG_FILE = "ae.pt", "config.json"
NORMS = "the norms of the decoder, which the library's own reader takes out as well, into the encoder"


class _Read(NamedTuple):
    """An autoencoder as its class has it: thresholds are of jumprelu, k is of topk."""

    parts: Parts
    activation: Activation
    threshold: Tensor | None = None
    k: int | None = None


def tensors_file(path: Path) -> Path | None:
    """Where the tensors of a folder of this format are; none: it is of another."""
    return path / TENSORS_FILE if (path / TENSORS_FILE).exists() and (path / CONFIG_FILE).exists() else None


def read(folder: Path) -> Conversion:
    """Read what a trainer saved; nothing that is pickled is run.

    Args:
        folder: holds the state_dict and config.json.

    Raises:
        DataError: it is damaged, or of a class that a sparse autoencoder of ours cannot be.
    """
    config, held = read_json(folder / CONFIG_FILE), read_torch(folder / TENSORS_FILE)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        raise DataError(f"'trainer' in {folder / CONFIG_FILE}", "none", "copy the whole folder anew")
    name = str(trainer.get("dict_class"))
    if name not in CLASSES:
        do = "keep it in its own library; transcoders and crosscoders are no autoencoders of one site"
        raise DataError(f"a class among {', '.join(CLASSES)} in {folder}", f"'{name}'", do)
    found = CLASSES[name](held, folder / TENSORS_FILE)
    k = None if found.activation != "topk" else min(_k(held, trainer, folder), len(found.parts.encoder))
    provenance = _provenance(config, trainer)
    sae, folded = found.parts.finished(folder, found.activation, found.threshold, k=k, provenance=provenance)
    return Conversion(sae, NAME, name, folded)


def write(sae: SparseAutoencoder, folder: Path) -> Conversion:
    """Write a folder that dictionary_learning loads with `utils.load_dictionary`.

    Args:
        sae: the autoencoder: relu becomes AutoEncoder, or AutoEncoderNew where decoders are not of unit norm; jumprelu becomes
            JumpReluAutoEncoder, topk AutoEncoderTopK.
        folder: where it goes.

    Raises:
        DataError: it does what no class of the library does.
    """
    require_expressible(sae, "dictionary_learning")
    parts = Parts.of(sae)
    if sae.activation == "topk":
        name, buffers = "AutoEncoderTopK", {"k": torch.tensor(sae.k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
        tensors = {**buffers, **_linear(parts), "b_dec": parts.decoder_bias}
    elif sae.activation == "jumprelu":
        name, parts = "JumpReluAutoEncoder", parts.about_zero()
        biases = {"b_enc": parts.encoder_bias, "b_dec": parts.decoder_bias}
        tensors = {"W_enc": parts.encoder.mT, "W_dec": parts.decoder, **biases, "threshold": sae.threshold}
    elif _is_unit(_norms(parts)):
        name, parts = "AutoEncoder", replace(parts, encoder_bias=relu_bias(sae))
        tensors = {**_linear(parts), "bias": parts.decoder_bias}
    else:
        # The library's reader takes the norms out of an AutoEncoder, and so changes its code.
        name, parts = "AutoEncoderNew", replace(parts, encoder_bias=relu_bias(sae)).about_zero()
        tensors = {**_linear(parts), "decoder.bias": parts.decoder_bias}
    write_torch(folder / TENSORS_FILE, tensors)
    write_json(folder / CONFIG_FILE, _config(sae, name))
    return Conversion(sae, NAME, name, parts.folded)


def _linear(parts: Parts) -> dict[str, Tensor]:
    """Encoder and decoder as torch.nn.Linear holds them."""
    return {"encoder.weight": parts.encoder, "encoder.bias": parts.encoder_bias, "decoder.weight": parts.decoder.mT}


def _norms(parts: Parts) -> Tensor:
    norms: Tensor = parts.decoder.norm(dim=1)
    return norms


def _is_unit(norms: Tensor) -> bool:
    """As the library asks it."""
    return torch.allclose(norms, torch.ones_like(norms))


def _standard(held: Mapping[str, Any], path: Path) -> _Read:
    encoder, bias, decoder, center = tensors_of(held, ("encoder.weight", "encoder.bias", "decoder.weight", "bias"), path)
    parts = Parts(encoder, bias, decoder.mT, center)
    norms = _norms(parts)
    return _Read(parts if _is_unit(norms) else parts.with_latents_times(norms.clamp_min(1e-8), NORMS), "relu")


def _uncentred(held: Mapping[str, Any], path: Path) -> _Read:
    names = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
    encoder, bias, decoder, center = tensors_of(held, names, path)
    return _Read(Parts(encoder, bias, decoder.mT, center, centred=False), "relu")


def _gated(held: Mapping[str, Any], path: Path) -> _Read:
    encoder, decoder, center = tensors_of(held, ("encoder.weight", "decoder.weight", "decoder_bias"), path)
    parts = Parts(encoder, encoder.new_zeros(len(encoder)), decoder.mT, center)
    parts, threshold = gated(parts, *tensors_of(held, ("r_mag", "gate_bias", "mag_bias"), path))
    return _Read(parts, "jumprelu", threshold)


def _jumprelu(held: Mapping[str, Any], path: Path) -> _Read:
    encoder, bias, decoder, center, threshold = tensors_of(held, ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"), path)
    return _Read(Parts(encoder.mT, bias, decoder, center, centred=False), "jumprelu", threshold)


def _topk(held: Mapping[str, Any], path: Path) -> _Read:
    encoder, bias, decoder, center = tensors_of(held, ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec"), path)
    return _Read(Parts(encoder, bias, decoder.mT, center), "topk")


def _batchtopk(held: Mapping[str, Any], path: Path) -> _Read:
    """After training, one threshold for all; below zero, where it was never set, every positive latent is active."""
    found, (threshold,) = _topk(held, path), tensors_of(held, ("threshold",), path)
    return _Read(found.parts, "jumprelu", threshold.expand(len(found.parts.encoder)))


def _matryoshka(held: Mapping[str, Any], path: Path) -> _Read:
    encoder, bias, decoder, center, threshold = tensors_of(held, ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"), path)
    return _Read(Parts(encoder.mT, bias, decoder, center), "jumprelu", threshold.expand(len(bias)))


CLASSES: dict[str, Callable[[Mapping[str, Any], Path], _Read]] = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _uncentred,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jumprelu,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batchtopk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
}
"""What reads each class of the library."""


def _k(held: Mapping[str, Any], trainer: Mapping[str, Any], folder: Path) -> int:
    value = held.get("k", trainer.get("k"))
    return whole_number(value.item() if isinstance(value, Tensor) else value, "k", folder / CONFIG_FILE)


def _config(sae: SparseAutoencoder, name: str) -> dict[str, Any]:
    """Settings as a trainer of the library writes them."""
    own = sae.provenance
    there = own.get("metadata", {}) if own.get("format") == NAME else {}
    trainer = {
        **there.get("trainer", {}),
        "dict_class": name,
        "activation_dim": sae.dim,
        "dict_size": sae.width,
        **({"k": sae.k} if sae.k else {}),
    }
    said = known(lm_name=own.get("model"), submodule_name=own.get("site", own.get("hook_name")))
    buffer = known(ctx_len=own.get("context"), d_submodule=sae.dim)
    return {"buffer": buffer, **there, "trainer": {**said, **trainer}, "kyomei": own}


def _provenance(config: Mapping[str, Any], trainer: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(ours := config.get("kyomei"), dict):
        return ours
    buffer = config.get("buffer") if isinstance(config.get("buffer"), dict) else {}
    layer, name = trainer.get("layer"), trainer.get("submodule_name")
    if isinstance(layer, int) and str(name or "resid_post").startswith("resid_post"):
        name = f"blocks.{layer}.hook_resid_post"  # what a trainer that is told of a layer alone means
    return known(
        format=NAME,
        mechanism=trainer.get("dict_class"),
        model=trainer.get("lm_name"),
        hook_name=name,
        context=(buffer or {}).get("ctx_len"),
        metadata=dict(config),
    )
