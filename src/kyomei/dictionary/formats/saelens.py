"""SAELens: a folder with `sae_weights.safetensors` and `cfg.json`, of its versions 2 to 6."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kyomei.dictionary.formats.files import AGAIN, read_json, read_safetensors, tensors_of, write_json, write_safetensors
from kyomei.dictionary.formats.parts import (
    Conversion,
    Parts,
    gated,
    known,
    module_place,
    refuse_transcoder,
    relu_bias,
    require_expressible,
    whole_number,
)
from kyomei.dictionary.sae import Activation, SparseAutoencoder
from kyomei.errors import DataError

NAME = "saelens"
WRITES_VERSION = "6.54.12"
"""Whose reader the files were checked with."""
TENSORS_FILE, CONFIG_FILE = "sae_weights.safetensors", "cfg.json"
SCALER_FILE, WHITENING_FILE = "activation_scaler.json", "activation_whitening.safetensors"
"""What a training leaves beside its checkpoints of how inputs were normalised."""
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16")}
LEGACY_METADATA = (
    "model_name", "hook_name", "model_class_name", "hook_head_index", "model_from_pretrained_kwargs", "prepend_bos",
    "exclude_special_tokens", "neuronpedia_id", "context_size", "seqpos_slice", "dataset_path", "sae_lens_version",
    "sae_lens_training_version",
)  # fmt: skip
"""Settings that stood beside the others before version 6."""
HF_CLASS = "AutoModelForCausalLM"
"""The class of models whose hooks are named by module paths."""
ACTIVATIONS: dict[str, Activation] = {
    "standard": "relu",
    "topk": "topk",
    **dict.fromkeys(("jumprelu", "gated", "batchtopk", "matryoshka_batchtopk"), "jumprelu"),
}
"""What each architecture computes once it is trained; BatchTopK ones have a threshold then."""
REFUSED = {
    "abstopk": "keeps the latents of largest size, negative ones too, which no code of ours has",
    "temporal": "reads several tokens for one code",
    "matching_pursuit": "subtracts latents one after another, which no linear encoder does",
}
PER_ROW = ("layer_norm", "constant_norm_rescale")


def tensors_file(path: Path) -> Path | None:
    """Where the tensors of a folder of this format are; none: it is of another."""
    return path / TENSORS_FILE if (path / TENSORS_FILE).exists() else None


def read(folder: Path) -> Conversion:
    """Read what SAELens saved: the inference model of a release or of `save_model`, or a training checkpoint.

    Args:
        folder: holds the tensors and cfg.json; a checkpoint's activation_scaler.json is used if it is beside them.

    Raises:
        DataError: it is damaged, or of a kind that a sparse autoencoder of ours cannot be.
    """
    config = _modern(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)
    path = folder / TENSORS_FILE
    architecture = _architecture(config, folder)
    dtype = DTYPES.get(str(config.get("dtype", "float32")).removeprefix("torch."))
    if dtype is None:
        raise DataError(f"a dtype among {', '.join(DTYPES)} in {folder / CONFIG_FILE}", repr(config["dtype"]), "correct it")
    tensors = {name: tensor.to(dtype) for name, tensor in read_safetensors(path).items()}
    encoder, decoder, center = tensors_of(tensors, ("W_enc", "W_dec", "b_dec"), path)
    bias = tensors.get("b_enc", encoder.new_zeros(encoder.shape[-1]))
    parts = Parts(encoder.mT, bias, decoder, center, bool(config.get("apply_b_dec_to_input", True)))
    normalised = _normalised_by(config, folder)
    if isinstance(normalised, float):
        parts = parts.with_inputs_times(normalised)
    parts = _of_scaled_latents(parts, tensors, config, folder)
    threshold = None
    if architecture == "gated":
        parts, threshold = gated(parts, *tensors_of(tensors, ("r_mag", "b_gate", "b_mag"), path))
    elif architecture not in ("standard", "topk"):
        threshold = _threshold(tensors, parts, path)
        if isinstance(normalised, float) and config.get("rescale_acts_by_decoder_norm"):
            threshold = threshold / normalised  # it is in units of the decoder's norms, and these were divided, too
    if isinstance(normalised, tuple):
        parts = parts.with_inputs_whitened(*normalised)
    activation, k = ACTIVATIONS.get(architecture, "jumprelu"), None
    if activation == "topk":
        k = min(whole_number(config.get("k"), "k", folder / CONFIG_FILE), len(bias))
    provenance = _provenance(config, architecture)
    sae, folded = parts.finished(folder, activation, threshold, k=k, provenance=provenance)
    return Conversion(sae, NAME, architecture, folded)


def write(sae: SparseAutoencoder, folder: Path) -> Conversion:
    """Write a folder that SAELens loads with `SAE.load_from_disk`.

    Args:
        sae: the autoencoder: relu becomes "standard", the others keep their names.
        folder: where it goes.

    Raises:
        DataError: it does what no SAE of SAELens does.
    """
    require_expressible(sae, "SAELens")
    parts, kind = Parts.of(sae), "standard" if sae.activation == "relu" else sae.activation
    bias = relu_bias(sae) if kind == "standard" else parts.encoder_bias
    tensors = {"W_enc": parts.encoder.mT, "b_enc": bias, "W_dec": parts.decoder, "b_dec": parts.decoder_bias}
    if kind == "jumprelu":
        tensors["threshold"] = sae.threshold
    config = {
        "architecture": kind,
        "d_in": sae.dim,
        "d_sae": sae.width,
        **({"k": sae.k, "rescale_acts_by_decoder_norm": False} if kind == "topk" else {}),
        "dtype": str(sae.encoder.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": sae.provenance.get("reshape", "none"),
        "metadata": _metadata(sae.provenance),
    }
    write_safetensors(folder / TENSORS_FILE, tensors)
    write_json(folder / CONFIG_FILE, config)
    return Conversion(sae, NAME, kind)


def _modern(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Settings as version 6 writes them, whatever version wrote them."""
    for key in ("metadata", "activation_fn_kwargs"):
        if not isinstance(config.get(key) or {}, dict):
            raise DataError(f"a mapping as {key} in {path}", repr(config[key])[:80], AGAIN)
    metadata = config.get("metadata") or {}
    version = str(config.get("sae_lens_version") or metadata.get("sae_lens_version") or "0")
    if version.split(".")[0].isdigit() and int(version.split(".")[0]) >= 6:
        return config
    renamed = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
    found = {renamed.get(key, key): value for key, value in config.items()}
    kind = found.get("activation_fn") or "relu"
    if kind == "topk" and (found.get("activation_fn_kwargs") or {}).get("k") is not None:
        found |= {"architecture": "topk", "k": found["activation_fn_kwargs"]["k"]}
    elif kind not in ("relu", "topk"):
        found["architecture"] = f"standard with {kind}"
    found.setdefault("architecture", "standard")
    # It was a switch before it was a name.
    normalised = found.get("normalize_activations") or "none"
    found["normalize_activations"] = "expected_average_only_in" if normalised is True else normalised
    found.setdefault("reshape_activations", "hook_z" if "hook_z" in str(found.get("hook_name")) else "none")
    own = {key: found[key] for key in LEGACY_METADATA if key in found}
    return {**found, "metadata": {**own, **metadata}}


