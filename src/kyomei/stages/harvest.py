"""Text and a language model to activation shards, one part per replica and one for evidence."""

from __future__ import annotations

import shutil
from typing import Any

import torch

from kyomei.config import Recipe
from kyomei.errors import DataError
from kyomei.learning.fit import choose_device
from kyomei.runs import Run
from kyomei.source.harvest import harvest
from kyomei.source.model import LanguageModel
from kyomei.source.shards import ShardFolder
from kyomei.source.stream import StreamedRows
from kyomei.source.text import Tokens, pack, read_documents, split_documents
from kyomei.stages.progress import Reporter

STAGE = "harvest"


def part_names(recipe: Recipe) -> list[str]:
    """Names of the parts of the documents, replicas first."""
    return [f"replica-{i}" for i in range(recipe.source.replicas)] + ["evidence"]


def harvest_run(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Tokens and activations of every part; what is complete is kept.

    Returns:
        Facts for the summary: sites, rows and dropped rows of each part.
    """
    recipe = run.recipe
    if not run.done(STAGE):
        model = load_model(recipe)
        sites = recipe.source.sites or (model.default_site(),)
        reporter.note(f"{model.name}: {', '.join(sites)} ({recipe.source.side}) on {model.device}, {recipe.dtype}")
        tokens = _tokens(run, model)
        for part, packed in tokens.items():
            with reporter.progress(f"harvest {part}") as progress:
                shards = harvest(
                    model, packed, run.path(f"activations/{part}"), recipe.source, stop=reporter.stop, progress=progress
                )
            run.record(f"tokens/{part}", *(f"activations/{part}/{site}" for site in shards))
        run.record(*(f"tokens/{part}" for part in _stream_names(recipe)))
        run.note(sites=list(sites), split={part: [d.name for d in packed.documents] for part, packed in tokens.items()})
        run.finish(STAGE)
    return summary(run)


def load_model(recipe: Recipe) -> LanguageModel:
    """The recipe's language model, on the device and in the precision it asks for."""
    dtype = torch.bfloat16 if recipe.dtype == "bfloat16" else torch.float32
    device = choose_device(recipe.device)
    source = recipe.source
    seed = source.random_weights_seed
    return LanguageModel.load(source.model, revision=source.revision, device=device, dtype=dtype, random_weights_seed=seed)


def site_of(run: Run) -> str:
    """The site whose activations the run learns from: the first one harvested."""
    site: str = run.manifest["sites"][0]
    return site


def activations(run: Run, part: str, *, verify: bool = True) -> ShardFolder:
    """The shards of a part at the run's site."""
    return ShardFolder(run.path(f"activations/{part}/{site_of(run)}"), verify=verify)


def streamed(run: Run, replica: int) -> StreamedRows | None:
    """Rows of a replica's documents that training steps read straight from the model; none where they read stored ones."""
    source = run.recipe.source
    if not source.streamed_tokens:
        return None
    tokens = Tokens.load(run.path(f"tokens/{_stream_names(run.recipe)[replica]}"))
    buffer = min(source.windows_per_shard, len(tokens.ids))
    return StreamedRows(load_model(run.recipe), tokens, site_of(run), source, windows_per_buffer=buffer)


def _stream_names(recipe: Recipe) -> list[str]:
    """Names of the tokens that each replica's training streams; none where it reads stored rows."""
    return [f"stream-{i}" for i in range(recipe.source.replicas)] if recipe.source.streamed_tokens else []


def summary(run: Run) -> dict[str, Any]:
    """Rows and dropped rows of each part."""
    facts: dict[str, Any] = {"site": site_of(run), "parts": {}}
    for part in part_names(run.recipe):
        shards = activations(run, part, verify=False)
        facts["dim"] = shards.dim
        facts["parts"][part] = {"rows": shards.num_rows, **{k: v for k, v in shards.meta.items() if k.startswith("dropped")}}
    return facts


def _tokens(run: Run, model: LanguageModel) -> dict[str, Tokens]:
    """Packed windows of every part, read back if an earlier attempt wrote them; those to be streamed are written beside."""
    source = run.recipe.source
    names = part_names(run.recipe)
    streams = _stream_names(run.recipe)
    if all(run.path(f"tokens/{part}/index.json").exists() for part in (*streams, *names)):
        return {part: Tokens.load(run.path(f"tokens/{part}")) for part in names}
    documents = list(read_documents(source.text, source.text_field, model.tokenizer))
    parts = split_documents(documents, source.replicas, source.evidence_share, run.recipe.seed)
    share = {part: (1 - source.evidence_share) / source.replicas for part in names} | {"evidence": source.evidence_share}
    stream_of = dict(zip(names, streams, strict=False))
    packed = {}
    for part in names:
        asked = {part: max(1, round(source.num_tokens * share[part]))}
        if part in stream_of:
            asked[stream_of[part]] = round(source.streamed_tokens / source.replicas)
        try:
            everything = pack(parts[part], model.tokenizer, source.context, max(source.spread * asked[part], *asked.values()))
        except DataError as error:
            found = f"{error.found}, in part '{part}' of {len(documents)} documents"
            raise DataError(error.expected, found, error.do) from error
        for name, tokens in asked.items():
            packed[name] = everything.thinned(max(1, tokens // source.context))
            folder = run.path(f"tokens/{name}")
            shutil.rmtree(folder, ignore_errors=True)
            packed[name].save(folder)
    return {part: packed[part] for part in names}
