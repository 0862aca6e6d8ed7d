"""Which features to show, and the text that they fire on most."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.dictionary.cosines import nearest
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.evidence.selectivity import Selectivity
from kyomei.evidence.survey import Survey
from kyomei.source.shards import ShardFolder
from kyomei.source.text import Tokens

CONTEXTS_PER_FEATURE = 5
CONTEXT_TOKENS = (14, 6)
"""Tokens shown before and after the strongest one."""
FEATURES = 30
TOP_TOKENS = 8


def lowest_mcs(
    sae: SparseAutoencoder, others: Sequence[SparseAutoencoder], metric: Float[Tensor, "dim dim"]
) -> Float[Tensor, " width"]:
    """For each latent the smallest, over the other replicas, of its largest cosine with their decoders.

    Args:
        sae: the dictionary that ships.
        others: its replicas; without any, all cosines are 0.
        metric: into whitened space.
    """
    own = normalize(sae.decoder @ metric, dim=1)
    best = [nearest(own, normalize(other.decoder @ metric, dim=1)).cosine for other in others]
    return torch.stack(best).amin(dim=0) if best else torch.zeros(sae.width)


def choose(mcs: Float[Tensor, " width"], values: Selectivity, certified: Collection[int]) -> Int64[Tensor, " chosen"]:
    """Latents to show: certified ones first, and among either kind those that every other replica reproduces best.

    A latent that fires in a handful of rows has no text to show, however well its direction reproduces: it comes last.

    Args:
        mcs: see `lowest_mcs`.
        values: of the same latents.
        certified: numbers of the certified ones; empty where nobody has looked.
    """
    usable = values.frequency * values.num_rows >= 2 * CONTEXTS_PER_FEATURE
    tested = torch.zeros(len(mcs), dtype=torch.bool)
    tested[sorted(certified)] = True
    # A cosine is at most 1, so that 2 puts every certified latent before every other one.
    return torch.where(usable, mcs + 2 * tested, -2.0).argsort(descending=True, stable=True)[:FEATURES]


def cards(
    sae: SparseAutoencoder,
    rows: ShardFolder,
    tokens: Tokens,
    found: Survey,
    mcs: Float[Tensor, " width"],
    chosen: Int64[Tensor, " chosen"],
) -> list[dict[str, Any]]:
    """Figures, strongest tokens and stretches of text of chosen latents, as plain values.

    Args:
        sae: the dictionary.
        rows: what was surveyed.
        tokens: the text that the rows are of.
        found: the dictionary's survey on the rows.
        mcs: see `lowest_mcs`.
        chosen: numbers of latents.
    """
    place, values = rows.row_tokens(), found.selectivity
    made = []
    for latent in chosen.tolist():
        places = [int(place[row]) for row in found.strongest.row[latent] if row >= 0]
        made.append(
            {
                "index": latent,
                "mcs": float(mcs[latent]),
                "frequency": float(values.frequency[latent]),
                "max_activation": float(values.max_activation[latent]),
                "z_score": float(values.z_score[latent]),
                "top_tokens": list(dict.fromkeys(tokens.text_at(at) for at in places))[:TOP_TOKENS],
                "contexts": [_context(sae, rows, tokens, place, latent, at) for at in _spread(places, tokens)],
            }
        )
    return made


def _spread(places: Sequence[int], tokens: Tokens) -> list[int]:
    """The strongest places, each of another document where there are enough documents."""
    documents = tokens.document.flatten()
    fresh: dict[int, int] = {}
    for at in places:
        fresh.setdefault(int(documents[at]), at)
    return [*fresh.values(), *(at for at in places if at not in fresh.values())][:CONTEXTS_PER_FEATURE]


def _context(
    sae: SparseAutoencoder, rows: ShardFolder, tokens: Tokens, place: np.ndarray, latent: int, at: int
) -> list[tuple[str, float]]:
    """A stretch of text around a token, with the latent's activation at each."""
    span = np.array(tokens.around(at, *CONTEXT_TOKENS))
    row = np.searchsorted(place, span).clip(max=len(place) - 1)
    code = sae.encode(rows.read(row))[:, latent]
    present = place[row] == span  # dropped rows have no activation
    words = [tokens.text_at(t) for t in span.tolist()]
    if not tokens.has_text:  # whoever has the document can look there
        document, start = int(tokens.document.flatten()[at]), int(tokens.start.flatten()[span[0]])
        words[0] = f"{tokens.documents[document].name}, character {start}: {words[0]}"
    return [(w, float(a) if p else 0.0) for w, a, p in zip(words, code.tolist(), present.tolist(), strict=True)]
