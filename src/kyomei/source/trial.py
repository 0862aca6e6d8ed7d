"""Whether sites can be captured and replaced, found out on two windows before any long work begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kyomei.errors import ModelError
from kyomei.source.hooks import Side
from kyomei.source.model import Codec, LanguageModel
from kyomei.source.sites import Site

_TOLERANCE = 0.1
"""Of a row's norm: what rounding may change, in low precision too."""
_FEW = 0.2
"""Of the rows of a window: a router at a tie sends single tokens elsewhere."""
_LAST = 8
"""Predictions compared; of the whole window they may take more memory than the model."""


@dataclass(frozen=True)
class Trial:
    """What a pass over two windows says of sites.

    Attributes:
        calls: by site, how often its module runs in a pass; none of a model without its last layers.
        unspliceable: by site, why no cross-entropy can be measured with the site replaced; such sites only. Of a model without
            its last layers, only what those that it has tell.
        taken_for: by site, what a name of TransformerLens' is taken for; such sites only.
    """

    calls: dict[str, int]
    unspliceable: dict[str, str]
    taken_for: dict[str, str] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """What a user has to know before the harvest, a sentence each."""
        notes = list(self.taken_for.values())
        for name, count in self.calls.items():
            site = Site.parse(name)
            if count > 1:
                calls = f"{site.path}#0 to #{count - 1}"
                notes.append(f"{site.path} runs {count} times in a pass: call #{site.call} is taken, of {calls}")
        for name, reason in self.unspliceable.items():
            notes.append(f"{name}: no cross-entropy will be measured, because {reason}")
        return notes


def try_sites(
    model: LanguageModel, ids: Int64[Tensor, "windows context"], sites: Sequence[str], side: Side = "output"
) -> Trial:
    """Capture and replace each site once.

    Args:
        model: where the sites are.
        ids: the first two windows are run.
        sites: as `LanguageModel.capture` takes them.
        side: of the modules.

    Raises:
        ModelError: a site cannot be captured, or its rows are not those of their tokens.
    """
    ids = ids[:2]
    together = model.capture(ids, sites, side)
    # Rows in another order, or of other tokens, differ from those of a window alone.
    alone = model.capture(ids[-1:], sites, side)
    for site in sites:
        if _differ(together[site][-1], alone[site][0]):
            found = f"others at '{site}' where another window stands beside"
            raise ModelError("activations that depend on their own window alone", found, "choose another site")
    taken_for = {site: words for site in sites if (words := model.said_of(site))}
    if model.part is not None:
        return Trial({}, _unspliceable_so_far(model, ids[:1], sites, side), taken_for)
    return Trial(model.calls(ids[:1], sites), _unspliceable(model, ids[:1], sites, side), taken_for)


def _unspliceable(model: LanguageModel, ids: Tensor, sites: Sequence[str], side: Side) -> dict[str, str]:
    """Why sites cannot be replaced, or why no cross-entropy would tell; of those that can nothing."""
    if not model.is_causal:
        return dict.fromkeys(sites, f"{model.name} predicts no tokens")
    plain = _last_logits(model, ids)
    if not model.is_encoder_decoder and _sees_what_follows(model, ids, lambda ids: _last_logits(model, ids)):
        return dict.fromkeys(sites, f"{model.name} sees the tokens that it would have to predict")
    reasons = {site: _why_not(model, ids, site, side, plain) for site in sites}
    return {site: reason for site, reason in reasons.items() if reason}


def _unspliceable_so_far(model: LanguageModel, ids: Tensor, sites: Sequence[str], side: Side) -> dict[str, str]:
    """The same of a model without its last layers, as far as sites themselves tell."""
    if not model.is_causal:
        return dict.fromkeys(sites, f"{model.name} predicts no tokens")
    if model.is_encoder_decoder:
        return {}
    reason = f"{model.name} sees the tokens that it would have to predict"

    def sees(site: str) -> bool:
        return _sees_what_follows(model, ids, lambda ids: model.capture(ids, [site], side)[site])

    return {site: reason for site in sites if sees(site)}


def _why_not(model: LanguageModel, ids: Tensor, site: str, side: Side, plain: Tensor) -> str:
    try:
        same = _last_logits(model, ids, (site, _Same()), side)
        zero = _last_logits(model, ids, (site, _Zero()), side)
    except (ModelError, RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return f"it cannot be replaced: {first_line.rstrip('. ')}"
    if _differ(same[0], plain[0]):
        return "the model reads more of it than can be replaced: its own values, put back, change the predictions"
    if torch.equal(zero, same):
        return "no prediction depends on it"
    return ""


def _sees_what_follows(model: LanguageModel, ids: Tensor, values: Callable[[Tensor], Tensor]) -> bool:
    """Whether values at the tokens before the last, such as predictions, change with the last."""
    others = ids[0][ids[0] != ids[0, -1]]
    if not len(others):
        return False
    changed = ids.clone()
    changed[0, -1] = others[-1]
    # The same kernels on the same numbers: little is rounded otherwise, where the last token goes to another expert.
    tolerance = 1e-4 if next(model.model.parameters()).dtype == torch.float32 else 0.03
    at_tokens = (values(read)[0, :-1].float() for read in (ids, changed))
    before, after = (x - x.mean(dim=-1, keepdim=True) for x in at_tokens)
    return _differ(after, before, tolerance)


def _last_logits(
    model: LanguageModel, ids: Tensor, splice: tuple[str, Codec] | None = None, side: Side = "output"
) -> Float[Tensor, "batch last vocabulary"]:
    return model.logits(ids, splice, side=side)[:, -_LAST:].float().clone()


def _differ(a: Float[Tensor, "rows dim"], b: Float[Tensor, "rows dim"], tolerance: float = _TOLERANCE) -> bool:
    """Whether more than a few rows differ by more than a share of their norm."""
    a, b = a.float(), b.float()
    return bool(((a - b).norm(dim=-1) > tolerance * b.norm(dim=-1)).double().mean() > _FEW)


class _Same:
    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Any) -> Tensor:
        value: Tensor = z
        return value


class _Zero(_Same):
    def decode(self, z: Any) -> Tensor:
        return torch.zeros_like(z)
