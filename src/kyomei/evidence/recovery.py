"""How much of a planted truth was found, for data whose features are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kyomei.arrays import Numbers, code_of
from kyomei.dictionary import cosines
from kyomei.errors import EvidenceError
from kyomei.evidence.cosines import Vectors, matched_cosine, unit_rows

CODE_ENTRIES_PER_BLOCK = 2**23


class Classification(NamedTuple):
    """Latents read as detectors of their nearest true feature; each figure is a mean over all latents."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, repr=False, eq=False)
class Recovery:
    """Learnt vectors against true features.

    Attributes:
        best_of_feature: float32 [n], largest cosine of each true feature with a learnt vector.
        best_of_vector: float32 [k], largest cosine of each learnt vector with a true feature.
        nearest: int64 [k], the true feature of largest |cos| for each learnt vector.
    """

    best_of_feature: Float[Tensor, " n"]
    best_of_vector: Float[Tensor, " k"]
    nearest: Int64[Tensor, " k"]
    _vectors: Float[Tensor, "k dim"] = field(repr=False)
    _features: Float[Tensor, "n dim"] = field(repr=False)

    def frr(self, tau: float) -> float:
        """Feature recovery rate: share of true features with a learnt vector at cosine ≥ `tau` (arXiv:2506.14002)."""
        return float((self.best_of_feature >= tau).double().mean())

    def monosemantic(self, tau: float) -> float:
        """Share of learnt vectors at cosine ≥ `tau` with a true feature; 0 if nothing was learnt."""
        return float((self.best_of_vector >= tau).double().mean()) if len(self.best_of_vector) else 0.0

    @cached_property
    def mcc(self) -> float:
        """Mean |cos| over the best one-to-one matching, min(k, n) pairs."""
        return matched_cosine(self._vectors, self._features)

    @property
    def n_matched(self) -> int:
        """Number of distinct true features that are the nearest of some learnt vector."""
        return len(torch.unique(self.nearest))

    @property
    def uniqueness(self) -> float:
        """`n_matched` over the number of learnt vectors: 1 if no two of them share their nearest feature."""
        return self.n_matched / len(self.nearest) if len(self.nearest) else 0.0

    def precision_recall_f1(self, z: Numbers, h: Numbers) -> Classification:
        """Each latent as a detector of its nearest feature: active where z ≠ 0, right where h > 0.

        Args:
            z: code of the learnt dictionary [rows, k], dense or CSR.
            h: true coefficients of the same rows [rows, n], dense or CSR.

        Returns:
            Precision, recall and F1, undefined ones counted as 0, averaged over all latents (definitions of
            `sae_lens.synthetic`).

        Raises:
            EvidenceError: if the shapes do not fit these vectors and features, or each other.
        """
        z, h = code_of(z), code_of(h)
        k, n = len(self.best_of_vector), len(self.best_of_feature)
        if z.ndim != 2 or h.ndim != 2 or len(z) != len(h) or len(z) == 0 or z.shape[1] != k or h.shape[1] != n:
            expected, found = f"z [rows, {k}] and h [rows, {n}]", f"{list(z.shape)} and {list(h.shape)}"
            raise EvidenceError(expected, found, "encode the very rows that the coefficients belong to")
        both, fired, present = (torch.zeros(k, dtype=torch.float64) for _ in range(3))
        rows_per_block = max(1, CODE_ENTRIES_PER_BLOCK // max(k, n))
        for start in range(0, len(z), rows_per_block):
            active = _dense_rows(z, start, start + rows_per_block) != 0
            truth = (_dense_rows(h, start, start + rows_per_block) > 0)[:, self.nearest]
            both += (active & truth).sum(dim=0)
            fired += active.sum(dim=0)
            present += truth.sum(dim=0)
        precision, recall = _ratio(both, fired), _ratio(both, present)
        f1 = _ratio(2 * precision * recall, precision + recall)
        if k == 0:
            return Classification(0.0, 0.0, 0.0)
        return Classification(float(precision.mean()), float(recall.mean()), float(f1.mean()))

    def to_dict(self) -> dict[str, float | int]:
        """Plain figures, with the usual thresholds 0.8 and 0.9."""
        return {
            "n_vectors": len(self.best_of_vector),
            "n_features": len(self.best_of_feature),
            "frr_0.8": self.frr(0.8),
            "frr_0.9": self.frr(0.9),
            "monosemantic_0.9": self.monosemantic(0.9),
            "mcc": self.mcc,
            "n_matched": self.n_matched,
            "uniqueness": self.uniqueness,
        }

    def __repr__(self) -> str:
        return f"Recovery({', '.join(f'{key}={value:.4g}' for key, value in self.to_dict().items())})"


def recovery(vectors: Vectors, features: Vectors) -> Recovery:
    """Compare learnt vectors with true features.

    Args:
        vectors: learnt directions, any scale [k, dim], tensor, ndarray or list; k may be 0.
        features: true directions, any scale [n, dim]; their sign matters, since coefficients are not negative.

    Returns:
        Feature recovery rate, matching and classification figures; large matchings are computed when asked for.

    Raises:
        EvidenceError: if there are no features, or the shapes do not fit.

    Source: arXiv:2506.14002 (FRR); `sae_lens.synthetic` (MCC, uniqueness, precision, recall, F1).
    """
    a = unit_rows(vectors, "vectors")
    b = unit_rows(features, "features").to(a.device)
    if len(b) == 0 or a.shape[1] != b.shape[1]:
        expected, found = "at least one feature, of the vectors' dimension", f"{list(a.shape)} against {list(b.shape)}"
        raise EvidenceError(expected, found, "compare with the features that made these data")
    near, opposite = cosines.nearest(a, b), cosines.nearest(a, -b)
    nearest = torch.where(opposite.cosine > near.cosine, opposite.row, near.row)
    best_of_feature = cosines.nearest(b, a).cosine if len(a) else a.new_full((len(b),), -1.0)
    return Recovery(best_of_feature.cpu(), near.cosine.cpu(), nearest.cpu(), a, b)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator.clamp_min(1e-300), 0.0)


def _dense_rows(matrix: Tensor, start: int, stop: int) -> Tensor:
    if matrix.layout == torch.strided:
        return matrix[start:stop].cpu()
    stop = min(stop, len(matrix))
    bounds = matrix.crow_indices()[start : stop + 1]
    first, last = int(bounds[0]), int(bounds[-1])
    dense = torch.zeros(stop - start, matrix.shape[1], dtype=matrix.dtype)
    row = torch.repeat_interleave(torch.arange(stop - start), bounds.diff().cpu())
    dense[row, matrix.col_indices()[first:last].cpu()] = matrix.values()[first:last].cpu()
    return dense
