"""The harvest: right rows, counted losses, and the same bytes however often it was disturbed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.threads_as_ranks import Rank, together

from kyomei.config import SourceRecipe
from kyomei.errors import DataError, ModelError, RunError
from kyomei.signals import Stop
from kyomei.source.harvest import harvest
from kyomei.source.model import LanguageModel
from kyomei.source.shards import ShardFolder
from kyomei.source.text import Document, Tokens, pack

SITES = ("model.layers.0.mlp", "model.layers.1.mlp")
RECIPE = SourceRecipe(sites=SITES, context=16, windows_per_batch=3, windows_per_shard=5)
NUM_SHARDS = 4


@pytest.fixture
def tokens(llama: LanguageModel, documents: list[Document]) -> Tokens:
    return pack(documents, llama.tokenizer, 16, 16 * 18)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_rows_are_the_activations_of_ordinary_tokens(llama: LanguageModel, tokens: Tokens, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folders = harvest(llama, tokens, tmp_path, RECIPE, progress=lambda done, total: seen.append((done, total)))
    assert tuple(folders) == SITES
    assert seen == [(80, 288), (160, 288), (240, 288), (288, 288)]
    ordinary = (tokens.document >= 0).flatten()
    expected = llama.capture(tokens.ids, SITES)
    for site, folder in folders.items():
        assert str(folder.store) == str(tmp_path / site)
        where = folder.row_tokens()
        assert np.array_equal(where, ordinary.nonzero().flatten().numpy())
        rows = folder.read(np.arange(folder.num_rows))
        assert torch.allclose(rows, expected[site].flatten(0, 1)[where], atol=1e-6)
        assert folder.meta["dropped_special"] == int((~ordinary).sum()) > 18
        assert folder.meta["dropped_norm"] == 0
    reopened = ShardFolder(tmp_path / SITES[0])
    assert reopened.num_rows == folders[SITES[0]].num_rows


def test_the_site_is_the_middle_mlp_unless_named(llama: LanguageModel, tokens: Tokens, tmp_path: Path) -> None:
    assert list(harvest(llama, tokens, tmp_path, SourceRecipe(context=16))) == ["model.layers.1.mlp"]


def test_the_input_of_a_site_can_be_harvested(llama: LanguageModel, tokens: Tokens, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"side": "input"})
    folder = harvest(llama, tokens, tmp_path, recipe)[SITES[1]]
    rows = llama.capture(tokens.ids, SITES, "input")[SITES[1]].flatten(0, 1)
    assert torch.allclose(folder.read(np.arange(folder.num_rows)), rows[folder.row_tokens()], atol=1e-6)


def test_special_tokens_can_be_kept(llama: LanguageModel, tokens: Tokens, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"drop_special": False})
    folder = harvest(llama, tokens, tmp_path, recipe)[SITES[0]]
    assert folder.num_rows == tokens.num_tokens
    assert folder.meta["dropped_special"] == 0


def test_a_special_token_written_out_in_the_text_is_dropped_too(llama: LanguageModel, tmp_path: Path) -> None:
    tokens = pack([Document("a", "the cat<|end|>sat on the mat " * 20)], llama.tokenizer, 16, 160)
    inside = int(((tokens.ids == llama.tokenizer.eos_token_id) & (tokens.document >= 0)).sum())
    folder = harvest(llama, tokens, tmp_path, RECIPE)[SITES[0]]
    assert inside > 0
    assert folder.meta["dropped_special"] == inside + int((tokens.document < 0).sum())


def altered(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let `change` alter what the model gives."""
    capture = llama.capture

    def changed(ids: torch.Tensor, *arguments: Any) -> dict[str, torch.Tensor]:
        captured = capture(ids, *arguments)
        for x in captured.values():
            change(ids, x)
        return captured

    monkeypatch.setattr(llama, "capture", changed)


