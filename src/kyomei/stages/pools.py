"""Labelled documents of a goal, encoded once: pooled activations, shard by shard, that are kept beside the run's goals."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from scipy.sparse import csc_matrix, csr_matrix, vstack

from kyomei.atomic import write_atomic
from kyomei.dictionary.formats import load
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError, RunError
from kyomei.evidence.goals.pooling import POOLINGS, Pool, Pooling
from kyomei.evidence.goals.telling import Pools
from kyomei.runs import Run
from kyomei.source.labelled import LabelledFile, Labels, digest_of
from kyomei.source.model import LanguageModel
from kyomei.source.passages import Passages
from kyomei.source.text import Document
from kyomei.stages.arms import Pair, trained_pairs
from kyomei.stages.certify import standing
from kyomei.stages.encode import code_of
from kyomei.stages.harvested import activations, site_of
from kyomei.stages.progress import Reporter

FOLDER = "goals"
"""Where pooled activations are, in a run's folder; without them, documents are encoded again."""
SHARD_DOCUMENTS = 256
_ROWS, _TOKENS, _INDEX, _TEXTS = "rows", "tokens", "index.json", "texts"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Subject:
    """A certified dictionary, and the same features in the replicas that test it.

    Attributes:
        run: it is of.
        pair: which of the run's dictionaries.
        features: what the certificate says of every certified feature.
    """

    run: Run
    pair: Pair
    features: list[dict[str, Any]]

    @classmethod
    def of(cls, run: Run, name: str | None = None) -> Subject:
        """A dictionary of a run.

        Args:
            run: certified.
            name: such as "imported-NAME-0"; none: the run's own.

        Raises:
            RunError: no such dictionary, no certificate that holds, or nothing certified.
        """
        pairs = {pair.places[0].replace("/", "-"): pair for pair in trained_pairs(run)}
        chosen = next(iter(pairs)) if name is None else name
        if chosen not in pairs:
            do = "choose one; other replicas have no certificate of their own"
            raise RunError(f"a dictionary that ships: {', '.join(pairs)}", f"'{chosen}'", do)
        certificate = standing(run, pairs[chosen])
        if certificate is None:
            found = f"none that holds for {pairs[chosen].places[0]} in {run.folder}"
            raise RunError("a certificate", found, f"run `kyomei certify {run.folder}` first")
        features = certificate.having("certified")
        if not features:
            found = f"none among {certificate.width:,} latents of {pairs[chosen].places[0]}"
            raise RunError("certified features", found, "give more text or train longer: `kyomei check` says what is missing")
        return cls(run, pairs[chosen], features)

    @property
    def latents(self) -> list[int]:
        """Numbers of the certified features."""
        return [feature["index"] for feature in self.features]

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the dictionary's file, then of the replicas', by folder."""
        found = self.run.digests(f"{place}/sae.safetensors" for place in self.pair.places)
        return {name.removesuffix("/sae.safetensors"): value for name, value in found.items()}

    @property
    def bound(self) -> float:
        """Norm above which the run's harvest dropped a row."""
        median = activations(self.run, "replica-0", verify=False).meta.get("median_norm")
        return math.inf if median is None else self.run.recipe.source.norm_bound * float(median)

    def columns(self) -> dict[str, list[int]]:
        """By folder of a dictionary its latents that are the certified features, in their order."""
        own, *others = self.pair.places
        partners = {place: [feature["partner"][at] for feature in self.features] for at, place in enumerate(others)}
        return {own: self.latents, **partners}


def holding(run: Run, texts: Collection[str] | None) -> set[str]:
    """The folders of encoded text, by name, that hold one of some texts; one that does not say what it holds may.

    Args:
        run: whose goals they are.
        texts: SHA-256 of each; none: nobody knows them, and any folder may hold them.
    """
    found = set()
    for path in run.path(FOLDER).glob(f"*/{_INDEX}"):
        held = json.loads(path.read_bytes()).get(_TEXTS)
        if texts is None or held is None or not set(texts).isdisjoint(held):
            found.add(path.parent.name)
    return found


def is_held(run: Run, key: str | None) -> bool:
    """Whether a folder of encoded text is there; one whose encoding has only begun is."""
    return key is not None and run.path(f"{FOLDER}/{key}/{_INDEX}").exists()


