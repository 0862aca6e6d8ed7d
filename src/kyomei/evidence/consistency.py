"""Do two independent runs find the same directions, and would they do so on data without features?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from kyomei.arrays import tensor_of
from kyomei.dictionary.cosines import nearest
from kyomei.errors import EvidenceError
from kyomei.evidence.cosines import Vectors, matched_cosine, unit_rows

TAUS = (0.7, 0.9)


@dataclass(frozen=True, eq=False)
class Null:
    """The same pipeline's two replicas on data without features, for instance a Gaussian surrogate.

    Attributes:
        a: directions of the null's first replica [k, dim].
        b: directions of its second replica [l, dim].
        name: what the null is.
    """

    a: Vectors
    b: Vectors
    name: str = "null"


@dataclass(frozen=True, repr=False, eq=False)
class Consistency:
    """Agreement of two runs, never shown without the null's.

    Attributes:
        mcs: float32 [k], largest cosine of each direction of the first run with one of the second.
        null_mcs: float32 [null k], the same between the null's two replicas.
        metric: "raw" or "whitened".
        null_name: what the null is.
        selection: which rows of the first run these are.
        null_selection: which rows of the null's first replica stand beside them.
    """

    mcs: Float[Tensor, " k"]
    null_mcs: Float[Tensor, " null_k"]
    metric: str
    null_name: str
    _rows: tuple[Float[Tensor, "k dim"], Float[Tensor, "l dim"]]
    _null_rows: tuple[Float[Tensor, "null_k dim"], Float[Tensor, "null_l dim"]]
    selection: str = "all"
    null_selection: str = "all"

    def share_above(self, tau: float) -> float:
        """Share of the first run's directions with MCS > `tau`; 0 if it has none."""
        return _share_above(self.mcs, tau)

    def null_share_above(self, tau: float) -> float:
        """The null's share with MCS > `tau`."""
        return _share_above(self.null_mcs, tau)

    @property
    def mean(self) -> float:
        """Mean MCS; 0 if the first run has no direction."""
        return float(self.mcs.double().mean()) if len(self.mcs) else 0.0

    @property
    def null_mean(self) -> float:
        """The null's mean MCS."""
        return float(self.null_mcs.double().mean())

    @cached_property
    def null_99th_percentile(self) -> float:
        """The MCS that one direction in a hundred exceeds on the null."""
        # torch.quantile refuses more than 2^24 values; a sorted copy has no such bound.
        ordered = self.null_mcs.double().sort().values
        place = 0.99 * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return float(torch.lerp(ordered[low], ordered[high], place - low))

    @cached_property
    def pw_mcc(self) -> float:
        """Mean |cos| over the best one-to-one matching of the two runs (arXiv:2505.20254)."""
        return matched_cosine(*self._rows)

    @cached_property
    def null_pw_mcc(self) -> float:
        """The same between the null's two replicas."""
        return matched_cosine(*self._null_rows)

    def among(
        self, name: str, score: Shaped[Tensor, " k"], alpha: float, null_score: Shaped[Tensor, " null_k"] | None = None
    ) -> Consistency:
        """The same figures among the rows of highest score.

        Args:
            name: what the score is, such as "max activation", "Z-score" or "frequency".
            score: one number for each direction of the first run [k].
            alpha: share of the directions to keep, in (0, 1]; at least one is kept.
            null_score: the same score of the null's first replica [null k]; none: beside all of the null's rows.

        Raises:
            EvidenceError: if a score has another length or alpha is out of range.
        """
        chosen = _highest(score, len(self.mcs), alpha)
        share = f"top {100 * alpha:g} % by {name}"
        if null_score is None:
            null_chosen, null_share = torch.arange(len(self.null_mcs)), "all"
        else:
            null_chosen, null_share = _highest(null_score, len(self.null_mcs), alpha), share
        return Consistency(
            self.mcs[chosen],
            self.null_mcs[null_chosen],
            self.metric,
            self.null_name,
            (self._rows[0][chosen], self._rows[1]),
            (self._null_rows[0][null_chosen], self._null_rows[1]),
            share,
            null_share,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain figures, each a pair of "value" and "null"."""
        shares = {f"mcs_above_{tau:g}": _pair(self.share_above(tau), self.null_share_above(tau)) for tau in TAUS}
        return {
            "metric": self.metric,
            "null": self.null_name,
            "selection": _pair(self.selection, self.null_selection),
            "rows": _pair([len(rows) for rows in self._rows], [len(rows) for rows in self._null_rows]),
            **shares,
            "mean_mcs": _pair(self.mean, self.null_mean),
            "pw_mcc": _pair(self.pw_mcc, self.null_pw_mcc),
            "null_99th_percentile": self.null_99th_percentile,
        }

    def __str__(self) -> str:
        shares = [f"MCS > {tau:g}: {self.share_above(tau):.3f} (null {self.null_share_above(tau):.3f})" for tau in TAUS]
        sizes, null_sizes = ("{} against {}".format(*map(len, rows)) for rows in (self._rows, self._null_rows))
        return "; ".join(
            [
                *shares,
                f"mean MCS {self.mean:.3f} (null {self.null_mean:.3f})",
                f"PW-MCC {self.pw_mcc:.3f} (null {self.null_pw_mcc:.3f})",
                f"99th percentile of the null's MCS {self.null_99th_percentile:.3f}",
                f"{self.metric} metric, {self.selection} directions, {sizes} (null: {self.null_name}, "
                f"{self.null_selection}, {null_sizes})",
            ]
        )

    __repr__ = __str__


def consistency(
    a: Vectors,
    b: Vectors,
    *,
    null: Null | tuple[Vectors, Vectors] | None = None,
    metric: Literal["raw", "whitened"] = "raw",
    whitening: Vectors | None = None,
) -> Consistency:
    """Largest cosine of each direction of one run with the directions of an independent run, beside a null's.

    Signed cosines are used for the MCS, since features are not negative; the matching (PW-MCC) uses |cos|, as published.

    Args:
        a: directions of the first run, any scale [k, dim], tensor, ndarray or list; k may be 0.
        b: directions of the second run [l, dim].
        null: the two replicas of a null that went through the same pipeline; required. A largest cosine grows with the
            number of directions it is taken over, so give the null as many as the runs have.
        metric: "raw" compares rows as they are, "whitened" the rows of `a @ whitening`.
        whitening: the linear map of the whitened metric [dim, dim'], shared by both runs and the null.

    Raises:
        EvidenceError: without a null, with an empty one, with shapes that do not fit, or with a metric that lacks its map.

    Source: arXiv:2506.14002 (MCS); arXiv:2606.02061 (why not without a null).
    """
    if null is None:
        raise EvidenceError("a null beside the consistency", "none", "pass null=Null(a, b) from data without features")
    if not isinstance(null, Null):
        null = Null(*null)
    if metric not in ("raw", "whitened") or (metric == "whitened") != (whitening is not None):
        found = f"metric {metric!r} {'without' if whitening is None else 'with'} a map"
        raise EvidenceError('metric "raw" without a map, or "whitened" with one', found, "pass both or neither")
    named = {"a": a, "b": b, "null.a": null.a, "null.b": null.b}
    units = {name: unit_rows(rows, name) for name, rows in named.items()}
    units = {name: rows.to(units["a"].device) for name, rows in units.items()}
    if not len(units["null.a"]) or not len(units["null.b"]):
        raise EvidenceError("a null with directions", "an empty one", "run the null through the same pipeline as the data")
    if len({rows.shape[1] for rows in units.values()}) > 1:
        found = ", ".join(f"{name} {list(rows.shape)}" for name, rows in units.items())
        raise EvidenceError("directions of one dimension", found, "compare runs on the same site")
    if whitening is not None:
        units = {name: _mapped(rows, whitening, name) for name, rows in units.items()}
    real, surrogate = (units["a"], units["b"]), (units["null.a"], units["null.b"])
    mcs, null_mcs = (nearest(*sides).cosine.cpu() for sides in (real, surrogate))
    return Consistency(mcs, null_mcs, metric, null.name, real, surrogate)


def _mapped(rows: Tensor, whitening: Vectors, name: str) -> Tensor:
    whitening = tensor_of(whitening)
    if whitening.ndim != 2 or len(whitening) != rows.shape[1]:
        found = f"shape {list(whitening.shape)}"
        raise EvidenceError(f"a map of shape [{rows.shape[1]}, …]", found, "use the whitening of this site")
    return unit_rows(rows @ whitening.to(rows), f"{name} @ whitening")


def _share_above(mcs: Tensor, tau: float) -> float:
    return float((mcs > tau).double().mean()) if len(mcs) else 0.0


def _highest(score: Tensor, rows: int, alpha: float) -> Tensor:
    if score.shape != (rows,) or not 0 < alpha <= 1:
        found = f"shape {list(score.shape)}, alpha {alpha:g}"
        raise EvidenceError(f"a score of shape [{rows}] and alpha in (0, 1]", found, "pass one score per direction")
    count = min(rows, max(1, round(alpha * rows)))
    return score.detach().cpu().double().argsort(descending=True, stable=True)[:count].sort().values


def _pair(value: Any, null: Any) -> dict[str, Any]:
    return {"value": value, "null": null}
