"""Which next tokens a latent's decoder row raises and lowers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import KyomeiError
from kyomei.source.model import LanguageModel
from kyomei.views.index.relations import Named

TOKENS = 10
"""Named of either kind."""
LOGITS_AT_ONCE = 2**24


def logit_effects(sae: SparseAutoencoder, model: LanguageModel) -> tuple[list[Named], list[Named]]:
    """Tokens whose logits each decoder row raises most, and those that it lowers most: lists of {"token", "value"}.

    Raises:
        ModelError: the model is not causal, or the site is not as wide as its residual stream.
    """
    vocabulary = model.vocabulary()
    top: list[Named] = []
    bottom: list[Named] = []
    rows = max(1, LOGITS_AT_ONCE // max(1, len(vocabulary)))
    for first in range(0, sae.width, rows):
        logits = model.unembed(sae.decoder[first : first + rows].detach().float())[:, : len(vocabulary)].cpu()
        count = min(TOKENS, logits.shape[1])
        for kept, largest in ((top, True), (bottom, False)):
            best = logits.topk(count, dim=1, largest=largest)
            kept += _named(best.values, best.indices, vocabulary)
    return top, bottom


def _named(values: torch.Tensor, ids: torch.Tensor, vocabulary: list[str]) -> list[Named]:
    pairs = zip(values.tolist(), ids.tolist(), strict=True)
    return [[{"token": vocabulary[i], "value": v} for v, i in zip(row, at, strict=True)] for row, at in pairs]


def logit_columns(sae: SparseAutoencoder, open_model: Callable[[], LanguageModel] | None) -> tuple[dict[str, Any], str]:
    """Both columns, and why they are empty where they are.

    Args:
        sae: the dictionary.
        open_model: gives the model that its site is in; none: it is not asked.
    """
    reason = "the model was not asked"
    if open_model is not None:
        try:
            top, bottom = logit_effects(sae, open_model())
        except KyomeiError as error:
            reason = error.found
        else:
            return {"logits_top": top, "logits_bottom": bottom}, ""
    empty: list[Named] = [[] for _ in range(sae.width)]
    return {"logits_top": empty, "logits_bottom": empty}, reason
