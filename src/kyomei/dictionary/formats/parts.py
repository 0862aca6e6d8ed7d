"""What autoencoders of all libraries are made of, and what can be folded into it without changing the function."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from kyomei.dictionary.formats.files import consistent, require_sound
from kyomei.dictionary.sae import Activation, SparseAutoencoder
from kyomei.errors import DataError, KyomeiError

BELOW_ZERO = "thresholds below zero, where the ReLU decides, to zero"


@dataclass(frozen=True)
class Conversion:
    """An autoencoder on its way from or to another format.

    Attributes:
        sae: the autoencoder.
        format: name of the other format.
        mechanism: what it is called there.
        folded: what was folded into the tensors, in words; none: they are the same, bit by bit.
    """

    sae: SparseAutoencoder
    format: str
    mechanism: str
    folded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parts:
    """A linear encoder and decoder: pre = (x − b) Wᵀ + encoder_bias with b = decoder_bias or 0, x̂ = z D + decoder_bias.

    Folds are computed in float64 and kept in the dtype of the parts.

    Attributes:
        encoder: W [width, dim].
        encoder_bias: [width].
        decoder: D [width, dim].
        decoder_bias: [dim].
        centred: whether the decoder's bias is subtracted from the input.
        folded: what was folded so far, in words.
    """

    encoder: Float[Tensor, "width dim"]
    encoder_bias: Float[Tensor, " width"]
    decoder: Float[Tensor, "width dim"]
    decoder_bias: Float[Tensor, " dim"]
    centred: bool = True
    folded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(self.encoder.shape)
        if len(shape) != 2:
            found = f"an encoder of shape {list(shape)}"
            do = "split a crosscoder by layer in its own library; it reads several sites at once, a dictionary one"
            raise DataError("the encoder of one site [width, dim]", found, do)
        width, dim = shape
        wanted = {"encoder_bias": (width,), "decoder": (width, dim), "decoder_bias": (dim,)}
        for name, size in wanted.items():
            if tuple(getattr(self, name).shape) != size:
                found = f"shape {list(getattr(self, name).shape)}"
                raise DataError(f"a {name} of shape {list(size)}", found, "copy the whole folder anew")

    @classmethod
    def of(cls, sae: SparseAutoencoder) -> Parts:
        """The parts of an autoencoder of ours.

        Raises:
            DataError: it is of unit rows.
        """
        if sae.unit_rows:
            found = "one of unit rows: every row is divided by a norm of its own, which no fixed weights can do"
            do = "keep it in Kyomei's own format, which `kyomei.load` reads, or train with dictionary.unit_rows = false"
            raise DataError("a dictionary of rows as they are, for another library", found, do)
        bias = torch.zeros_like(sae.threshold) if sae.bias is None else sae.bias
        # Files hold a tied matrix twice.
        return cls(sae.encoder, bias, sae.decoder.clone() if sae.tied else sae.decoder, sae.center)

    def about_its_centre(self) -> Parts:
        """The same function with the decoder's bias subtracted from the input: b_enc + W b_dec."""
        if self.centred:
            return self
        if not bool(self.decoder_bias.any()):
            return replace(self, centred=True)
        shift = self._scores_of_bias()
        words = "the decoder's bias, which is not subtracted from the input there, into the encoder's bias"
        return self._with(words, encoder_bias=self.encoder_bias.double() + shift, centred=True)

    def about_zero(self) -> Parts:
        """The same function with nothing subtracted from the input: b_enc − W b_dec."""
        if not self.centred:
            return self
        if not bool(self.decoder_bias.any()):
            return replace(self, centred=False)
        shift = self._scores_of_bias()
        words = "the centre, which is not subtracted from the input there, into the encoder's bias"
        return self._with(words, encoder_bias=self.encoder_bias.double() - shift, centred=False)

    def with_latents_times(self, factor: Float[Tensor, " width"], words: str) -> Parts:
        """Every latent's value times a positive factor, its decoder divided by it."""
        f = factor.double()
        encoder, bias = self.encoder.double() * f[:, None], self.encoder_bias.double() * f
        return self._with(words, encoder=encoder, encoder_bias=bias, decoder=self.decoder.double() / f[:, None])

    def with_decoders_times(self, factor: Float[Tensor, " width"], words: str) -> Parts:
        """The same code with every latent's decoder times a factor."""
        return self._with(words, decoder=self.decoder.double() * factor.double()[:, None])

    def with_inputs_times(self, factor: float) -> Parts:
        """For raw inputs, where the parts are for inputs that were multiplied by a factor first."""
        encoder, decoder = self.encoder.double() * factor, self.decoder.double() / factor
        words = f"the factor {factor:.6g} that inputs were multiplied by, into encoder, decoder and its bias"
        return self._with(words, encoder=encoder, decoder=decoder, decoder_bias=self.decoder_bias.double() / factor)

    def with_inputs_whitened(
        self, mean: Float[Tensor, " dim"], matrix: Float[Tensor, "dim dim"], inverse: Float[Tensor, "dim dim"]
    ) -> Parts:
        """For raw inputs, where the parts are for (x − mean) M, and reconstructions are mapped back."""
        mean, matrix, inverse = mean.double(), matrix.double(), inverse.double()
        encoder = self.encoder.double() @ matrix.T
        bias = self.encoder_bias.double() - (0 if self.centred else encoder @ mean)
        decoder, decoder_bias = self.decoder.double() @ inverse, self.decoder_bias.double() @ inverse + mean
        words = "the whitening of inputs, into encoder, decoder and biases"
        return self._with(words, encoder=encoder, encoder_bias=bias, decoder=decoder, decoder_bias=decoder_bias)

    def finished(
        self,
        path: Path,
        activation: Activation,
        threshold: Float[Tensor, " width"] | None = None,
        *,
        k: int | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> tuple[SparseAutoencoder, tuple[str, ...]]:
        """The autoencoder of ours with these parts, and what was folded into it.

        Args:
            path: what is named in errors.
            activation: "relu" of the pre-activations, "jumprelu" from a threshold, or "topk".
            threshold: of "jumprelu", on pre-activations; below zero the ReLU decides, which others take first.
            k: of "topk".
            provenance: where it comes from.

        Raises:
            DataError: a tensor is not finite, or they do not fit together.
        """
        own = self.about_its_centre()
        bias, folded = own.encoder_bias if bool(own.encoder_bias.any()) else None, own.folded
        limit = torch.zeros_like(own.encoder_bias) if threshold is None else threshold.to(own.encoder)
        if activation == "relu":
            limit, bias = -own.encoder_bias, None
        elif bool((limit < 0).any()):
            limit, folded = limit.clamp_min(0), (*folded, BELOW_ZERO)
        tensors = {"encoder": own.encoder, "decoder": own.decoder, "center": own.decoder_bias, "threshold": limit}
        require_sound(tensors if bias is None else {**tensors, "bias": bias}, path)
        whole: dict[str, Any] = {name: tensor.contiguous() for name, tensor in tensors.items()}
        try:
            sae = SparseAutoencoder(**whole, activation=activation, k=k, bias=bias, provenance=provenance)
        except KyomeiError as error:
            raise consistent(path, error) from error
        return sae, folded

    def _scores_of_bias(self) -> Float[Tensor, " width"]:
        """W b_dec in float64, in blocks, so that no second encoder exists."""
        return torch.cat([block.double() @ self.decoder_bias.double() for block in torch.split(self.encoder, 4096)])

    def _with(self, words: str, **parts: Any) -> Parts:
        dtype = self.encoder.dtype
        kept: dict[str, Any] = {name: part.to(dtype) if isinstance(part, Tensor) else part for name, part in parts.items()}
        return replace(self, **kept, folded=(*self.folded, words))


def gated(
    parts: Parts,
    log_scale: Float[Tensor, " width"],
    gate_bias: Float[Tensor, " width"],
    magnitude_bias: Float[Tensor, " width"],
) -> tuple[Parts, Float[Tensor, " width"]]:
    """A gated encoder as one with thresholds: active where (x·w + b_gate) > 0, with value relu(exp(r) x·w + b_mag).

    Args:
        parts: encoder of the gate, and the decoder.
        log_scale: r.
        gate_bias: b_gate.
        magnitude_bias: b_mag.

    Returns:
        The parts with the encoder of the magnitudes, and the thresholds on its pre-activations.

    Source: arXiv:2404.16014, eq. 7.
    """
    scale = log_scale.double().exp()
    threshold = magnitude_bias.double() - scale * gate_bias.double()
    words = "the gates, into thresholds of the magnitudes"
    encoder = (scale[:, None] * parts.encoder.double()).to(parts.encoder.dtype)
    found = replace(parts, encoder=encoder, encoder_bias=magnitude_bias, folded=(*parts.folded, words))
    return found, threshold.to(parts.encoder.dtype)


def require_expressible(sae: SparseAutoencoder, library: str) -> None:
    """Raise DataError where other libraries, which know ReLU, JumpReLU and TopK of it, have no such function."""
    keep = "keep it in Kyomei's own format, which `kyomei.load` reads"
    if sae.activation == "jumprelu" and (count := int((sae.threshold < 0).sum())):
        found = f"{count:,} latents that are active at scores below zero, where {library} takes the ReLU first"
        do = f"{keep}; or give up those activations first: sae.threshold.clamp_(min=0)"
        raise DataError("thresholds of zero or more", found, do)
    if sae.activation == "topk" and (count := int((sae.threshold > 0).sum())):
        found = f"{count:,} latents with a threshold of their own above zero, which TopK of {library} does not have"
        raise DataError("the k highest of all positive scores", found, keep)


def relu_bias(sae: SparseAutoencoder) -> Float[Tensor, " width"]:
    """b of relu(x·w + b) for an autoencoder whose activation is that; very low for a latent that is never active."""
    lowest = torch.finfo(sae.threshold.dtype).min / 2
    bias = -sae.threshold if sae.bias is None else sae.bias - sae.threshold
    return bias.clamp_min(lowest)


def refuse_transcoder(path: Path) -> NoReturn:
    """Raise DataError for what writes to another site than it reads."""
    found = "a transcoder: it reads one site and writes another, so it has no reconstruction to compare with its input"
    do = "take an SAE of one of both sites, or keep this in its own library"
    raise DataError(f"a sparse autoencoder in {path}", found, do)


def whole_number(value: Any, name: str, path: Path) -> int:
    """A count in a file's settings.

    Raises:
        DataError: it is none.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value != int(value) or value < 1:
        raise DataError(f"{name} as a whole number in {path}", repr(value)[:80], "correct it")
    return int(value)


def known(**facts: Any) -> dict[str, Any]:
    """What is known of a foreign autoencoder, without what is not."""
    return {name: fact for name, fact in facts.items() if fact not in (None, {}, "")}


def module_place(path: str) -> dict[str, str]:
    """Site and side of a module's path that may end in .input or .output."""
    site, _, side = path.rpartition(".")
    return {"site": site, "side": side} if side in ("input", "output") else {"site": path}