def test_massive_rows_are_dropped_and_counted(
    llama: LanguageModel, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blow_up(ids: torch.Tensor, x: torch.Tensor) -> None:
        x[:, 7] *= 1000

    altered(llama, monkeypatch, blow_up)
    folder = harvest(llama, tokens, tmp_path, RECIPE)[SITES[0]]
    massive = int((tokens.document[:, 7] >= 0).sum())
    assert folder.meta["dropped_norm"] == massive > 0
    assert not (folder.row_tokens() % 16 == 7).any()
    assert folder.meta["dropped_norm"] + folder.meta["dropped_special"] + folder.num_rows == tokens.num_tokens


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("shard", [0, 2])
def test_a_value_that_is_not_finite_names_shard_and_row(
    llama: LanguageModel, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, shard: int
) -> None:
    window = shard * 5 + 4
    bad = tokens.ids[window]
    position = int((tokens.document[window] >= 0).nonzero()[-1])

    def spoil(ids: torch.Tensor, x: torch.Tensor) -> None:
        hit = (ids == bad).all(dim=1)
        x[hit, position, 3] = value
        x[:, 0] = value  # special tokens are dropped before anyone looks

    altered(llama, monkeypatch, spoil)
    ordinary = (tokens.document >= 0).flatten()
    row = int(ordinary[shard * 80 : window * 16 + position].sum())
    with pytest.raises(DataError, match=rf"Found {value} in shard {shard} of '{SITES[0]}', row {row}, .* Run the model in"):
        harvest(llama, tokens, tmp_path, RECIPE)


def test_a_site_of_zeros_is_refused(
    llama: LanguageModel, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    altered(llama, monkeypatch, lambda ids, x: x.zero_())
    with pytest.raises(DataError, match=rf"activations at '{SITES[0]}'. Found a median norm of 0.0"):
        harvest(llama, tokens, tmp_path, RECIPE)


def test_an_unknown_site_is_refused_before_anything_is_written(llama: LanguageModel, tokens: Tokens, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"sites": ("model.layers.1.mpl",)})
    with pytest.raises(ModelError, match=r"Found 'model.layers.1.mpl', .* near one: model.layers.1.mlp"):
        harvest(llama, tokens, tmp_path, recipe)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_rows_are_stored_as_asked(llama: LanguageModel, tokens: Tokens, tmp_path: Path, dtype: str) -> None:
    folder = harvest(llama, tokens, tmp_path, RECIPE.model_copy(update={"dtype": dtype}))[SITES[0]]
    rows = llama.capture(tokens.ids, SITES)[SITES[0]].flatten(0, 1)[folder.row_tokens()]
    assert torch.allclose(folder.read(np.arange(folder.num_rows)), rows, rtol=1e-2, atol=1e-5)


def test_a_signal_leaves_a_harvest_that_goes_on(llama: LanguageModel, tokens: Tokens, tmp_path: Path) -> None:
    """What was being written when the signal came is written."""
    harvest(llama, tokens, tmp_path / "undisturbed", RECIPE)
    disturbed = tmp_path / "disturbed"
    for shards in range(1, NUM_SHARDS):

        def progress(done: int, total: int, shards: int = shards) -> None:
            if done * NUM_SHARDS >= shards * total:
                raise Stop

        with pytest.raises(Stop):
            harvest(llama, tokens, disturbed, RECIPE, progress=progress)
        assert not (disturbed / SITES[0] / "index.json").exists()
        assert len(list((disturbed / SITES[0]).glob("shard-*"))) == shards
    harvest(llama, tokens, disturbed, RECIPE)
    assert contents(disturbed) == contents(tmp_path / "undisturbed")


def count_captures(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[str]]]:
    captured: list[tuple[int, list[str]]] = []
    capture = llama.capture

    def counted(ids: torch.Tensor, sites: list[str], side: Any) -> dict[str, torch.Tensor]:
        captured.append((len(ids), list(sites)))
        return capture(ids, sites, side)

    monkeypatch.setattr(llama, "capture", counted)
    return captured


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_write_the_bytes_of_one_process_and_run_each_window_once(
    llama: LanguageModel, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    harvest(llama, tokens, tmp_path / "one", RECIPE)
    captured = count_captures(llama, monkeypatch)
    seen: dict[int, list[int]] = {rank: [] for rank in range(size)}

    def own(rank: Rank) -> dict[str, ShardFolder]:
        return harvest(
            llama, tokens, tmp_path / "many", RECIPE, ranks=rank, progress=lambda done, _: seen[rank.rank].append(done)
        )

    folders = together(size, own)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert sum(windows for windows, _ in captured) == len(tokens.ids)
    assert [folder[SITES[0]].num_rows for folder in folders] == [folders[0][SITES[0]].num_rows] * size
    assert [len(done) for done in seen.values()] == [len(range(rank, NUM_SHARDS, size)) for rank in range(size)]
    assert max(map(max, seen.values())) == tokens.num_tokens


def test_a_lost_rank_costs_its_shard_and_any_number_of_ranks_goes_on(
    llama: LanguageModel, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three ranks, one of which is lost after its first shard; then two, one of which is lost before it; then one."""
    recipe = RECIPE.model_copy(update={"windows_per_shard": 2})
    harvest(llama, tokens, tmp_path / "one", recipe)
    many = tmp_path / "many"

    def lost(at: int) -> Any:
        def own(rank: Rank) -> None:
            def progress(done: int, total: int) -> None:
                if rank.rank == rank.size - 1 and done >= at * 32:
                    raise Stop

            harvest(llama, tokens, many, recipe, ranks=rank, progress=progress)

        return own

    for size, at in ((3, 3), (2, 1)):
        with pytest.raises(Stop):
            together(size, lost(at))
        assert not (many / SITES[0] / "index.json").exists()
    # What was killed in the middle of a file leaves its temporary one.
    (many / SITES[0] / ".shard-00007.safetensors.123.tmp").write_bytes(b"half")
    before = {path.name for path in (many / SITES[0]).glob("shard-*")}
    assert 4 < len(before) < 9
    captured = count_captures(llama, monkeypatch)
    harvest(llama, tokens, many, recipe)
    assert sum(windows for windows, _ in captured) == 2 * (9 - len(before))
    assert contents(many) == contents(tmp_path / "one")


def test_a_refusal_of_the_leading_rank_is_one_on_all(llama: LanguageModel, tokens: Tokens, tmp_path: Path) -> None:
    harvest(llama, tokens, tmp_path, RECIPE)
    other = RECIPE.model_copy(update={"norm_bound": 5.0})
    with pytest.raises(RunError, match=r"Found norm_bound = 5.0"):
        together(2, lambda rank: harvest(llama, tokens, tmp_path, other, ranks=rank))


def test_a_finished_harvest_is_not_repeated(
    llama: LanguageModel, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harvest(llama, tokens, tmp_path, RECIPE)
    before = contents(tmp_path)
    captured = count_captures(llama, monkeypatch)
    assert harvest(llama, tokens, tmp_path, RECIPE)[SITES[1]].num_rows > 0
    assert captured == []
    assert contents(tmp_path) == before


def test_a_kill_right_after_the_index_leaves_nothing_behind(llama: LanguageModel, tokens: Tokens, tmp_path: Path) -> None:
    site = tmp_path / SITES[0]
    harvest(llama, tokens, tmp_path, RECIPE)
    expected = contents(tmp_path)
    # The journal goes last: a process killed before that has both files.
    (site / "progress.json").write_bytes((site / "index.json").read_bytes())
    harvest(llama, tokens, tmp_path, RECIPE)
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_only_a_damaged_shard_is_redone(
    llama: LanguageModel, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    harvest(llama, tokens, tmp_path, RECIPE)
    before = contents(tmp_path)
    path = tmp_path / SITES[1] / "shard-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes({"flip": content, "truncate": content[:100], "remove": b""}[damage])
    if damage == "remove":
        path.unlink()
    captured = count_captures(llama, monkeypatch)
    harvest(llama, tokens, tmp_path, RECIPE)
    assert captured == [(3, [SITES[1]]), (2, [SITES[1]])]
    assert contents(tmp_path) == before


def test_a_site_added_later_leaves_the_others_alone(
    llama: LanguageModel, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harvest(llama, tokens, tmp_path, RECIPE.model_copy(update={"sites": SITES[:1]}))
    before = contents(tmp_path / SITES[0])
    captured = count_captures(llama, monkeypatch)
    harvest(llama, tokens, tmp_path, RECIPE)
    assert all(sites == [SITES[1]] for _, sites in captured)
    assert contents(tmp_path / SITES[0]) == before


def test_another_harvest_is_not_mixed_in(llama: LanguageModel, tokens: Tokens, tmp_path: Path) -> None:
    harvest(llama, tokens, tmp_path, RECIPE)
    with pytest.raises(RunError, match=r"norm_bound = 10.0, as harvested before in .* Found norm_bound = 5.0"):
        harvest(llama, tokens, tmp_path, RECIPE.model_copy(update={"norm_bound": 5.0}))
    with torch.no_grad():
        next(llama.model.parameters()).add_(1.0)
    with pytest.raises(RunError, match=r"Found weights = "):
        harvest(llama, tokens, tmp_path, RECIPE)


def test_a_full_disk_is_told_and_the_harvest_goes_on(
    llama: LanguageModel, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harvest(llama, tokens, tmp_path / "undisturbed", RECIPE)
    disturbed = tmp_path / "disturbed"
    replace = os.replace
    free = [0, 1, 4, 6, 99]

    def limited(source: Any, target: Any) -> None:
        free[0] -= 1
        if free[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", limited)
    while len(free) > 1:
        with pytest.raises(RunError, match=r"space on the disk. Found none left while writing .* resume"):
            harvest(llama, tokens, disturbed, RECIPE)
        assert not list(disturbed.rglob("*.tmp"))
        free.pop(0)
    harvest(llama, tokens, disturbed, RECIPE)
    assert contents(disturbed) == contents(tmp_path / "undisturbed")


def test_the_index_says_what_the_rows_depend_on(llama: LanguageModel, tokens: Tokens, tmp_path: Path) -> None:
    harvest(llama, tokens, tmp_path, RECIPE)
    index = json.loads((tmp_path / SITES[0] / "index.json").read_text())
    assert {key: index[key] for key in ("schema_version", "site", "dtype", "dim")} == {
        "schema_version": 1,
        "site": SITES[0],
        "dtype": "float32",
        "dim": 16,
    }
    assert index["meta"]["model"] == "tiny llama"
    assert index["meta"]["tokens"] == tokens.sha256()
    first = llama.capture(tokens.ids[:5], SITES[:1])[SITES[0]][tokens.document[:5] >= 0]
    assert index["meta"]["median_norm"] == pytest.approx(float(first.norm(dim=-1).median()), rel=1e-6)


MEMORY = """
import resource, sys
from pathlib import Path
import torch, transformers
from kyomei.config import SourceRecipe
from kyomei.source import shards
from kyomei.source.harvest import harvest
from kyomei.source.model import LanguageModel
from kyomei.source.order import BatchOrder
from kyomei.source.rows import open_rows
from kyomei.source.text import Document, Tokens

torch.set_num_threads(1)
shards.RELEASE_BYTES = 4 << 20
class Tokenizer:
    all_special_ids = [0]
torch.manual_seed(0)
sizes = {"hidden_size": 256, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
model = LanguageModel(transformers.LlamaModel(transformers.LlamaConfig(vocab_size=64, **sizes)), Tokenizer(), "tiny")
windows = int(sys.argv[2])
ids = torch.randint(1, 64, (windows, 128))
spans = torch.zeros_like(ids, dtype=torch.int32)
tokens = Tokens(ids, spans, spans, spans, [Document("a", "a")])
recipe = SourceRecipe(sites=("embed_tokens",), context=128, windows_per_batch=8, windows_per_shard=32)
harvest(model, tokens, Path(sys.argv[1]), recipe)
rows = open_rows(Path(sys.argv[1]) / "embed_tokens")
total = sum(float(block.sum()) for block in rows.blocks(1024))
order = BatchOrder(rows.num_rows, 1024, seed=0)
total += sum(float(rows.read(order.indices(step)).sum()) for step in range(rows.num_rows // 1024))
print(rows.num_rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_is_flat_in_tokens(tmp_path: Path) -> None:
    def measure(windows: int) -> tuple[int, int]:
        command = [sys.executable, "-c", MEMORY, str(tmp_path / str(windows)), str(windows)]
        rows, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        return int(rows), int(peak)

    (few, low), (many, high) = measure(256), measure(1024)
    assert (few, many) == (256 * 128, 1024 * 128)
    row_bytes = 256 * 4
    assert (many - few) * row_bytes > 90 << 20
    assert high < 1.1 * low
