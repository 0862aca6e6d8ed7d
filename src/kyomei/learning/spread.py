"""A dictionary whose latents lie spread over the ranks of a mesh: each encodes, decodes, reads and writes its own.

Whatever has a number for each latent may be whole on every rank; whatever has a row for each latent never is. Where a rank
needs the rows of others it gets some of them at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kyomei.arrays import unit_rows
from kyomei.dictionary.figures import SampleFigures
from kyomei.dictionary.formats import load, ours, recognised
from kyomei.dictionary.kernels import csr
from kyomei.dictionary.sae import Activation, SparseAutoencoder
from kyomei.errors import RecipeError
from kyomei.learning.mesh import Mesh

ROWS_AT_ONCE = 512
"""Rows that are scored at a time, against the latents of one rank."""
LATENTS_AT_ONCE = 256
"""Latents whose rows the ranks send each other at a time."""


def in_turn(x: Float[Tensor, "own ..."], mesh: Mesh, length: int = LATENTS_AT_ONCE) -> Iterator[tuple[int, Tensor]]:
    """What lies spread over the ranks, some rows at a time, on every rank: (number of the first of them, rows)."""
    first = 0
    for source, count in enumerate(mesh.tell(len(x))):
        for start in range(0, count, length):
            stop = min(start + length, count)
            own = x[start:stop] if source == mesh.rank else x.new_empty((stop - start, *x.shape[1:]))
            yield first + start, mesh.from_rank(source, own)
        first += count


def picked(x: Float[Tensor, "own ..."], index: Int64[Tensor, " wanted"], mesh: Mesh) -> Float[Tensor, "wanted ..."]:
    """Rows of what lies spread over the ranks, by their numbers among all; each rank wants what it wants."""
    lengths, index = mesh.tell(len(x)), index.to(x.device)
    first = sum(lengths[: mesh.rank])
    is_here = bool(((index >= first) & (index < first + len(x))).all())
    if all(mesh.tell(is_here)):
        return x[index - first]
    wanted = x.new_empty((len(index), *x.shape[1:]))
    for begin, rows in in_turn(x, mesh):
        place = ((index >= begin) & (index < begin + len(rows))).nonzero().flatten()
        wanted[place] = rows[index[place] - begin]
    return wanted


def numbers(which: slice) -> Int64[Tensor, " rows"]:
    """The numbers of some rows."""
    return torch.arange(which.start, which.stop)


@dataclass(frozen=True, eq=False)
class Spread:
    """A sparse autoencoder of which every rank has a share of the latents, in the order of ranks; alone, all of them.

    Attributes:
        width: latents of all ranks.
        encoder, decoder: rows of this rank's latents [own, dim]; one and the same where tied.
        threshold: of these [own].
        center: of the rows [dim].
        activation: as `SparseAutoencoder` has it.
        k: latents kept per row, among those of all ranks; for "topk" only.
        bias: added to the scores of these latents [own]; none: zero.
        mesh: the ranks.
        provenance, unit_rows: as `SparseAutoencoder` has them.
    """

    width: int
    encoder: Float[Tensor, "own dim"]
    decoder: Float[Tensor, "own dim"]
    threshold: Float[Tensor, " own"]
    center: Float[Tensor, " dim"]
    activation: Activation = "jumprelu"
    k: int | None = None
    bias: Float[Tensor, " own"] | None = None
    mesh: Mesh = field(default_factory=Mesh)
    provenance: dict[str, Any] = field(default_factory=dict)
    unit_rows: bool = False

    @classmethod
    def of(cls, sae: SparseAutoencoder, mesh: Mesh | None = None) -> Spread:
        """This rank's share of a dictionary that is whole on every rank, as a view of it; none: all of it."""
        mesh = mesh or Mesh()
        own = mesh.share(sae.width)
        bias = None if sae.bias is None else sae.bias[own]
        encoder = sae.encoder[own]
        decoder = encoder if sae.tied else sae.decoder[own]
        known = sae.center, sae.activation, sae.k, bias, mesh, sae.provenance, sae.unit_rows
        return cls(sae.width, encoder, decoder, sae.threshold[own], *known)

    @classmethod
    def load(cls, folder: Path, mesh: Mesh | None = None) -> Spread:
        """Read this rank's share of a saved dictionary, and no more of it.

        Raises:
            DataError: as `kyomei.load`.
            RecipeError: there are more ranks than latents.
        """
        mesh = mesh or Mesh()
        if mesh.size == 1 or recognised(folder) != ours.NAME:
            return cls.of(load(folder), mesh)
        held = ours.read_part(folder, mesh.share)
        if held.width < mesh.size:
            do = f"use at most {held.width} processes"
            raise RecipeError("a latent for each process", f"{held.width} for {mesh.size}", do)
        tensors = held.tensors
        encoder, decoder = tensors["encoder"], tensors.get("decoder")
        rest = tensors["threshold"], tensors["center"], held.activation, held.k, tensors.get("bias"), mesh, held.provenance
        return cls(held.width, encoder, encoder if decoder is None else decoder, *rest, held.unit_rows)

    @property
    def dim(self) -> int:
        return self.encoder.shape[1]

    @property
    def tied(self) -> bool:
        return self.decoder is self.encoder

    @property
    def here(self) -> slice:
        """Which of all latents are those of this rank."""
        return self.mesh.share(self.width)

    def require_dim(self, dim: int, site: str = "") -> None:
        """As `SparseAutoencoder.require_dim`."""
        SparseAutoencoder.require_dim(self, dim, site)  # type: ignore[arg-type]

    def encode(self, x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows own"]:
        """The code of rows, as far as it is of this rank's latents: CSR; of several ranks all have to give the same rows."""
        parts = [self._encoded(rows) for rows in torch.split(x.to(self.encoder), ROWS_AT_ONCE)]
        return stacked(parts)

    def row_scale(self, x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows 1"]:
        """As `SparseAutoencoder.row_scale`."""
        x = x.to(self.center)
        return unit_rows(x)[1] if self.unit_rows else x.new_ones(len(x), 1)

    def decode(self, code: Float[Tensor, "rows own"], x: Float[Tensor, "rows dim"] | None = None) -> Float[Tensor, "rows dim"]:
        """The reconstruction that the codes of all ranks stand for, on every rank; unit rows have to be given."""
        own: Tensor = code @ self.decoder if len(self.decoder) else self.decoder.new_zeros(code.shape[0], self.dim)
        reconstruction = self.mesh.sum_over_all(own) + self.center
        return reconstruction * self.row_scale(x) if self.unit_rows and x is not None else reconstruction

    def _encoded(self, x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows own"]:
        if not len(self.encoder):
            none = x.new_zeros(0)
            code = csr(torch.zeros(len(x) + 1, dtype=torch.int64, device=x.device), none.long(), none, (len(x), 0))
        else:
            k = None if self.k is None else min(self.k, len(self.encoder))
            kind: dict[str, Any] = {"activation": self.activation, "k": k, "bias": self.bias, "unit_rows": self.unit_rows}
            decoder = None if self.tied else self.decoder
            code = SparseAutoencoder(self.encoder, decoder, self.threshold, self.center, **kind).encode(x, sparse=True)
        return code if self.k is None or self.mesh.size == 1 else self._among_all(code, self.k)

    def _among_all(self, code: Float[Tensor, "rows own"], k: int) -> Float[Tensor, "rows own"]:
        """Of the largest scores of this rank's latents those that are among the largest of all."""
        starts, values = code.crow_indices(), code.values()
        row = torch.repeat_interleave(torch.arange(len(starts) - 1, device=starts.device), starts.diff())
        best = values.new_zeros((k, code.shape[0]))
        best[torch.arange(len(values), device=starts.device) - starts[row], row] = values
        least = self.mesh.joined(best).topk(k, dim=0).values[-1]
        kept = values >= least[row]
        count = torch.bincount(row[kept], minlength=code.shape[0])
        row_ends = torch.cat([starts[:1], count.cumsum(0)])
        return csr(row_ends, code.col_indices()[kept], values[kept], (len(row_ends) - 1, code.shape[1]))

    def figures(self, x: Float[Tensor, "rows dim"]) -> SampleFigures:
        """What all ranks together do on a sample of rows."""
        code = self.encode(x)
        active = self.mesh.sum_over_all((code.values() != 0).sum())
        return SampleFigures.of(x, self.decode(code, x), int(active))

    def whole(self) -> SparseAutoencoder:
        """All latents on every rank; alone, nothing is copied."""
        joined = self.mesh.joined
        encoder = joined(self.encoder)
        decoder = None if self.tied else joined(self.decoder)
        bias = None if self.bias is None else joined(self.bias)
        kind: dict[str, Any] = {"activation": self.activation, "k": self.k, "bias": bias, "provenance": self.provenance}
        kind["unit_rows"] = self.unit_rows
        return SparseAutoencoder(encoder, decoder, joined(self.threshold), self.center, **kind)

    def chosen(self, index: Int64[Tensor, " wanted"]) -> Spread:
        """Some latents of all, by number and in that order: each rank names those that are to be its own."""
        found = self._with(lambda rows: picked(rows, index, self.mesh))
        return replace(found, width=sum(self.mesh.tell(len(index))))

    def _with(self, change: Callable[[Tensor], Tensor]) -> Spread:
        encoder = change(self.encoder)
        decoder = encoder if self.tied else change(self.decoder)
        bias = None if self.bias is None else change(self.bias)
        return replace(self, encoder=encoder, decoder=decoder, threshold=change(self.threshold), bias=bias)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Spread:
        """The same on another device or in another dtype."""
        moved = self._with(lambda rows: rows.to(device=device, dtype=dtype))
        return replace(moved, center=self.center.to(device=device, dtype=dtype))

    def save(self, folder: Path) -> None:
        """Write what `SparseAutoencoder.save` writes; the leading rank has some latents of the others at a time.

        Raises:
            RunError: the disk is full, said by every rank; what was there before is untouched.
        """
        if self.mesh.size == 1:
            self.whole().save(folder)
            return
        named = {"encoder": self.encoder, "threshold": self.threshold}
        named |= {} if self.tied else {"decoder": self.decoder}
        named |= {} if self.bias is None else {"bias": self.bias}
        shapes = {name: (self.width, *rows.shape[1:]) for name, rows in named.items()} | {"center": tuple(self.center.shape)}
        pieces = self._pieces({name: named.get(name, self.center) for name in sorted(shapes)})
        facts = ours.Facts(self.width, self.dim, self.tied, self.activation, self.k, self.unit_rows, self.provenance)

        def write() -> None:
            try:
                ours.save_pieces(folder, facts, shapes, self.encoder.dtype, pieces)
            finally:
                deque(pieces, maxlen=0)  # the others send all the same

        if not self.mesh.leads:
            deque(pieces, maxlen=0)
        self.mesh.first(write)

    def _pieces(self, named: dict[str, Tensor]) -> Iterator[Tensor]:
        for name, tensor in named.items():
            if name == "center":
                yield tensor
            else:
                yield from (rows for _, rows in in_turn(tensor, self.mesh))


def stacked(parts: list[Tensor]) -> Tensor:
    """Sparse CSR tensors one under the other."""
    if len(parts) == 1:
        return parts[0]
    ends, offset = [parts[0].crow_indices()[:1]], 0
    for part in parts:
        ends.append(part.crow_indices()[1:] + offset)
        offset += len(part.values())
    columns, values = (torch.cat([take(part) for part in parts]) for take in (Tensor.col_indices, Tensor.values))
    starts = torch.cat(ends)
    return csr(starts, columns, values, (len(starts) - 1, parts[0].shape[1]))
