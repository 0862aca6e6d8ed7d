"""Tokens that no other may attend to, while every token keeps its position."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from kyomei.errors import ModelError

# Positions counted from the mask itself: ALiBi's slope is laid along them, and no argument says otherwise.
_POSITIONS_FROM_MASK = {"bloom"}
_HEADS = ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads")


def hiding(hidden: Bool[Tensor, "batch context"], accepted: Collection[str], config: Any, name: str) -> dict[str, Any]:
    """Arguments of a forward pass in which hidden tokens are masked from attention.

    A hidden token has its place still: what stands behind it does not move up.

    Args:
        hidden: tokens that no token of their window may attend to.
        accepted: names that the model's forward pass takes.
        config: the model's configuration of its text part.
        name: of the model.

    Raises:
        ModelError: the model has no attention that could be masked, or counts its positions from the mask.
    """
    expected = "a model with attention in which single tokens can be masked"
    do = "look at this example without asking what it needs"
    if "attention_mask" not in accepted or not any(getattr(config, heads, None) for heads in _HEADS):
        raise ModelError(expected, f"{name}, which has none", do)
    if getattr(config, "model_type", None) in _POSITIONS_FROM_MASK or getattr(config, "alibi", False):
        raise ModelError(expected, f"{name}, which takes positions from the mask", do)
    mask = (~hidden).long()
    arguments: dict[str, Any] = {"attention_mask": mask}
    if "decoder_attention_mask" in accepted:
        arguments["decoder_attention_mask"] = mask
    if getattr(config, "model_type", None) == "opt":  # OPT would count them from the mask
        arguments["position_ids"] = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape)
    return arguments
