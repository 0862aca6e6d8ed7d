"""Text and a language model to activation shards, one part per replica and one for evidence."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kyomei.config import Recipe
from kyomei.errors import DataError
from kyomei.learning.fit import choose_device
from kyomei.learning.mesh import Mesh
from kyomei.provenance import processes
from kyomei.runs import Run, claim_of, refuse_taken
from kyomei.source.corpus import Corpus
from kyomei.source.harvest import harvest
from kyomei.source.model import LanguageModel
from kyomei.source.parts import Split, split_tokens
from kyomei.source.ranks import Ranks
from kyomei.source.records import Fields
from kyomei.source.stream import StreamedRows
from kyomei.source.text import Document, Packer, Tokens
from kyomei.source.trial import try_sites
from kyomei.stages.harvested import STAGE, activations, digests_by_index, part_names, site_of, sites_of, tokens_of
from kyomei.stages.named import note_names
from kyomei.stages.progress import Reporter
from kyomei.stores import Store


@dataclass(frozen=True)
class Source:
    """What a harvest reads.

    Attributes:
        model: where activations come from.
        sites: its modules, the one that the run learns from first.
        tokens: packed windows by part, and by name those that training streams.
        corpus: what was read and skipped for them, and a digest of it; none where they were read back.
    """

    model: LanguageModel
    sites: tuple[str, ...]
    tokens: dict[str, Tokens]
    corpus: dict[str, Any] | None = None


def open_source(recipe: Recipe, reporter: Reporter, written: Store | None = None) -> Source:
    """Load the model, look its sites up, pack the text and try the sites on two windows; nothing is written.

    Args:
        recipe: which model, sites and text.
        reporter: says where activations come from.
        written: where an earlier attempt wrote tokens; they are read back if they are complete.

    Raises:
        ModelError: the model is missing or unusable, its windows are shorter, or a site is unknown or unusable.
        DataError: the text is missing, unreadable or too short.
    """
    model = load_model(recipe, recipe.source.sites)
    sites = recipe.source.sites or (model.default_site(),)
    model.require_sites(sites)
    model.require_context(recipe.source.context)
    extent = "" if model.part is None else f", {model.part.depth}"
    reporter.note(f"{model.name}{extent}: {', '.join(sites)} ({recipe.source.side}) on {model.device}, {recipe.dtype}")
    names = [*_stream_names(recipe), *part_names(recipe)]
    if written is not None and all(written.has(f"{name}/index.json") for name in names):
        source = Source(model, sites, {name: Tokens.load(written / name) for name in names})
    else:
        source = Source(model, sites, *_packed(recipe, model, reporter))
    for note in try_sites(model, source.tokens["evidence"].ids, sites, recipe.source.side).notes():
        reporter.note(note)
    return source


def harvested_run(
    folder: Path,
    recipe: Recipe,
    reporter: Reporter,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
    facts: Mapping[str, Any] | None = None,
) -> Run:
    """A run and its activations, made where they are not there yet.

    A refusal leaves things as they were: a new run is begun, and an old one deleted, once model, sites and text are open.

    Args:
        folder, recipe, resume, overwrite, command, facts: as `Run.create` takes them.
        reporter: shows progress; on a mesh, all its ranks harvest together.
    """
    mesh, alone = reporter.mesh, reporter.by_itself

    def find() -> Run | None:
        return Run.find(folder, recipe, resume=resume, overwrite=overwrite)

    def begin() -> Source:
        refuse_taken(recipe, claim_of(folder) if overwrite else None)
        source = open_source(recipe, alone)
        Run.create(folder, recipe, resume=resume, overwrite=overwrite, command=command, facts=facts)
        return source

    there = mesh.first(find)
    is_new, is_done = mesh.tell((there is None, there is not None and there.done(STAGE)))[0]
    # The others load the model while the leading rank reads the text.
    model = None if is_done or mesh.leads else load_model(recipe, recipe.source.sites)
    source = mesh.first(begin) if is_new else None
    run = there or Run.open(folder)
    if not is_done:
        with run.lock() if mesh.leads else contextlib.nullcontext():
            mesh.wait()
            harvest_run(run, reporter, source, model)
    return run


@contextlib.contextmanager
def ranks_of(recipe: Recipe, reporter: Reporter) -> Iterator[Reporter]:
    """The reporter of this process among those that torchrun started to harvest together; they part when the block ends."""
    if processes() == 1:
        yield reporter
        return
    mesh = Mesh.side_by_side(choose_device(recipe.device))
    yield reporter.on(mesh)
    mesh.leave()


def harvest_run(
    run: Run, reporter: Reporter, source: Source | None = None, model: LanguageModel | None = None
) -> dict[str, Any]:
    """Tokens and activations of every part; what is complete is kept, and what another folder has is looked up there.

    Args:
        run: where they go, unless it learns from a harvest in another folder.
        reporter: shows progress; on a mesh, all its ranks harvest together.
        source: what is harvested; none: opened as the recipe says, where anything is missing.
        model: that of a rank that did not open the source; none: loaded where it is needed.

    Returns:
        Facts for the summary: rows and dropped rows of each part at each site.
    """
    mesh = reporter.mesh
    if not mesh.tell(run.done(STAGE))[0]:
        source = mesh.first(lambda: _prepared(run, reporter.by_itself, source)) or _read_back(run, model)
        for part in part_names(run.recipe):
            with reporter.progress(f"harvest {part}") as progress:
                folder = run.store / f"activations/{part}"
                harvest(source.model, source.tokens[part], folder, run.recipe.source, progress=progress, ranks=mesh)
        mesh.first(lambda: _finish(run, source))
    return summary(run)


def _prepared(run: Run, reporter: Reporter, source: Source | None) -> Source:
    """What is harvested, with its tokens in the run's folder."""
    recipe = run.recipe
    reporter.note_threads(run)
    run.claim()
    source = source or open_source(recipe, reporter, run.store / "tokens")
    if recipe.source.keep_text:
        do = "source.keep_text=false keeps token ids instead"
        whose = "for you alone to read" if run.store.is_here else "for whoever can read that address"
        reporter.note(f"{run.store / 'tokens'} holds the text of whole documents, {whose}; {do}")
    if source.corpus is not None:
        run.note(corpus=source.corpus)
    named = {"name": source.model.name, "revision": recipe.source.revision, "weights": source.model.fingerprint()}
    run.note(model=named)
    _save_tokens(run, source.tokens)
    return source


