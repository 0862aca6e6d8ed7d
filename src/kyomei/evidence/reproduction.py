"""Which latents of a dictionary other replicas have too, and what becomes of those that they have not.

The dictionary is the first replica; the others differ from it in seed and documents and test it. Everything is measured on rows
that no replica saw.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from scipy import sparse
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import EvidenceError
from kyomei.evidence.codes import encode_rows, firing_counts, joined, mesh_of, partner_correlation
from kyomei.evidence.kinship import Kinship
from kyomei.learning.spaces import Whitening
from kyomei.learning.spread import Spread, in_turn
from kyomei.source.rows import Rows, as_seen

Dictionary: TypeAlias = SparseAutoencoder | Spread
Status = Literal["certified", "split", "merged", "unstable", "dead"]
STATUSES: tuple[Status, ...] = ("certified", "split", "merged", "unstable", "dead")
MIN_REPLICAS = 3
MIN_COSINE = 0.7
"""Least MCS of encoder and decoder with another replica's, where the null does not ask for more."""
MIN_CORRELATION = 0.7
"""Least correlation of a latent's activation with its partner's."""
NULL_QUANTILE = 0.99
DENSE_FREQUENCY = 0.1
"""A latent that is active on a larger share of the rows is dense."""
MIN_ALIKE = 20
"""Fewer latents of a null say too little about what others of their kind must exceed."""
OWN_AT_ONCE = 256
"""Latents whose cosines are held at a time."""
MAX_ROWS = 200_000
"""Rows on which activations are compared at most, evenly spread."""


@dataclass(frozen=True, eq=False)
class Match:
    """Each latent of one dictionary in another: largest cosines in whitened space, and the latent that is its partner.

    Attributes:
        encoder: MCS of its encoder row [width].
        decoder: MCS of its decoder row [width].
        joint: the larger, over the other's latents, of the smaller of both cosines [width].
        partner: the latent at which `joint` is reached [width].
        correlation: of its activation with its partner's on unseen rows [width]; 0 where either is silent.
    """

    encoder: Float64[np.ndarray, " width"]
    decoder: Float64[np.ndarray, " width"]
    joint: Float64[np.ndarray, " width"]
    partner: Int64[np.ndarray, " width"]
    correlation: Float64[np.ndarray, " width"]


@dataclass(frozen=True, eq=False)
class NullMatches:
    """Two replicas on data without features, each in the other, and how often their latents are active.

    Attributes:
        there, back: the first in the second, and the other way round.
        frequency, frequency_back: of the first's latents and of the second's, on rows that neither saw [width].
    """

    there: Match
    back: Match
    frequency: Float64[np.ndarray, " width"]
    frequency_back: Float64[np.ndarray, " width"]

    @classmethod
    def measure(cls, null: tuple[Dictionary, Dictionary], rows: Rows) -> NullMatches:
        """Compare the two on rows of the null that its replicas did not see."""
        (a, b), space, index = null, space_of(null, rows), rows_used(rows.num_rows)
        code_a, code_b = (encode_rows(sae, rows, index) for sae in null)
        there, back = match(a, b, space, code_a, code_b), match(b, a, space, code_b, code_a)
        fired = (joined(firing_counts(code), mesh_of(a)) for code in (code_a, code_b))
        return cls(there, back, *(counts / len(index) for counts in fired))


class Cosines(NamedTuple):
    """Least MCS of encoders and decoders: each max(0.7, 99th percentile of the null)."""

    encoder: float
    decoder: float


