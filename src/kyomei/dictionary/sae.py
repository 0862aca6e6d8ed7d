"""The sparse autoencoder every mechanism ends in: a linear encoder, per-latent thresholds, a linear decoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kyomei.arrays import Numbers, code_of, tensor_of, unit_rows
from kyomei.dictionary.kernels import compared, csr, nonzero
from kyomei.errors import DataError, RecipeError

Activation = Literal["jumprelu", "relu", "topk"]
ACTIVATIONS: tuple[Activation, ...] = ("jumprelu", "relu", "topk")

# A sparse encode still scores densely; it does so in blocks of about this many scores: 2 MB in float32 are still in a cache of
# processors when they are compared with thresholds, 64 MB keep a GPU busy.
SCORES_PER_BLOCK, SCORES_PER_BLOCK_ELSEWHERE = 2**19, 2**24


def keep_top_k(scores: Float[Tensor, "*rows width"], k: int) -> Float[Tensor, "*rows width"]:
    """The k largest positive scores of each row, zero elsewhere.

    Args:
        scores: pre-activations [..., width].
        k: latents kept per row; rows with fewer positive scores keep those.

    Returns:
        A tensor of the same shape; differentiable in the kept scores.
    """
    best = scores.relu().topk(min(k, scores.shape[-1]), dim=-1)
    return torch.zeros_like(scores).scatter(-1, best.indices, best.values)


class SparseAutoencoder:
    """A sparse autoencoder: z = φ((x − center) Eᵀ + bias), x̂ = z D + center.

    With unit rows it is one of x/‖x‖: z = φ((x/‖x‖ − center) Eᵀ + bias), x̂ = ‖x‖ (z D + center). Its codes do not depend on how
    long a row is, and its reconstructions are as long as rows are; a row of zeros is taken as it is and gives zeros.

    Args:
        encoder: encoder rows E [width, dim].
        decoder: decoder rows D [width, dim], unit norm when trained here; none: tied, D = E.
        threshold: score above which a latent is active, strictly [width]; in units of the input.
        center: subtracted from the input and added to the reconstruction [dim].
        activation: of an active latent, "jumprelu" gives its score and "relu" its score above the threshold; "topk" is
            jumprelu restricted to the k highest scores of a row.
        k: latents kept per row; for "topk" only.
        bias: added to every score before anything is asked of it [width]. None: zero.
        unit_rows: whether every row is divided by its norm first.
        provenance: where it comes from, as JSON can hold it: model, site, side, recipe, and what it did on a sample of the rows
            that it was trained on. It is saved and loaded with it; none: nothing is known.

    Raises:
        DataError: if shapes do not fit together.
        RecipeError: if the activation is unknown, or k is missing or out of place.

    Source: arXiv:2506.14002, §3; the threshold is −b_m of the paper's bias.
    """

    def __init__(
        self,
        encoder: Float[Tensor, "width dim"],
        decoder: Float[Tensor, "width dim"] | None,
        threshold: Float[Tensor, " width"],
        center: Float[Tensor, " dim"],
        *,
        activation: Activation = "jumprelu",
        k: int | None = None,
        bias: Float[Tensor, " width"] | None = None,
        unit_rows: bool = False,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if encoder.ndim != 2 or 0 in encoder.shape:
            raise DataError("an encoder of shape [width, dim]", f"shape {list(encoder.shape)}", "pass one row per latent")
        width, dim = encoder.shape
        named = {"decoder": (decoder, (width, dim)), "threshold": (threshold, (width,)), "center": (center, (dim,))}
        named["bias"] = (bias, (width,))
        for name, (tensor, shape) in named.items():
            if tensor is not None and tensor.shape != shape:
                raise DataError(f"a {name} of shape {list(shape)}", f"shape {list(tensor.shape)}", f"correct the {name}")
        if activation not in ACTIVATIONS:
            raise RecipeError(f"an activation among {', '.join(ACTIVATIONS)}", repr(activation), "choose one of them")
        if (activation == "topk") != (k is not None) or (k is not None and not 1 <= k <= width):
            raise RecipeError(f"k between 1 and {width} for topk, none otherwise", f"{activation} with k={k}", "correct k")
        self.encoder, self.tied = encoder, decoder is None
        self.decoder = encoder if decoder is None else decoder
        self.threshold, self.center, self.bias = threshold, center, bias
        self.activation: Activation = activation
        self.k, self.unit_rows = k, unit_rows
        self.provenance = dict(provenance or {})
        self.width, self.dim = width, dim

    def __repr__(self) -> str:
        k = "" if self.k is None else f", k={self.k}"
        known = "".join(f", {name}={self.provenance[name]!r}" for name in ("model", "site", "side") if name in self.provenance)
        shape = f"width={self.width}, dim={self.dim}{', unit_rows=True' if self.unit_rows else ''}"
        return f"SparseAutoencoder({shape}, activation={self.activation!r}, tied={self.tied}{k}{known})"

    def pre_activations(self, x: Numbers) -> Float[Tensor, "*rows width"]:
        """Scores of every latent, before the threshold.

        Args:
            x: inputs [..., dim]: a tensor, an ndarray, a list or whatever `kyomei.arrays` takes.

        Returns:
            (x − center) Eᵀ + bias [..., width], of x/‖x‖ with unit rows, in the autoencoder's dtype and on its device.

        Raises:
            DataError: if the last dimension is not the autoencoder's.
        """
        scores = self.centred(x) @ self.encoder.T
        return scores if self.bias is None else scores + self.bias

    def centred(self, x: Numbers) -> Float[Tensor, "*rows dim"]:
        """What encoder rows are multiplied by: x − center, or x/‖x‖ − center with unit rows [..., dim]."""
        x = self._accept(x)
        return (unit_rows(x)[0] if self.unit_rows else x) - self.center

    def row_scale(self, x: Numbers) -> Float[Tensor, "*rows 1"]:
        """What a row's code has to be multiplied by to be in the row's own scale: ‖x‖ with unit rows, otherwise 1 [..., 1]."""
        x = self._accept(x)
        return unit_rows(x)[1] if self.unit_rows else x.new_ones(*x.shape[:-1], 1)

    def encode(self, x: Numbers, sparse: bool = False) -> Float[Tensor, "*rows width"]:
        """The code of inputs.

        Args:
            x: inputs [..., dim]: a tensor, an ndarray, a list or whatever `kyomei.arrays` takes.
            sparse: return a CSR tensor instead, scored in blocks so that no dense code of all rows exists; x is [rows, dim].

        Returns:
            z [..., width], dense, or CSR [rows, width].

        Raises:
            DataError: if the last dimension is not the autoencoder's, or x is not [rows, dim] for a sparse code.
        """
        x = self._accept(x)
        return self._encode_csr(x) if sparse else self._activate(self.pre_activations(x))

    def decode(self, z: Numbers, x: Numbers | None = None) -> Float[Tensor, "*rows dim"]:
        """The reconstruction a code stands for.

        Args:
            z: code [..., width], dense or CSR.
            x: rows that the code is of [..., dim]. Only unit rows ask for them: their codes do not hold how long a row is.

        Returns:
            x̂ [..., dim].

        Raises:
            DataError: if the last dimension is not the autoencoder's width, or the rows are missing.
        """
        if self.unit_rows and x is None:
            do = "pass them, sae.decode(z, x), or call sae(x), which encodes and decodes"
            raise DataError("the rows that the code is of, for their norms: this dictionary is of unit rows", "none", do)
        z = code_of(z).to(self.decoder.device, self.decoder.dtype)
        if z.ndim == 0 or z.shape[-1] != self.width:
            raise DataError(f"codes of width {self.width}", f"shape {list(z.shape)}", "decode what this autoencoder encoded")
        reconstruction: Tensor = z @ self.decoder
        reconstruction = reconstruction + self.center
        return reconstruction * self.row_scale(x) if self.unit_rows and x is not None else reconstruction

    def __call__(self, x: Numbers) -> Float[Tensor, "*rows dim"]:
        """The reconstruction of inputs [..., dim]."""
        return self.decode(self.encode(x), x)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SparseAutoencoder:
        """A copy on another device or in another dtype (itself where nothing changes); tied stays tied."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype)

        encoder, decoder = move(self.encoder), None if self.tied else move(self.decoder)
        bias = None if self.bias is None else move(self.bias)
        kind: dict[str, Any] = {"activation": self.activation, "k": self.k, "bias": bias, "provenance": self.provenance}
        kind["unit_rows"] = self.unit_rows
        return SparseAutoencoder(encoder, decoder, move(self.threshold), move(self.center), **kind)

    def save(self, folder: Path | str) -> None:
        """Write `sae.safetensors` and `config.json` into a folder, each atomically; read them with `kyomei.load`."""
        from kyomei.dictionary import formats

        formats.save(self, folder)

    def save_pretrained(self, folder: Path | str, *, card: str | None = None) -> None:
        """Write what a repository of the hub holds: the files of `save`, and README.md, its card.

        Args:
            folder: made if need be.
            card: Markdown; none: one that says what the dictionary itself knows.
        """
        from kyomei.atomic import write_atomic
        from kyomei.dictionary.card import CARD_FILE
        from kyomei.dictionary.card import card as own_card

        self.save(folder)
        write_atomic(Path(folder) / CARD_FILE, (own_card(self) if card is None else card).encode())

    @classmethod
    def from_pretrained(
        cls, name: Path | str, *, revision: str | None = None, subfolder: str | None = None
    ) -> SparseAutoencoder:
        """A dictionary from a folder or from the hub, of any format that `kyomei.load` reads.

        Args:
            name: a folder, or OWNER/NAME of a repository; a folder goes first.
            revision: of the repository: branch, tag or commit.
            subfolder: of either, where the dictionary lies.

        Raises:
            DataError: as `kyomei.load`; or there is no such repository, or the hub does not answer.
        """
        from kyomei.dictionary import formats, hub

        place = Path(name)
        if place.is_dir():
            return formats.load(place / (subfolder or ""))
        return formats.load(hub.fetch(str(name), revision, subfolder))

    def push_to_hub(self, name: str, *, private: bool = True, revision: str | None = None, card: str | None = None) -> str:
        """Publish the dictionary with its card; `kyomei publish` fills the card from a run.

        Args:
            name: of the repository, OWNER/NAME, made if need be.
            private: whether a new repository is closed to others.
            revision: branch to commit to, made if need be.
            card: as `save_pretrained` takes it.

        Returns:
            The commit's address.

        Raises:
            KyomeiError: there is no right to do so, or the hub does not answer.
        """
        from tempfile import TemporaryDirectory

        from kyomei.dictionary import hub
        from kyomei.dictionary.card import card as own_card

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, card=card or own_card(self, name))
            return hub.publish(Path(folder), name, private=private, revision=revision, message="Kyomei dictionary")

    def require_dim(self, dim: int, site: str = "") -> None:
        """Raise DataError unless rows of this dimension, at this site if one is named, are what it takes."""
        if dim != self.dim:
            found = f"rows of dimension {dim}" + (f" at {site}" if site else "")
            raise DataError(f"rows of dimension {self.dim}, as the dictionary takes", found, "name the site it was trained on")

    def _accept(self, x: Numbers) -> Tensor:
        x = tensor_of(x).to(self.encoder.device, self.encoder.dtype)
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise DataError(f"inputs of dimension {self.dim}", f"shape {list(x.shape)}", "use the site this was trained on")
        return x

    def _activate(self, scores: Tensor) -> Tensor:
        if self.activation == "relu":
            return (scores - self.threshold).relu()
        passed = torch.where(scores > self.threshold, scores, 0.0)
        if self.k is None:
            return passed
        # Scores may pass a negative threshold; only positive ones compete, as in training.
        return keep_top_k(passed, self.k)

    def _active_entries(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Flat indices of the entries of a code that are not zero, ascending, and these entries."""
        if self.activation == "jumprelu" and bool((self.threshold >= 0).all()):
            active = nonzero(compared(scores, self.threshold, np.greater))
            return active, scores.view(-1)[active]
        z = self._activate(scores).view(-1)
        # Tensor.to_sparse_csr() takes about as long as the scores themselves; this reads the active set once.
        active = nonzero(z != 0)
        return active, z[active]

    def _encode_csr(self, x: Tensor) -> Tensor:
        if x.ndim != 2:
            raise DataError("inputs of shape [rows, dim]", f"shape {list(x.shape)}", "flatten them, or ask for a dense code")
        per_row, columns, values = [], [], []
        scores_per_block = SCORES_PER_BLOCK if x.device.type == "cpu" else SCORES_PER_BLOCK_ELSEWHERE
        rows_per_block = max(1, scores_per_block // self.width)
        for first in range(0, max(len(x), 1), rows_per_block):
            block = x[first : first + rows_per_block]
            active, value = self._active_entries(self.pre_activations(block))
            per_row.append(torch.bincount(active // self.width, minlength=len(block)))
            columns.append(active % self.width)
            values.append(value)
        row_starts = torch.zeros(len(x) + 1, dtype=torch.int64, device=x.device)
        torch.cumsum(torch.cat(per_row), dim=0, out=row_starts[1:])
        return csr(row_starts, torch.cat(columns), torch.cat(values), (len(x), self.width))