def _read_back(run: Run, model: LanguageModel | None) -> Source:
    """The same on a rank that did not prepare it."""
    model = model or load_model(run.recipe, run.recipe.source.sites)
    tokens = {part: Tokens.load(run.store / f"tokens/{part}") for part in part_names(run.recipe)}
    return Source(model, run.recipe.source.sites or (model.default_site(),), tokens)


def _finish(run: Run, source: Source) -> None:
    parts = part_names(run.recipe)
    if run.store.is_here:
        run.record(*(f"activations/{part}" for part in parts), "tokens")
    else:
        run.note(outputs=dict(sorted({**run.manifest["outputs"], **digests_by_index(run.store)}.items())))
    split = {part: [d.name for d in source.tokens[part].documents] for part in parts}
    run.note(sites=list(source.sites), split=split)
    note_names(run)
    run.finish(STAGE)


def load_model(recipe: Recipe, sites: Sequence[str] | None = None) -> LanguageModel:
    """The recipe's language model, on the device and in the precision it asks for.

    Args:
        recipe: which model.
        sites: that are captured, the default if empty: layers behind them need not be loaded; none: all are.
    """
    return LanguageModel.load(**_which_model(recipe, sites))


def _which_model(recipe: Recipe, sites: Sequence[str] | None) -> dict[str, Any]:
    source = recipe.source
    return {
        "name": source.model,
        "revision": source.revision,
        "device": choose_device(recipe.device),
        "dtype": torch.bfloat16 if recipe.dtype == "bfloat16" else torch.float32,
        "random_weights_seed": source.random_weights_seed,
        "all_devices": source.devices == "all",
        "sites": sites,
    }