def pools_of(
    subject: Subject, file: LabelledFile, labels: Labels, model: LanguageModel, reporter: Reporter
) -> tuple[Pools, str]:
    """Pooled activations of all texts of a file, in the order of `labels`; what an earlier attempt encoded is read back.

    Returns:
        The pools, and the name of the folder that keeps them.

    Raises:
        DataError: the dictionary is of another dimension than the site, or the file changes meanwhile.
    """
    key = _key(subject, labels, model)
    folder = subject.run.path(f"{FOLDER}/{key}")
    source, count = subject.run.recipe.source, len(labels.texts)
    columns = subject.columns()
    saes = {place: load(subject.run.path(place)).to(model.device) for place in columns}
    passages = Passages(model, site_of(subject.run), source, subject.bound)
    # The texts' digests are for `kyomei forget`: what is encoded does not say whose it is.
    held = {"file": file.path.name, "dictionaries": subject.digests, _TEXTS: labels.texts}
    write_atomic(folder / _INDEX, json.dumps(held, indent=1).encode())
    stream, shards = _distinct(file), []
    with reporter.progress("encoding labelled text") as tick:
        for first in range(0, count, SHARD_DOCUMENTS):
            tick(first, count)
            documents = list(itertools.islice(stream, min(SHARD_DOCUMENTS, count - first)))
            if [digest_of(d.text) for d in documents] != labels.texts[first : first + SHARD_DOCUMENTS]:
                raise DataError(f"{file.path} as it was a moment ago", "other text in it", "leave it alone meanwhile")
            path = folder / f"shard-{first // SHARD_DOCUMENTS:05d}.safetensors"
            if not path.exists():
                encoded = _encoded(documents, passages, saes, columns)
                write_atomic(path, safetensors.numpy.save(encoded))
            shards.append(safetensors.numpy.load_file(path))
        tick(count, count)
    return _joined(shards, list(columns)), key


def _key(subject: Subject, labels: Labels, model: LanguageModel) -> str:
    """What the encoded texts are known by: everything that they depend on."""
    source = subject.run.recipe.source.model_dump(mode="json", include={"side", "context", "force_bos", "drop_special"})
    place = [site_of(subject.run), model.fingerprint(), source, subject.bound]
    rests = [_VERSION, labels.texts, subject.digests, subject.columns(), place]
    return hashlib.sha256(json.dumps(rests, sort_keys=True).encode()).hexdigest()[:16]


def _distinct(file: LabelledFile) -> Iterator[Document]:
    """Every text once, where it first comes."""
    seen = set[str]()
    for document, _ in file.records():
        digest = digest_of(document.text)
        if digest not in seen:
            seen.add(digest)
            yield document


@torch.no_grad()
def _encoded(
    documents: Iterable[Document],
    passages: Passages,
    saes: Mapping[str, SparseAutoencoder],
    columns: Mapping[str, Sequence[int]],
) -> dict[str, np.ndarray]:
    """One shard: for each dictionary and pooling a sparse matrix, and the same of activations and of tokens."""
    lines: dict[str, list[np.ndarray]] = {}
    vocabulary = len(passages.model.tokenizer)
    for batch in passages.batches(documents):
        pools = [{name: Pool() for name in (*saes, _ROWS)} for _ in batch]
        for passage in passages.read(batch):
            kept, own = passage.kept, pools[passage.text]
            own[_ROWS].add(passage.rows[kept])
            for name, sae in saes.items():
                own[name].add(code_of(sae, passages.site, passage)[kept][:, columns[name]])
        dim = next(iter(saes.values())).dim
        for encoded, own in zip(batch, pools, strict=True):
            for name, pool in own.items():
                width = dim if name == _ROWS else len(columns[name])
                for pooling in POOLINGS:
                    lines.setdefault(f"{name}:{pooling}", []).append(pool.pooled(pooling, width).numpy())
            counts = np.bincount(encoded.ids, minlength=vocabulary).astype(np.float32)
            lines.setdefault(_TOKENS, []).append(csr_matrix(counts))
    found: dict[str, np.ndarray] = {}
    for name, rows in lines.items():
        if name.startswith(_ROWS):
            found[name] = np.stack(rows)
        else:
            matrix = vstack(rows, format="csr") if name == _TOKENS else csr_matrix(np.stack(rows))
            shape = np.array(matrix.shape, dtype=np.int64)
            found |= {f"{name}:data": matrix.data, f"{name}:indices": matrix.indices.astype(np.int32)}
            found |= {f"{name}:indptr": matrix.indptr.astype(np.int64), f"{name}:shape": shape}
    return found


def _joined(shards: Sequence[Mapping[str, np.ndarray]], places: Sequence[str]) -> Pools:
    def sparse(name: str) -> csr_matrix:
        parts = [
            csr_matrix((s[f"{name}:data"], s[f"{name}:indices"], s[f"{name}:indptr"]), shape=tuple(s[f"{name}:shape"]))
            for s in shards
        ]
        return vstack(parts, format="csr")

    def pooled(place: str) -> dict[Pooling, csc_matrix]:
        return {pooling: csc_matrix(sparse(f"{place}:{pooling}")) for pooling in POOLINGS}

    own, *others = places
    rows = {pooling: np.concatenate([s[f"{_ROWS}:{pooling}"] for s in shards]) for pooling in POOLINGS}
    return Pools(pooled(own), {place: pooled(place) for place in others}, rows, sparse(_TOKENS))