@dataclass(frozen=True)
class Rule:
    """What a latent must reach in each other replica.

    Latents that are active on more than a tenth of the rows are asked by themselves. They follow the few directions of largest
    variance, which rows without features have too: among all latents of a null they would be too few to raise what is asked of
    them, and many enough to raise it for the others.

    Attributes:
        sparse: asked of latents active on at most a tenth of the rows.
        dense: asked of the others.
        correlation: least correlation of activations.
    """

    sparse: Cosines
    dense: Cosines
    correlation: float = MIN_CORRELATION

    @classmethod
    def above(cls, null: Match, frequency: Float64[np.ndarray, " width"]) -> Rule:
        """The rule that a null sets whose latents are active this often."""
        sparse, dense = (cls._above(null, _alike(frequency, kind)) for kind in (False, True))
        return cls(sparse, dense)

    @staticmethod
    def _above(null: Match, among: Bool[np.ndarray, " width"]) -> Cosines:
        both = (null.encoder[among], null.decoder[among])
        return Cosines(*(max(MIN_COSINE, float(np.quantile(values, NULL_QUANTILE))) for values in both))

    def passed(self, match: Match, dense: Bool[np.ndarray, " width"]) -> Bool[np.ndarray, " width"]:
        """Latents that meet it in one replica."""
        encoder, decoder = (np.where(dense, *least) for least in zip(self.dense, self.sparse, strict=True))
        enough: np.ndarray = (match.encoder >= encoder) & (match.decoder >= decoder) & (match.correlation >= self.correlation)
        return enough

    def to_dict(self) -> dict[str, float]:
        """Plain values."""
        named = {"encoder": self.sparse.encoder, "decoder": self.sparse.decoder, "correlation": self.correlation}
        return named | {"dense_encoder": self.dense.encoder, "dense_decoder": self.dense.decoder}


def _alike(null_frequency: Float64[np.ndarray, " width"], dense: bool) -> Bool[np.ndarray, " width"]:
    """Live latents of a null with which dense latents, or sparse ones, are compared; all live ones, where that kind is rare.

    A dead latent lies where it died: in rows of one large principal component many die along it and agree, but none of them is
    anything that a live latent could be mistaken for.
    """
    alive = null_frequency > 0
    alike = alive & ((null_frequency > DENSE_FREQUENCY) == dense)
    return next((kind for kind in (alike, alive) if kind.sum() >= MIN_ALIKE), np.ones_like(alive))


@dataclass(frozen=True, eq=False)
class Verdicts:
    """The status of every latent of a dictionary, with the numbers it rests on.

    Attributes:
        status: of each latent.
        matches: one for each other replica.
        kinship: of each latent to several in another replica; multiple correlations [replicas, width] as split and as merged.
        q_value: Benjamini–Hochberg q-value of each latent's joint cosine against the null's [width]; 1 for dead ones.
        frequency: share of the unseen rows in which it is active [width].
        rule: what was asked.
        null_false_positives: share of the null's live latents that pass the same rule.
        num_null: live latents of the null.
        num_rows: unseen rows used.
    """

    status: list[Status]
    matches: list[Match]
    kinship: list[Kinship]
    q_value: Float64[np.ndarray, " width"]
    frequency: Float64[np.ndarray, " width"]
    rule: Rule
    null_false_positives: float
    num_null: int
    num_rows: int

    def mask(self, status: Status) -> Bool[np.ndarray, " width"]:
        """Latents of a status."""
        return np.array([own == status for own in self.status])

    @property
    def dense(self) -> Bool[np.ndarray, " width"]:
        """Latents that are active on more than a tenth of the rows."""
        return self.frequency > DENSE_FREQUENCY

    @property
    def certified_share(self) -> float:
        """Certified latents among all, dead ones included."""
        return float(self.mask("certified").mean())


def certify_latents(
    dictionaries: Sequence[Dictionary],
    rows: Rows,
    null: tuple[Dictionary, Dictionary],
    null_rows: Rows,
    whitening: Whitening | None = None,
) -> Verdicts:
    """Test the first dictionary against the others.

    Args:
        dictionaries: replicas; at least two others beside the first. All may be spread over the ranks of a mesh, null included.
        rows: rows that no replica saw.
        null: two replicas of the same mechanism and width on data without features.
        null_rows: rows of the null that its replicas did not see.
        whitening: of `rows`, as `space_of` gives it; none: measured here.

    Raises:
        EvidenceError: with fewer than three replicas, or dictionaries of different inputs.
    """
    require_comparable(dictionaries, null, rows.dim)
    index = rows_used(rows.num_rows)
    codes = [encode_rows(sae, rows, index) for sae in dictionaries]
    return compare_coded(dictionaries, codes, NullMatches.measure(null, null_rows), whitening or space_of(dictionaries, rows))


def space_of(dictionaries: Sequence[Dictionary], rows: Rows) -> Whitening:
    """The whitened space in which dictionaries are compared: of rows of norm 1, where all of them are of such rows."""
    return Whitening.fit(as_seen(rows, all(sae.unit_rows for sae in dictionaries)))