_kept_model = functools.lru_cache(maxsize=1)(LanguageModel.load)
"""The same, loaded once for all replicas that stream from it."""


def streamed(run: Run, replica: int, ranks: Ranks) -> StreamedRows | None:
    """Rows of a replica's documents that training steps read straight from the model; none where they read stored ones.

    Args:
        run: harvested.
        replica: whose documents.
        ranks: processes that train together: each runs its share of the model's passes.
    """
    source = run.recipe.source
    if not source.streamed_tokens:
        return None
    tokens = tokens_of(run, _stream_names(run.recipe)[replica])
    buffer = min(source.windows_per_shard, len(tokens.ids))
    # A massive row is one for the stream where it is one for what was stored.
    median_norm = activations(run, f"replica-{replica}", verify=False).meta["median_norm"]
    site = site_of(run)
    model = _kept_model(**_which_model(run.recipe, (site,)))
    return StreamedRows(model, tokens, site, source, buffer, median_norm, ranks=ranks)


def _stream_names(recipe: Recipe) -> list[str]:
    """Names of the tokens that each replica's training streams; none where it reads stored rows."""
    return [f"stream-{i}" for i in range(recipe.source.replicas)] if recipe.source.streamed_tokens else []


def summary(run: Run) -> dict[str, Any]:
    """Width of each site, and rows and dropped rows of each part there; "site" is the first of them."""
    sites: dict[str, Any] = {}
    for site in sites_of(run):
        parts = {}
        for part in part_names(run.recipe):
            shards = activations(run, part, site=site, verify=False)
            dropped = {key: count for key, count in shards.meta.items() if key.startswith("dropped")}
            parts[part] = {"rows": shards.num_rows, **dropped}
        sites[site] = {"dim": shards.dim, "parts": parts}
    return {"site": next(iter(sites)), "sites": sites}


def _save_tokens(run: Run, tokens: dict[str, Tokens]) -> None:
    """Write the tokens of every part, unless all of them are there."""
    store = run.store / "tokens"
    if not all(store.has(f"{name}/index.json") for name in tokens):
        for name in tokens:
            store.clear(name)
            tokens[name].save(store / name, keep_text=run.recipe.source.keep_text)


def _packed(recipe: Recipe, model: LanguageModel, reporter: Reporter) -> tuple[dict[str, Tokens], dict[str, Any]]:
    """Windows of every part, and of what training streams of it, thinned from the same text; and what was read and skipped."""
    source = recipe.source
    packer = Packer(model.tokenizer, source.context, source.force_bos)
    fields = Fields(source.text_field, source.group_field)
    skip, begins = source.skip_bad_records, packer.begins_with_bos
    corpus = Corpus(source.text, fields, model.tokenizer, recipe.seed, skip_bad_records=skip, strip_bos=begins)
    split = Split(source.replicas, source.evidence_share, recipe.seed, corpus.marks_held_out)
    stored = {part: max(1, round(source.num_tokens * split.share(part))) for part in split.names}
    streamed_tokens = dict.fromkeys(split.names[: len(_stream_names(recipe))], round(source.streamed_tokens / source.replicas))
    wanted = {part: max(source.spread * stored[part], streamed_tokens.get(part, 0)) for part in split.names}
    try:
        with reporter.progress("read text") as progress:
            everything = split_tokens(_until_asked(corpus, reporter), packer, split, stored, wanted, progress)
    except DataError as error:
        if not corpus.log.documents:
            raise
        raise DataError(error.expected, f"{error.found}, in {corpus.log}", error.do) from error
    reporter.note(f"text: {corpus.log}")
    packed = {part: everything[part].thinned(max(1, tokens // source.context)) for part, tokens in stored.items()}
    for name, (part, tokens) in zip(_stream_names(recipe), streamed_tokens.items(), strict=True):
        packed[name] = everything[part].thinned(max(1, tokens // source.context))
    return packed, corpus.log.to_dict()


def _until_asked(corpus: Corpus, reporter: Reporter) -> Iterator[Document]:
    """The documents, until the user asks for a stop."""
    for document in corpus:
        reporter.leave_if_asked("reading the text")
        yield document
