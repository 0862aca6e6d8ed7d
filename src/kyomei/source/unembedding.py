"""What a direction says of the next token: through a causal model's last norm and its unembedding."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from kyomei.errors import ModelError


class Unembedding(NamedTuple):
    """The way from the residual stream to logits, without what all directions share.

    Attributes:
        head: weights of the unembedding [vocabulary, dim].
        norm: the last norm; none: the model has none.
    """

    head: Float[Tensor, "vocabulary dim"]
    norm: nn.Module | None

    @torch.no_grad()
    def logits(self, vectors: Float[Tensor, "vectors dim"]) -> Float[Tensor, "vectors vocabulary"]:
        """Logits of residual streams that are these directions alone, at a root mean square of 1; the mean of each is 0.

        A norm scales by what the whole stream is: of a direction, only its own scale for each coordinate can be told. So it is
        asked of the direction, and what it gives for nothing at all is taken off.
        """
        weight = self.head
        x = vectors.to(weight.device).float()
        x = x * x.square().mean(dim=1, keepdim=True).clamp_min(1e-30).rsqrt()
        if self.norm is not None:
            x = x.to(weight.dtype)
            x = self.norm(x) - self.norm(torch.zeros_like(x[:1]))
        logits = linear(x.to(weight.dtype), weight).float()
        return logits - logits.mean(dim=1, keepdim=True)


def unembedding(model: nn.Module, name: str, ids: Tensor, run: Any) -> Unembedding:
    """The last norm and the unembedding of a model, found by what they do in one pass.

    Args:
        model: with a language-model head.
        name: what to call it.
        ids: a few tokens [1, tokens].
        run: runs the model on token ids.

    Raises:
        ModelError: it has no language-model head, or one that is no plain matrix.
    """
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    weight = getattr(head, "weight", None)
    if not isinstance(head, nn.Module) or not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ModelError("a causal language model", f"{name}, without an unembedding", "look at examples instead of logits")
    outputs: list[tuple[nn.Module, Tensor]] = []
    inputs: list[Tensor] = []

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.append((module, output))

    hooks = [module.register_forward_hook(keep) for module in model.modules() if _is_norm_like(module)]
    hooks.append(head.register_forward_pre_hook(lambda _, values: inputs.append(values[0])))
    try:
        with torch.no_grad():
            run(ids)
    finally:
        for hook in hooks:
            hook.remove()
    # The norm is what gives the head its input; where nothing does so, the head reads the stream itself.
    found = [module for module, output in outputs if inputs and _ends_with(output, inputs[-1][0, -1])]
    return Unembedding(weight.detach(), found[-1] if found else None)


def _is_norm_like(module: nn.Module) -> bool:
    """Whether a module holds one scale, and perhaps a shift, for each coordinate and nothing else."""
    own = list(module.parameters())
    return not list(module.children()) and 0 < len(own) <= 2 and all(weight.ndim == 1 for weight in own)


def _ends_with(output: Tensor, last: Tensor) -> bool:
    return output.ndim == 3 and output.shape[-1] == last.shape[-1] and torch.equal(output[0, -1], last)