def require_replicas(count: int) -> None:
    """Raise EvidenceError with fewer than three: two others have to confirm a latent."""
    if count < MIN_REPLICAS:
        do = f"harvest and train with source.replicas = {MIN_REPLICAS} or more"
        raise EvidenceError("a dictionary and at least two other replicas", f"{count} replica(s)", do)


def require_comparable(dictionaries: Sequence[Dictionary], null: tuple[Dictionary, Dictionary], dim: int) -> None:
    """Raise an EvidenceError with fewer than three replicas, or dictionaries of other inputs."""
    require_replicas(len(dictionaries))
    if any(d.dim != dim for d in (*dictionaries, *null)):
        raise EvidenceError(f"dictionaries of dimension {dim}", "others", "certify on the site they were trained on")


def compare_coded(
    dictionaries: Sequence[Dictionary],
    codes: Sequence[sparse.csr_array],
    null: NullMatches,
    space: Whitening,
    latents: Int64[np.ndarray, " tested"] | None = None,
) -> Verdicts:
    """`certify_latents` where the codes of the rows are at hand: one for each dictionary [rows, width].

    Args:
        codes: of a rank its own latents' columns.
        latents: of the first dictionary those that are tested, ascending; none: all.
    """
    first, *others = dictionaries
    code, *other_codes = codes
    mesh, own = mesh_of(first), None
    kinship = [Kinship.of(code, z, mesh) for z in other_codes]  # of all: one is merged together with siblings
    if latents is not None:
        kinship = [Kinship(kin.split[latents], kin.merged[latents]) for kin in kinship]
        own = own_of(latents, mesh.share(first.width))
        code = code[:, own]
    matches = [match(first, other, space, code, z, own) for other, z in zip(others, other_codes, strict=True)]
    # The rule comes from the null one way round and is tested the other way, on latents that did not set it.
    rule = Rule.above(null.there, null.frequency)
    false = rule.passed(null.back, null.frequency_back > DENSE_FREQUENCY)[null.frequency_back > 0]
    frequency = joined(firing_counts(code), mesh) / code.shape[0]
    alive, dense = frequency > 0, frequency > DENSE_FREQUENCY
    joint = np.min([match.joint for match in matches], axis=0)
    p_value = _p_values(joint, dense, null.there.joint, null.frequency)
    return Verdicts(
        status=_statuses(alive, [rule.passed(match, dense) for match in matches], kinship),
        matches=matches,
        kinship=kinship,
        q_value=np.where(alive, benjamini_hochberg(p_value, alive), 1.0),
        frequency=frequency,
        rule=rule,
        null_false_positives=float(false.mean()) if len(false) else 0.0,
        num_null=len(false),
        num_rows=code.shape[0],
    )


def in_turn_coded(
    dictionaries: Sequence[Dictionary], codes: Sequence[sparse.csr_array], null: NullMatches, space: Whitening
) -> list[Verdicts]:
    """`compare_coded` of every replica, each of them once the dictionary that the others test.

    Raises:
        EvidenceError: with fewer than three replicas.
    """
    require_replicas(len(dictionaries))
    saes, coded = list(dictionaries), list(codes)
    return [compare_coded(saes[i:] + saes[:i], coded[i:] + coded[:i], null, space) for i in range(len(saes))]


def benjamini_hochberg(
    p_value: Float64[np.ndarray, " n"], tested: Bool[np.ndarray, " n"] | None = None
) -> Float64[np.ndarray, " n"]:
    """q-values: the smallest false-discovery rate at which each test is rejected (Benjamini and Hochberg 1995).

    Args:
        p_value: in (0, 1].
        tested: which of them are tests; the others get 1. None: all.
    """
    q = np.ones(len(p_value))
    chosen = np.arange(len(p_value)) if tested is None else np.flatnonzero(tested)
    order = chosen[np.argsort(p_value[chosen], kind="stable")]
    scaled = p_value[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1)
    return q


def _p_values(
    joint: Float64[np.ndarray, " width"],
    dense: Bool[np.ndarray, " width"],
    null_joint: Float64[np.ndarray, " null"],
    null_frequency: Float64[np.ndarray, " null"],
) -> Float64[np.ndarray, " width"]:
    """Share of the null's latents of the same kind that agree as well, the tested one counted among them."""
    p = np.ones(len(joint))
    for kind in (False, True):
        own, against = dense == kind, np.sort(null_joint[_alike(null_frequency, kind)])
        at_least = len(against) - np.searchsorted(against, joint[own], side="left")
        p[own] = (1 + at_least) / (1 + len(against))
    return p


