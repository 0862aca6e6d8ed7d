"""A dictionary as SAEBench evaluates it: the attributes and methods that its evaluations ask of an SAE."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kyomei.dictionary.formats.parts import Parts, relu_bias
from kyomei.dictionary.sae import SparseAutoencoder


@dataclass
class SAEBenchConfig:
    """What SAEBench reads of an SAE's settings; the names are its own.

    Attributes:
        model_name: as TransformerLens knows the model.
        hook_name: TransformerLens' name of the site, such as blocks.3.hook_resid_post.
        hook_layer: its layer.
        d_in: dimensions.
        d_sae: latents.
        architecture: what the dictionary computes.
        dtype: such as "float32".
        context_size: tokens in a window; none: not known.
        prepend_bos: whether windows begin with a token of their own.
        normalize_activations: "none": everything is folded.
        hook_head_index: no single head is meant.
    """

    model_name: str
    hook_name: str
    hook_layer: int
    d_in: int
    d_sae: int
    architecture: str
    dtype: str
    context_size: int | None = None
    prepend_bos: bool = True
    normalize_activations: str = "none"
    hook_head_index: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class SAEBenchAdapter:
    """A dictionary with the names that SAEBench asks for; decoder rows have unit norm, and codes their lengths instead.

    Args:
        sae: the dictionary.
        model_name: as TransformerLens knows the model.
        hook_name: TransformerLens' name of the site.
        hook_layer: its layer.

    Attributes:
        W_enc: [dim, width].
        W_dec: [width, dim], unit rows; rows that are zero stay so.
        b_enc: [width], added to the score.
        b_dec: [dim].
        cfg: what SAEBench reads of the settings.
    """

    def __init__(self, sae: SparseAutoencoder, model_name: str, hook_name: str, hook_layer: int) -> None:
        kind = "standard" if sae.activation == "relu" else sae.activation
        known = sae.provenance
        self.cfg = SAEBenchConfig(model_name, hook_name, hook_layer, sae.dim, sae.width, kind, "", known.get("context"))
        if known.get("prepend_bos") is not None:
            self.cfg.prepend_bos = bool(known["prepend_bos"])
        self._hold(sae)

    def _hold(self, sae: SparseAutoencoder) -> None:
        self.sae = sae
        norms = sae.decoder.norm(dim=1)
        self.norms = torch.where(norms > 0, norms, torch.ones_like(norms))
        parts = Parts.of(sae)
        self.W_enc = (parts.encoder * self.norms[:, None]).mT.contiguous()
        self.W_dec = sae.decoder / self.norms[:, None]
        bias = relu_bias(sae) if sae.activation == "relu" else parts.encoder_bias
        self.b_enc, self.b_dec = bias * self.norms, parts.decoder_bias
        self.device, self.dtype = sae.encoder.device, sae.encoder.dtype
        self.cfg.dtype = str(self.dtype).removeprefix("torch.")

    def encode(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows width"]:
        """Codes in units of the unit decoder rows."""
        return self.sae.encode(x) * self.norms

    def decode(self, z: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows dim"]:
        """The reconstruction that such a code stands for."""
        return self.sae.decode(z / self.norms)

    def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """The reconstruction of rows."""
        return self.decode(self.encode(x))

    __call__ = forward

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SAEBenchAdapter:
        """The same elsewhere, or in another dtype; as of a module of torch, it is this object that changes.

        What SAEBench has written into `cfg` by then stays: it standardises the settings before it moves an SAE.
        """
        self._hold(self.sae.to(device, dtype))
        return self
