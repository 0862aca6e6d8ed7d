"""What a watch reads: documents of text, or of stored activations, each to the figures of one dictionary; and its reference."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import numpy as np
import safetensors.numpy
import torch
from jaxtyping import Float32
from torch import Tensor

from kyomei.atomic import sha256_of, write_atomic
from kyomei.dictionary.figures import usual_bound
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import KyomeiError, RunError
from kyomei.evidence.documents import DocumentFigures, DocumentSums, DocumentTable
from kyomei.runs import Run
from kyomei.source.model import LanguageModel
from kyomei.source.text import Document, Encoded, Packer, Tokens
from kyomei.stages.harvested import activations, harvest_of, site_of, tokens_of
from kyomei.stages.progress import Reporter

WINDOWS_PER_DOCUMENT = 4
"""Windows of a longer document that are read, evenly from its beginning to its end: a document costs no more than this."""
MOST_SCALE, MOST_RANKED = 200, 1_000
"""Documents of the reference at most: those that edges are laid down on, and those that the stream's are ranked among."""
PARTS = {"scale": ("replica-0", MOST_SCALE), "ranked": ("evidence", MOST_RANKED)}
"""Of a reference: from which part of the documents, and how many at most."""
FOLDER = "watch"
"""In a run's folder: the reference, and a folder for each stream that is watched."""
SHIPPED = "replicas/0/sae.safetensors"
Way = Literal["whole", "packed"]
"""How documents are read: each by itself, from its text; or as a harvest packs them into windows, from stored rows."""


@final
class TextReader:
    """Figures of whole documents: the language model reads each by itself, from its first token on.

    Args:
        model: the language model.
        sae: the dictionary.
        run: says site, side, context, and which rows a harvest drops.
    """

    def __init__(self, model: LanguageModel, sae: SparseAutoencoder, run: Run) -> None:
        source = run.recipe.source
        self.model, self.sae = model, sae.to(model.device)
        self._site, self._side = site_of(run), source.side
        model.require_sites([self._site])
        self.packer = Packer(model.tokenizer, min(source.context, model.max_context or source.context), source.force_bos)
        self._special = torch.tensor(sorted(model.special_ids) if source.drop_special else [], dtype=torch.int64)
        self._bound = _bound(run, sae)

    def read(self, document: Document) -> DocumentFigures | None:
        """The figures of a document; none for one without a token that is text.

        Raises:
            DataError: the rows are not the dictionary's, or not finite.
        """
        encoded = next(self.packer.encode([document]), None)
        return None if encoded is None else self._figures(encoded)

    def _figures(self, encoded: Encoded) -> DocumentFigures | None:
        begin = [] if self.packer.begin is None else [self.packer.begin]
        inner = self.packer.context - len(begin)
        windows = [encoded.ids[first : first + inner] for first in range(0, len(encoded.ids), inner)]
        taken = _spread(len(windows), WINDOWS_PER_DOCUMENT)
        sums = DocumentSums(self.sae)
        # Full windows go through the model together; a last, shorter one by itself, without padding.
        full = [windows[i] for i in taken if len(windows[i]) == inner]
        for batch in filter(len, (full, [windows[i] for i in taken if len(windows[i]) < inner])):
            ids = torch.from_numpy(np.stack(batch)).long()
            lead = torch.tensor(begin, dtype=torch.int64).expand(len(ids), -1)
            x = self.model.capture(torch.cat([lead, ids], dim=1), [self._site], self._side)[self._site][:, len(begin) :]
            rows = x.float().flatten(0, 1)
            sums.add(self.ordinary(rows[~torch.isin(ids.flatten(), self._special).to(rows.device)]))
        return sums.figures()

    def ordinary(self, rows: Float32[Tensor, "rows dim"]) -> Float32[Tensor, "kept dim"]:
        """The rows that are not massive, which a harvest keeps."""
        return rows[rows.norm(dim=1) <= self._bound]


def _bound(run: Run, sae: SparseAutoencoder) -> float:
    """Norm above which the run's harvest dropped a row."""
    try:
        return float(run.recipe.source.norm_bound * activations(run, "evidence", verify=False).meta["median_norm"])
    except KyomeiError:  # the rows were left behind: the dictionary knows enough of them
        return usual_bound(sae)