def match(
    a: Dictionary,
    b: Dictionary,
    space: Whitening,
    code_a: sparse.csr_array,
    code_b: sparse.csr_array,
    latents: Int64[np.ndarray, " some"] | None = None,
) -> Match:
    """Each latent of `a` in `b`.

    An encoder row e scores e·x = (C^(1/2) e)·z on whitened z; a decoder row d adds C^(−1/2) d to it.

    Args:
        a, b: dictionaries of one input space; both spread over the same mesh, or neither.
        space: in which cosines are taken.
        code_a, code_b: of the same rows [rows, width]; of a rank its own latents' columns, `code_a` of those asked for.
        latents: of `a`, of a rank among its own; none: all.
    """
    mesh = mesh_of(a)
    maps = space.backward, space.forward
    asked = slice(None) if latents is None else torch.from_numpy(latents)
    own = [_units(rows[asked], to) for rows, to in zip((a.encoder, a.decoder), maps, strict=True)]
    theirs = [_units(rows, to) for rows, to in zip((b.encoder, b.decoder), maps, strict=True)]
    *cosines, partner = _best(own[0], own[1], zip(in_turn(theirs[0], mesh), in_turn(theirs[1], mesh), strict=True))
    correlation = partner_correlation(code_a, code_b, partner.numpy(), mesh)
    encoder, decoder, joint = (joined(values.double().numpy(), mesh) for values in cosines)
    return Match(encoder, decoder, joint, joined(partner.numpy(), mesh), joined(correlation, mesh))


def _best(
    encoder: Float[Tensor, "own dim"],
    decoder: Float[Tensor, "own dim"],
    others: Iterable[tuple[tuple[int, Tensor], tuple[int, Tensor]]],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Largest cosines of encoders, of decoders, of both at one other latent, and that latent; others come by in turn."""
    found = torch.full((3, len(encoder)), -torch.inf, dtype=encoder.dtype)
    partner = torch.zeros(len(encoder), dtype=torch.int64)
    for (first, other_encoder), (_, other_decoder) in others:
        for start in range(0, len(encoder), OWN_AT_ONCE):
            here = slice(start, start + OWN_AT_ONCE)
            by_encoder, by_decoder = encoder[here] @ other_encoder.T, decoder[here] @ other_decoder.T
            both = torch.minimum(by_encoder, by_decoder).max(dim=1)
            partner[here] = torch.where(both.values > found[2, here], first + both.indices, partner[here])
            new = torch.stack([by_encoder.amax(dim=1), by_decoder.amax(dim=1), both.values])
            found[:, here] = torch.maximum(found[:, here], new)
    return found[0], found[1], found[2], partner


def own_of(latents: Int64[np.ndarray, " some"], here: slice) -> Int64[np.ndarray, " own"]:
    """Those of some latents that are a rank's, by their numbers among its own."""
    own: np.ndarray = latents[(latents >= here.start) & (latents < here.stop)] - here.start
    return own


def _units(rows: Float[Tensor, "width dim"], to: Float[Tensor, "dim dim"]) -> Float[Tensor, "width dim"]:
    rows = rows.detach().cpu()
    rows = rows if rows.dtype == torch.float64 else rows.float()
    return normalize(rows @ to.to(rows.dtype), dim=1)


def _statuses(
    alive: Bool[np.ndarray, " width"], passed: list[Bool[np.ndarray, " width"]], kinship: list[Kinship]
) -> list[Status]:
    """Certified if each replica has it; otherwise what it is in a replica that lacks it: split before merged."""
    certified = np.logical_and.reduce(passed)
    split = np.logical_or.reduce([~own & kin.is_split for own, kin in zip(passed, kinship, strict=True)])
    merged = np.logical_or.reduce([~own & kin.is_merged for own, kin in zip(passed, kinship, strict=True)])
    names = np.select([~alive, certified, split, merged], ["dead", "certified", "split", "merged"], "unstable")
    return names.tolist()  # type: ignore[no-any-return]


def rows_used(num_rows: int) -> Int64[np.ndarray, " taken"]:
    """Row numbers on which activations are compared: all, or as many as `MAX_ROWS` spread evenly."""
    return np.linspace(0, num_rows - 1, min(MAX_ROWS, num_rows)).astype(np.int64)
