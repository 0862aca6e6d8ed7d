"""What edited latents change in the model's predictions, beside the model left alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from kyomei.dictionary.edits import Edit, EditedCode
from kyomei.errors import DataError
from kyomei.views.live import Live, Window

MOST_EDITS = 32
MOST_NEW_TOKENS = 64


def intervene(
    live: Live, window: Window, edits: Sequence[Edit], *, new_tokens: int = 20, seed: int | None = None, top: int = 10
) -> dict[str, Any]:
    """What edits change in the model's predictions, beside the untouched model.

    Args:
        live: the dictionary at its site.
        window: the text.
        edits: made at every token of the text and of the continuation but special ones and massive rows.
        new_tokens: most tokens of a continuation.
        seed: drawn from the model's own probabilities with this seed; none: the likeliest token each time.
        top: next tokens that are named, those of either model.

    Returns:
        "next": "token", "id", "untouched" and "edited" probability; "kl" at each token, in nats, of the untouched model's
        predictions from the edited one's, and "kl_next" at the last; "cross_entropy" of the text, in nats a token, and the two
        "continuation"s, "untouched" and "edited" (none: the text is one token).

    Raises:
        DataError: no such latent, or too many edits or new tokens.
        ModelError: the model predicts no tokens, or the site cannot be replaced.
    """
    live.require_latents([edit.latent for edit in edits])
    _require_at_most("edits", len(edits), MOST_EDITS)
    _require_at_most("new tokens", new_tokens, MOST_NEW_TOKENS)
    if live.unspliceable:
        do = "look at activations instead"
        raise DataError("a model whose predictions can be changed", live.unspliceable, do)
    untouched, edited = _logits(live, window.ids, ()), _logits(live, window.ids, edits)
    log_p, log_q = untouched.log_softmax(dim=-1), edited.log_softmax(dim=-1)
    # Rounding alone would make some of them negative.
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp(min=0)
    p, q = log_p[-1].exp(), log_q[-1].exp()
    named = dict.fromkeys([*p.topk(min(top, len(p))).indices.tolist(), *q.topk(min(top, len(q))).indices.tolist()])
    tokenizer = live.model.tokenizer
    return {
        "tokens": window.shown(),
        "edits": [{"latent": e.latent, "kind": e.kind, "value": e.value} for e in edits],
        "next": [
            {"id": i, "token": tokenizer.decode([i]), "untouched": float(p[i]), "edited": float(q[i])}
            for i in sorted(named, key=lambda i: -max(float(p[i]), float(q[i])))
        ],
        "kl": kl.tolist(),
        "kl_next": float(kl[-1]),
        "cross_entropy": {"untouched": _loss(untouched, window.ids[0]), "edited": _loss(edited, window.ids[0])},
        "continuation": {
            "untouched": _continued(live, window.ids, (), new_tokens, seed),
            "edited": _continued(live, window.ids, edits, new_tokens, seed),
        },
    }


def as_python(live: Live, dictionary: str, window: Window, edits: Sequence[Edit], *, revision: str | None = None) -> str:
    """About ten lines of Python that make the same intervention.

    Args:
        live: the dictionary at its site.
        dictionary: the folder that it is loaded from.
        window: what was tried.
        edits: what was done.
        revision: of the model.
    """
    named = f", revision={revision!r}" if revision else ""
    options = ", force_bos=True" if live.force_bos else ""
    options += "" if math.isinf(live.max_norm) else f", max_norm={live.max_norm!r}"
    done = ", ".join(f"Edit({e.latent}, {e.kind!r}, {e.value!r})" for e in edits)
    return f"""import kyomei
from kyomei.dictionary.edits import Edit
from kyomei.source.model import LanguageModel
from kyomei.views.interventions import intervene
from kyomei.views.live import Live

model, sae = LanguageModel.load({live.model.name!r}{named}), kyomei.load({dictionary!r})
live = Live(model, sae, {live.site!r}, {live.side!r}{options})
found = intervene(live, live.window({"".join(window.texts)!r}), [{done}])
for token in found["next"]:
    print(f"{{token['token']!r:16}} {{token['untouched']:.3f}} -> {{token['edited']:.3f}}")
print(found["kl_next"], found["continuation"])
"""


def _require_at_most(what: str, found: int, most: int) -> None:
    if not 0 <= found <= most:
        raise DataError(f"at most {most} {what}", str(found), "ask for fewer")


@torch.no_grad()
def _logits(live: Live, ids: Int64[Tensor, "1 context"], edits: Sequence[Edit]) -> Float[Tensor, "context vocabulary"]:
    """Next-token logits of one window, on the CPU."""
    if not edits:
        return live.model.logits(ids)[0].float().cpu()
    splice = (live.site, EditedCode(live.sae, edits, live.max_norm))
    return live.model.logits(ids, splice, where=~live.is_special(ids), side=live.side)[0].float().cpu()


def _loss(logits: Float[Tensor, "context vocabulary"], ids: Int64[Tensor, " context"]) -> float | None:
    return float(cross_entropy(logits[:-1], ids[1:])) if len(ids) > 1 else None


def _continued(live: Live, ids: Tensor, edits: Sequence[Edit], new_tokens: int, seed: int | None) -> str:
    """What the model writes next. Both models draw with the same seed, so that they part only where their predictions do."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    begun, stop = ids.shape[1], live.model.tokenizer.eos_token_id
    for _ in range(min(new_tokens, live.most_tokens - begun)):
        logits = _logits(live, ids, edits)[-1]
        chosen = logits.argmax() if generator is None else torch.multinomial(logits.softmax(-1), 1, generator=generator)
        if int(chosen) == stop:
            break
        ids = torch.cat([ids, chosen.reshape(1, 1)], dim=1)
    return str(live.model.tokenizer.decode(ids[0, begun:].tolist()))
