"""Whether rows come from where a dictionary was trained: the same model, site and side, normalised in the same way."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from kyomei.dictionary.figures import SAMPLE_ROWS, SampleFigures
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.learning.spread import Spread
from kyomei.source.rows import Rows, RowsLike, open_rows
from kyomei.source.shards import ShardFolder

SAME, ELSEWHERE, UNKNOWN = "same", "elsewhere", "unknown"
MOST_NORM, MOST_L0, MOST_FVU = 1.4, 2.0, 2.0
"""How many times as large, or as small, the figures of the same site may be; measured in docs/results.md."""
MORE_FVU = 0.25
"""By how much FVU may be larger anyway: that of what was learnt by heart is small."""
FEW_ROWS = 4.0
"""Of n rows, the figures may differ by 1 + this / √n times as much."""
LEAST_ROWS = 50
"""Fewer rows say nothing."""


class SiteWarning(UserWarning):
    """Rows do not look like those that a dictionary was trained on."""


@dataclass(frozen=True)
class SiteCheck:
    """A dictionary's figures on rows beside those on a sample of what it was trained on.

    Attributes:
        verdict: "same"; "elsewhere"; or "unknown", for a dictionary that does not say what it was trained on, or too few rows.
        reasons: what speaks for elsewhere, in words.
        here: figures on a sample of the rows.
        stored: figures on a sample of what it was trained on; none: it does not say.
    """

    verdict: str
    reasons: tuple[str, ...]
    here: SampleFigures
    stored: SampleFigures | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        stored = None if self.stored is None else self.stored.to_dict()
        return {"verdict": self.verdict, "reasons": list(self.reasons), "here": self.here.to_dict(), "stored": stored}


def check_site(sae: SparseAutoencoder | Spread, rows: RowsLike) -> SiteCheck:
    """Compare what a dictionary does on rows with what it did on those it was trained on, and warn where that differs much.

    What shards say of their model, site and side is compared as well. Of other rows only their figures speak: a site whose rows
    are almost those of the dictionary's own is not told from it.

    Args:
        sae: a dictionary that was trained or loaded here; of one that is spread over a mesh the leading rank warns.
        rows: activations [rows, dim], or whatever holds them; at most 4096 of them are read, evenly taken.

    Warns:
        SiteWarning: the rows come from elsewhere: from another site or model, or normalised in another way.

    Raises:
        DataError: rows of another width, or unreadable ones.
    """
    rows = open_rows(rows)
    sae.require_dim(rows.dim)
    here, known = sample_figures(sae, rows), [] if rows.num_rows < LEAST_ROWS else _known(sae)
    # Other documents of the same site may differ as much as the other parts of its run did.
    figures = [_other_figures(here, each) for each in known]
    reasons = (*_other_place(sae, rows), *(figures[0] if figures and all(figures) else ()))
    judged = bool(known) or (isinstance(rows, ShardFolder) and "site" in sae.provenance)
    if reasons and (isinstance(sae, SparseAutoencoder) or sae.mesh.leads):
        place = f" ({sae.provenance['site']})" if "site" in sae.provenance else ""
        words = f"these rows are not like those that the dictionary was trained on{place}: {'; '.join(reasons)}"
        warnings.warn(words, SiteWarning, stacklevel=2)
    return SiteCheck(ELSEWHERE if reasons else SAME if judged else UNKNOWN, reasons, here, known[0] if known else None)


def sample_figures(sae: SparseAutoencoder | Spread, rows: Rows) -> SampleFigures:
    """A dictionary's figures on at most 4096 rows, evenly taken."""
    index = np.linspace(0, rows.num_rows - 1, min(SAMPLE_ROWS, rows.num_rows)).astype(np.int64)
    x = rows.read(index)
    return sae.figures(x) if isinstance(sae, Spread) else SampleFigures.measure(sae, x)


def _known(sae: SparseAutoencoder | Spread) -> list[SampleFigures]:
    """The figures that training left: on its own rows, then on other parts of its run; none for a dictionary from elsewhere."""
    try:
        return [SampleFigures(**figures) for figures in (sae.provenance["sample"], *sae.provenance.get("other_parts", ()))]
    except (KeyError, TypeError):
        return []


def _other_place(sae: SparseAutoencoder | Spread, rows: Rows) -> list[str]:
    """What shards and dictionary say of themselves, where it differs."""
    if not isinstance(rows, ShardFolder):
        return []
    names = {"site": "of site", "side": "of side", "weights": "of a model with weights"}
    here = {"site": rows.site, **rows.meta}
    return [
        f"they are {words} {str(here[name])[:40]}, not {str(sae.provenance[name])[:40]}"
        for name, words in names.items()
        if here.get(name) and sae.provenance.get(name) and here[name] != sae.provenance[name]
    ]


def _other_figures(here: SampleFigures, stored: SampleFigures) -> list[str]:
    slack = 1 + FEW_ROWS / here.num_rows**0.5
    reasons = []
    if not 1 / (MOST_NORM * slack) <= _ratio(here.median_norm, stored.median_norm) <= MOST_NORM * slack:
        reasons.append(f"their median norm is {here.median_norm:.4g}, not about {stored.median_norm:.4g}")
    if not 1 / (MOST_L0 * slack) <= _ratio(here.l0, stored.l0) <= MOST_L0 * slack:
        reasons.append(f"L0 is {here.l0:.3g}, not about {stored.l0:.3g}")
    if here.fvu > max(MOST_FVU * stored.fvu, stored.fvu + MORE_FVU) * slack:
        reasons.append(f"FVU is {here.fvu:.3g}, not about {stored.fvu:.3g}")
    return reasons


def _ratio(a: float, b: float) -> float:
    """a / b; 1 for two zeros."""
    return 1.0 if a == b else a / b if b else float("inf")