def _architecture(config: dict[str, Any], folder: Path) -> str:
    """What kind of SAE it is, if it is one that can be read."""
    kind = str(config.get("architecture"))
    if "transcoder" in kind or config.get("d_out") not in (None, config.get("d_in")):
        refuse_transcoder(folder)
    if kind not in ACTIVATIONS:
        why = REFUSED.get(kind, "is not known here")
        do = "keep it in SAELens, or take a standard, topk, jumprelu, gated, batchtopk or matryoshka one of the same site"
        raise DataError(f"an SAE that is a linear encoder with thresholds in {folder}", f"'{kind}', which {why}", do)
    return kind


def _of_scaled_latents(parts: Parts, tensors: dict[str, Tensor], config: dict[str, Any], folder: Path) -> Parts:
    """Latents in the units in which the function is computed."""
    factor = tensors.get("scaling_factor", tensors.get("finetuning_scaling_factor"))
    if factor is not None and bool((factor != 1).any()):
        if not config.get("finetuning_scaling_factor"):
            found = "a scaling_factor that cfg.json does not speak of"
            raise DataError(f"tensors that {folder / CONFIG_FILE} explains", found, "set finetuning_scaling_factor there")
        parts = parts.with_decoders_times(factor, "the factors of the finetuning, into the decoder")
    if config.get("rescale_acts_by_decoder_norm"):
        norms = parts.decoder.norm(dim=1).clamp_min(1e-8)
        parts = parts.with_latents_times(norms, "the norms of the decoder, into the encoder")
    return parts


