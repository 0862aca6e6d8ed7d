"""Rows straight from the model: the right ones, in a known order, with a bounded buffer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.threads_as_ranks import Rank, together

import kyomei
from kyomei.config import SourceRecipe
from kyomei.errors import DataError, Interrupted, RecipeError
from kyomei.learning.workplace import Workplace
from kyomei.source.harvest import harvest
from kyomei.source.model import LanguageModel
from kyomei.source.stream import StreamedRows
from kyomei.source.text import Document, Tokens, pack

SITE = "model.layers.1.mlp"
RECIPE = SourceRecipe(sites=(SITE,), context=16, windows_per_batch=3)


@pytest.fixture
def tokens(llama: LanguageModel, documents: list[Document]) -> Tokens:
    return pack(documents, llama.tokenizer, 16, 16 * 18)


@pytest.fixture
def rows(llama: LanguageModel, tokens: Tokens) -> StreamedRows:
    return StreamedRows(llama, tokens, SITE, RECIPE, windows_per_buffer=4)


def test_rows_are_those_that_a_harvest_stores(llama: LanguageModel, tokens: Tokens, rows: StreamedRows, tmp_path: Path) -> None:
    stored = harvest(llama, tokens, tmp_path, RECIPE)[SITE]
    all_stored = stored.read(np.arange(stored.num_rows))
    assert rows.num_buffers == len(tokens.ids) // 4 and rows.rows_per_buffer == int(0.9 * 64)
    where = stored.row_tokens() // (4 * 16)
    for number in range(rows.num_buffers):
        own = all_stored[where == number]
        index = number * rows.rows_per_buffer + np.arange(rows.rows_per_buffer)
        expected = own[np.arange(rows.rows_per_buffer) % len(own)]
        torch.testing.assert_close(rows.read(index), expected)
    mixed = np.array([rows.num_rows - 1, 0, rows.rows_per_buffer, 1])
    torch.testing.assert_close(rows.read(mixed), torch.cat([rows.read(mixed[i : i + 1]) for i in range(4)]))


def test_buffers_follow_one_another_and_two_are_held(rows: StreamedRows) -> None:
    order = rows.order(8, seed=3)
    steps = 2 * rows.num_rows // 8
    seen = np.concatenate([order.indices(step) for step in range(steps)])
    buffers = seen // rows.rows_per_buffer
    changes = np.flatnonzero(np.diff(buffers))
    assert len(changes) == 2 * rows.num_buffers - 1
    first = seen[: rows.rows_per_buffer]
    assert sorted(first) == list(range(rows.rows_per_buffer)) and list(first) != sorted(first)
    for step in range(steps):
        rows.read(order.indices(step))
        assert len(rows._held) <= 3  # two, and the one that a batch across a border leaves


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_read_the_rows_of_one_process_and_run_each_window_once(
    llama: LanguageModel, tokens: Tokens, rows: StreamedRows, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Two passes make a buffer, so of four ranks two have nothing of it; each reads other rows, also of two buffers."""
    order, steps = rows.order(12, seed=3), 17
    expected = [rows.read(order.indices(step), ahead=False) for step in range(steps)]
    sample = rows.sample().read(np.arange(5))
    captured: list[int] = []
    capture = llama.capture
    monkeypatch.setattr(llama, "capture", lambda ids, *rest: (captured.append(len(ids)), capture(ids, *rest))[1])

    def own(rank: Rank) -> list[torch.Tensor]:
        stream = StreamedRows(llama, tokens, SITE, RECIPE, windows_per_buffer=4, ranks=rank)
        part = slice(rank.rank * 12 // size, (rank.rank + 1) * 12 // size)
        read = [stream.read(order.indices(step)[part], ahead=order.goes_on(step, steps)) for step in range(steps)]
        assert max(len(buffer.made) for buffer in stream._buffers.values()) <= 3 * 16, "each holds its own passes"
        assert torch.equal(stream.sample().read(np.arange(5)), sample)
        return read

    for step, parts in enumerate(zip(*together(size, own), strict=True)):
        assert torch.equal(torch.cat(parts), expected[step])
    visited = {int(number) for step in range(steps) for number in order.indices(step) // rows.rows_per_buffer}
    # The last look at the sample runs the first buffer anew.
    assert len(visited) == 4 and sum(captured) == 4 * (len(visited) + 1)


def test_what_bounds_a_training_on_a_stream_is_said(rows: StreamedRows) -> None:
    rows.seconds_waited = 3.0
    assert "the language model bounds it: steps waited for its rows in 3.0 of 10.0 seconds; more processes" in rows.account(10)
    assert "runs behind the steps, which waited for its rows in 3.0 of 40.0 seconds" in rows.account(40)


def test_a_stopped_training_on_a_stream_is_resumed_to_the_same_bytes(
    llama: LanguageModel, tokens: Tokens, rows: StreamedRows, tmp_path: Path
) -> None:
    recipe = kyomei.Recipe.parse(
        {
            "mechanism": {"name": "topk", "k": 4},
            "dictionary": {"width": 64},
            "train": {"steps": 30, "batch_rows": 16, "checkpoint_every": 7, "warmup_steps": 3},
        }
    )
    whole = kyomei.fit(rows, recipe)
    asked = iter([False] * 17 + [True])
    again = StreamedRows(llama, tokens, SITE, RECIPE, windows_per_buffer=4)
    with pytest.raises(Interrupted):
        kyomei.fit(again, recipe, workplace=Workplace(tmp_path, stop=lambda: next(asked)))
    fresh = StreamedRows(llama, tokens, SITE, RECIPE, windows_per_buffer=4)
    resumed = kyomei.fit(fresh, recipe, workplace=Workplace(tmp_path, resume=True))
    for name in ("encoder", "decoder", "threshold", "center"):
        assert torch.equal(getattr(whole, name), getattr(resumed, name)), name


def test_blocks_give_all_rows_and_a_sample_those_of_a_buffer(rows: StreamedRows) -> None:
    assert torch.equal(torch.cat(list(rows.blocks(50))), rows.read(np.arange(rows.num_rows)))
    assert rows.sample().num_rows < rows.num_rows


def test_massive_rows_are_told_by_the_median_that_is_given(llama: LanguageModel, tokens: Tokens, rows: StreamedRows) -> None:
    norms = rows.sample().read(np.arange(rows.sample().num_rows)).norm(dim=1)
    bound = float(norms.sort().values[len(norms) // 2])
    fewer = StreamedRows(llama, tokens, SITE, RECIPE, windows_per_buffer=4, median_norm=bound / RECIPE.norm_bound)
    assert fewer.sample().num_rows == int((norms <= bound).sum()) < len(norms)


def test_a_stream_is_normalised_as_the_rows_that_latents_are_placed_by(rows: StreamedRows) -> None:
    stored = rows.sample().read(np.arange(rows.sample().num_rows)) * 2 + 3
    values = {"mechanism.name": "topk", "mechanism.k": 4, "dictionary.width": 64, "train.steps": 0}
    given = kyomei.fit(stored, kyomei.Recipe().with_values(values), stream=rows)
    torch.testing.assert_close(given.center, stored.mean(dim=0), rtol=1e-4, atol=1e-4)


def test_what_a_stream_cannot_do_is_said(llama: LanguageModel, tokens: Tokens, rows: StreamedRows) -> None:
    with pytest.raises(RecipeError, match=r"stored rows for a resonant start.*a stream.*[Hh]arvest"):
        kyomei.fit(rows, kyomei.Recipe())
    with pytest.raises(RecipeError, match=r"detectors.*a stream"):
        kyomei.fit(rows, kyomei.Recipe().with_values({"mechanism.name": "topk", "mechanism.detectors": True}))
    with pytest.raises(DataError, match="at least 400 windows"):
        StreamedRows(llama, tokens, SITE, RECIPE, windows_per_buffer=400)
    with pytest.raises(DataError, match="row numbers from 0"):
        rows.read(np.array([rows.num_rows]))


def test_a_value_that_is_not_finite_is_named_instead_of_dropped(rows: StreamedRows, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = rows.model.capture

    def broken(ids: torch.Tensor, *args: object) -> dict[str, torch.Tensor]:
        found = capture(ids, *args)  # type: ignore[arg-type]
        found[SITE][:, -1, 0] = torch.nan
        return found

    monkeypatch.setattr(rows.model, "capture", broken)
    with pytest.raises(DataError, match=r"buffer \d of 'model\.layers\.1\.mlp'"):
        rows.read(np.arange(rows.num_rows))