def stored_figures(
    run: Run, part: str, sae: SparseAutoencoder, site: str | None = None
) -> Iterator[tuple[str, DocumentFigures]]:
    """Name and figures of every document of a harvest's part, from the rows that are stored; memory is that of one document.

    A document has as many rows there as the harvest took of it.

    Args:
        run: with the rows, or on a harvest that has them.
        part: such as "evidence".
        sae: the dictionary.
        site: where the rows come from; none: the run's own.
    """
    shards, tokens = activations(run, part, site=site, verify=False), tokens_of(run, part)
    document = tokens.document.flatten().numpy()[shards.row_tokens()]
    # Windows are in the order of their documents, so each document's rows are one stretch, but for tokens of none between.
    rows = np.flatnonzero(document >= 0)
    numbers, first = np.unique(document[rows], return_index=True)
    for number, own in zip(numbers.tolist(), np.split(rows, first[1:]), strict=True):
        sums = DocumentSums(sae)
        for begin in range(0, len(own), 8192):
            sums.add(shards.read(own[begin : begin + 8192]).to(sae.encoder))
        figures = sums.figures()
        if figures is not None:
            yield tokens.documents[number].name, figures


@final
@dataclass(frozen=True, eq=False)
class Reference:
    """What a stream is held to.

    Attributes:
        scale: documents of replica 0, on which edges and distances are laid down.
        ranked: documents of the evidence, which no replica saw.
        way: how they were read; a stream is read in the same way.
        dictionary: SHA-256 of the dictionary's file.
        digest: SHA-256 of the reference's own file.
    """

    scale: DocumentTable
    ranked: DocumentTable
    way: Way
    dictionary: str
    digest: str


def reference_path(run: Run, way: Way) -> Path:
    """Where a run's reference is, or will be."""
    return run.path(f"{FOLDER}/reference-{way}.safetensors")


def reference_of(run: Run, way: Way, sae: SparseAutoencoder, reporter: Reporter, reader: TextReader | None) -> Reference:
    """A run's reference, made where there is none of this dictionary and of these documents.

    Args:
        run: trained.
        way: how documents are read.
        sae: the dictionary that ships.
        reporter: shows progress.
        reader: reads whole documents; only asked for where the reference is made.

    Raises:
        RunError: it is missing and cannot be made: the run kept no text, its rows are gone, or nothing may be written there.
    """
    path, made_from = reference_path(run, way), _made_from(run)
    known = _notes(path) if path.exists() else {}
    if not known or any(known.get(name) != digest for name, digest in made_from.items()):
        with run.lock():
            write_atomic(path, safetensors.numpy.save(_made(run, way, sae, reporter, reader), {"way": way, **made_from}))
            run.record(path)
    arrays = safetensors.numpy.load_file(path)
    scale, ranked = (DocumentTable.of_arrays(arrays, sae.width, f"{name}.") for name in PARTS)
    return Reference(scale, ranked, way, made_from["dictionary"], sha256_of(path))


def _made_from(run: Run) -> dict[str, str]:
    """Digests of the dictionary and, where the harvest is there, of the documents that the reference is of."""
    try:
        digests = harvest_of(run).digests(f"tokens/{part}/index.json" for part, _ in PARTS.values())
    except KyomeiError:  # a run that was moved without its harvest keeps the reference that it has
        digests = {}
    return {"dictionary": sha256_of(run.path(SHIPPED)), **digests}


def _made(run: Run, way: Way, sae: SparseAutoencoder, reporter: Reporter, reader: TextReader | None) -> dict[str, np.ndarray]:
    """Both tables of a reference, by the names of their columns."""
    arrays: dict[str, np.ndarray] = {}
    for name, (part, most) in PARTS.items():
        with reporter.progress(f"reference: {part}") as progress:
            figures = _packed(run, part, sae, most) if way == "packed" else _whole(run, part, reader, most, progress)
        if not figures:
            raise RunError("documents for the reference", f"none in {part} of {run.folder}", "harvest more text")
        table = DocumentTable.of(figures, sae.width)
        arrays |= {f"{name}.{key}": array for key, array in table.arrays().items()}
    return arrays


def _notes(path: Path) -> Mapping[str, str]:
    """What the header of a reference says."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    notes: Mapping[str, str] = header.get("__metadata__", {})
    return notes


def _packed(run: Run, part: str, sae: SparseAutoencoder, most: int) -> list[DocumentFigures]:
    found = [figures for _, figures in stored_figures(run, part, sae)]
    return [found[i] for i in _spread(len(found), most)]


def _whole(
    run: Run, part: str, reader: TextReader | None, most: int, progress: Callable[[int, int], None]
) -> list[DocumentFigures]:
    tokens: Tokens = tokens_of(run, part)
    if not tokens.has_text:
        do = "watch activations with --activations, or harvest with source.keep_text=true"
        raise RunError("a run that kept the text of its documents", f"token ids alone in {run.folder}", do)
    assert reader is not None
    chosen = _spread(len(tokens.documents), most)
    found = []
    for done, number in enumerate(chosen, start=1):
        figures = reader.read(tokens.documents[number])
        found += [] if figures is None else [figures]
        progress(done, len(chosen))
    return found


def _spread(count: int, most: int) -> list[int]:
    """Numbers below `count`, so many at most, evenly taken."""
    taken: list[int] = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist() if count else []
    return taken