def _normalised_by(config: dict[str, Any], folder: Path) -> float | tuple[Tensor, Tensor, Tensor] | None:
    """What inputs are multiplied by, or the mean, matrix and inverse that they are whitened by; none: they are as they are."""
    kind = config.get("normalize_activations") or "none"
    if kind == "none":
        return None
    if kind in PER_ROW:
        found = f"'{kind}': every row is divided by a norm of its own, which no fixed weights can do"
        do = 'normalise rows yourself, then read a copy whose cfg.json says "normalize_activations": "none"'
        raise DataError(f"inputs normalised by fixed numbers in {folder}", found, do)
    if kind == "covariance_whitening" and (folder / WHITENING_FILE).exists():
        names = ("mean", "matrix", "inverse_matrix")
        mean, matrix, inverse = tensors_of(read_safetensors(folder / WHITENING_FILE), names, folder)
        return mean, matrix, inverse
    if kind == "expected_average_only_in" and (folder / SCALER_FILE).exists():
        factor = read_json(folder / SCALER_FILE).get("scaling_factor")
        if isinstance(factor, int | float) and factor > 0:
            return float(factor)
    do = f"put the numbers beside it ({SCALER_FILE} or {WHITENING_FILE}, as SAELens saves them), or fold them in SAELens first"
    raise DataError(f"what inputs were normalised by in {folder}", f"'{kind}' without its numbers", do)


def _threshold(tensors: dict[str, Tensor], parts: Parts, path: Path) -> Tensor:
    """The threshold of every latent; that of a training checkpoint is one number, or a logarithm."""
    if "log_threshold" in tensors:
        return tensors["log_threshold"].exp()
    if "topk_threshold" in tensors:
        return tensors["topk_threshold"].expand(len(parts.encoder))
    return tensors_of(tensors, ("threshold",), path)[0]


def _provenance(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    metadata = config.get("metadata") or {}
    if isinstance(ours := metadata.get("kyomei"), dict):
        return ours
    reshape = config.get("reshape_activations")
    return known(
        format=NAME,
        mechanism=metadata.get("training_architecture") or architecture,
        model=metadata.get("model_name"),
        hook_name=metadata.get("hook_name"),
        **_place(metadata),
        context=metadata.get("context_size"),
        dataset=metadata.get("dataset_path"),
        prepend_bos=metadata.get("prepend_bos"),
        reshape=None if reshape == "none" else reshape,
        metadata=metadata,
    )


def _place(metadata: dict[str, Any]) -> dict[str, str]:
    """The module whose output or input it reads, where that is said; names of hooks are TransformerLens' own."""
    path = metadata.get("hf_hook_name")
    if path is None and metadata.get("model_class_name") == HF_CLASS:
        path = metadata.get("hook_name")
    if not isinstance(path, str):
        return {}
    return module_place(path)


def _metadata(provenance: dict[str, Any]) -> dict[str, Any]:
    """What SAELens is told of an autoencoder's origin, with all that we know in one entry of it."""
    there = provenance.get("metadata", {}) if provenance.get("format") == NAME else {}
    version = str(there.get("sae_lens_version", ""))
    own = known(
        model_name=provenance.get("model"),
        hook_name=provenance.get("hook_name", provenance.get("site")),
        context_size=provenance.get("context"),
        dataset_path=provenance.get("dataset"),
        prepend_bos=provenance.get("prepend_bos"),
        model_class_name=HF_CLASS if "hook_name" not in provenance and "site" in provenance else None,
    )
    # The file is of this layout, whatever it was read from.
    written = {"sae_lens_version": version if version.split(".")[0] == "6" else WRITES_VERSION}
    return {**own, **there, **written, "kyomei": provenance}
