"""Rows and tokens at an address: the same bytes as in a folder, checked when they come, and never taken for missing."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from safetensors.torch import load
from tests.faults.dropping import DroppingFileSystem

from kyomei.config import TrainRecipe
from kyomei.dictionary.mechanisms import TopK
from kyomei.errors import AddressError, DataError, RunError
from kyomei.learning.checkpoint import list_checkpoints
from kyomei.learning.latents import random_start
from kyomei.learning.training import train
from kyomei.learning.workplace import Workplace
from kyomei.source.forgetting import rewritten_rows, rows_left
from kyomei.source.rows import open_rows
from kyomei.source.shard_writer import ShardWriter
from kyomei.source.shards import ShardFolder
from kyomei.source.text import Document, Tokens
from kyomei.stores import Copies, RemoteStore, store_at

SHARDS, ROWS, DIM = 5, 40, 6
X = torch.randn(SHARDS * ROWS, DIM, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test has copies of its own, an empty memory and an address that answers."""
    monkeypatch.setenv("KYOMEI_CACHE", str(tmp_path / "copies"))
    monkeypatch.setattr(DroppingFileSystem, "asked", staticmethod(lambda operation: None))
    fsspec.filesystem("memory").store.clear()
    yield tmp_path / "copies"
    fsspec.filesystem("memory").store.clear()


def gone(monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
    """From so many operations on, the address does not answer."""
    left = [after]

    def asked(operation: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise ConnectionError("network is unreachable")

    monkeypatch.setattr(DroppingFileSystem, "asked", staticmethod(asked))


def written(place: str | Path, dtype: str = "float32") -> ShardFolder:
    writer = ShardWriter(place, DIM, dtype, "site", {"tokens": "t"})  # type: ignore[arg-type]
    for number in range(SHARDS):
        part = slice(number * ROWS, (number + 1) * ROWS)
        if number not in writer.finished:
            writer.write(number, X[part], np.arange(part.start, part.stop))
    return writer.close()


def content(address: str) -> dict[str, bytes]:
    store = store_at(address)
    return {name: store.read(name) for name in store.names("*")}


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_shards_at_an_address_have_the_bytes_of_a_folder(tmp_path: Path, dtype: str) -> None:
    far, near = written("memory://bucket/site", dtype), written(tmp_path / "site", dtype)
    assert content("memory://bucket/site") == content_of(tmp_path / "site")
    index = np.random.default_rng(0).permutation(len(X))
    assert torch.equal(far.read(index), near.read(index)) and (far.row_tokens() == near.row_tokens()).all()
    assert torch.equal(torch.cat(list(open_rows("memory://bucket/site").blocks(64))), torch.cat(list(near.blocks(64))))


def test_copies_stay_within_their_bytes_and_what_has_no_room_is_read_in_ranges(
    copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("memory://b/s")
    size = len(store_at("memory://b/s").read("shard-00000.safetensors"))
    monkeypatch.setenv("KYOMEI_CACHE_GB", str(2.5 * size / 1e9))
    rows = ShardFolder("memory://b/s")
    for seed in range(3):
        index = np.random.default_rng(seed).permutation(len(X))
        assert torch.equal(rows.read(index), X[index])
        assert sum(path.stat().st_size for path in copies.iterdir()) <= 2.5 * size
    assert len(list(copies.iterdir())) == 2
    # One that was not used makes room, and none of them is needed.
    assert torch.equal(ShardFolder("memory://b/s").read(np.arange(4 * ROWS, 5 * ROWS)), X[4 * ROWS :])
    assert len(list(copies.iterdir())) == 2
    monkeypatch.setenv("KYOMEI_CACHE_GB", "much")
    with pytest.raises(RunError, match="KYOMEI_CACHE_GB=50"):
        ShardFolder("memory://b/s")


def test_every_shard_is_copied_where_copies_have_room_however_few_may_be_mapped(
    copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("memory://b/s")
    monkeypatch.setattr("kyomei.source.shards._most_open", lambda: 1)
    monkeypatch.setenv("KYOMEI_CACHE_GB", "inf")
    rows, index = ShardFolder("memory://b/s"), np.random.default_rng(0).permutation(len(X))
    assert torch.equal(rows.read(index), X[index]) and len(rows._open) == 1
    assert len(list(copies.iterdir())) == SHARDS
    # From now on the address is asked for no row, and not how long a file is.
    monkeypatch.setattr(RemoteStore, "ranges", None)
    monkeypatch.setattr(RemoteStore, "size_of", None)
    again = ShardFolder("memory://b/s")
    assert torch.equal(again.read(index), X[index]) and (again.row_tokens() == np.arange(len(X))).all()


def test_where_rows_come_from_is_read_without_the_rows(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context of 4 windows a shard, of which the first window of the second shard goes."""
    written("memory://b/s")
    store, hit = store_at("memory://b/s"), np.zeros(len(X) // 10, dtype=bool)
    hit[4] = True
    assert rows_left(store, 10, hit) == len(X) - 10 and not copies.exists()
    ids = torch.arange(len(X)).reshape(-1, 10)
    spans = torch.zeros_like(ids, dtype=torch.int32)
    tokens = Tokens(ids, spans, spans.clone(), spans.clone(), [Document("a", "text")])
    changed = dict(rewritten_rows(store, tokens, hit))
    assert list(changed) == ["shard-00001.safetensors", "index.json"] and len(list(copies.iterdir())) == 1
    assert torch.equal(load(changed["shard-00001.safetensors"])["activations"], X[50:80])


def test_a_shard_without_rows_makes_no_request_for_a_whole_file(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ShardWriter("memory://b/s", DIM, "int8", "site", {})
    for number, count in enumerate((0, 5)):
        writer.write(number, X[:count], np.arange(count))
    ranges = RemoteStore.ranges

    def asked(store: RemoteStore, name: str, spans: list[tuple[int, int]]) -> list[bytes]:
        assert all(first < last for first, last in spans)
        return ranges(store, name, spans)

    monkeypatch.setattr(RemoteStore, "ranges", asked)
    assert writer.close().row_tokens().tolist() == list(range(5))


def test_an_index_is_looked_for_where_one_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    cleared: list[str] = []
    clear = RemoteStore.clear
    monkeypatch.setattr(RemoteStore, "clear", lambda self, *names: (cleared.extend(names), clear(self, *names))[1])
    written("memory://b/s")
    assert "index.json" not in cleared
    writer = ShardWriter("memory://b/s", DIM, "float32", "site", {"tokens": "t"})
    writer.write(SHARDS, X[:ROWS], np.arange(ROWS))
    assert cleared.count("index.json") == 1 and not store_at("memory://b/s").has("index.json")
    writer.close()
    writer.write(SHARDS + 1, X[:ROWS], np.arange(ROWS))
    assert not store_at("memory://b/s").has("index.json"), "it would not know the last shard"


def test_a_copy_has_its_name_once_its_bytes_are_on_the_disk(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = written("memory://b/s")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=rf"space on the disk.*{copies}"):
        rows.read(np.arange(len(X)))
    assert not list(copies.iterdir())


def test_a_shard_that_is_another_or_gone_is_named(tmp_path: Path) -> None:
    rows, memory = written("memory://b/s"), fsspec.filesystem("memory")
    whole = memory.cat_file("/b/s/shard-00002.safetensors")
    memory.pipe_file("/b/s/shard-00002.safetensors", whole[:-1] + b"x")
    with pytest.raises(DataError, match=r"shard-00002.safetensors as it was written.*memory://b/s.*[Dd]elete it there"):
        rows.read(np.arange(len(X)))
    memory.rm_file("/b/s/shard-00002.safetensors")
    with pytest.raises(DataError, match="shard-00002"):
        ShardFolder("memory://b/s")
    assert torch.equal(torch.cat(list(written("memory://b/s").blocks())), X), "it is made again"
    with pytest.raises(DataError, match="nothing at memory://elsewhere"):
        open_rows("memory://elsewhere")


def test_a_disk_without_room_for_copies_is_named(tmp_path: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = written(f"drop://{tmp_path}/far")

    def full(operation: str) -> None:
        if operation == "get":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(DroppingFileSystem, "asked", staticmethod(full))
    with pytest.raises(RunError, match=rf"space on the disk.*{copies}"):
        rows.read(np.arange(len(X)))
    assert not list(copies.iterdir())


@pytest.mark.parametrize("after", [0, 1, 5, 9, 14])
def test_a_writer_whose_address_drops_loses_the_shard_in_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    place = f"drop://{tmp_path}/far"
    gone(monkeypatch, after)
    with pytest.raises(AddressError, match=rf"{place} to answer.*unreachable.*same command again"):
        written(place)
    monkeypatch.setattr(DroppingFileSystem, "asked", staticmethod(lambda operation: None))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "far").glob("shard-*")}
    rows = written(place)
    kept = [name for name, time in before.items() if (tmp_path / "far" / name).stat().st_mtime_ns == time]
    assert len(kept) >= len(before) - 1, "only the shard in hand is made again"
    written(tmp_path / "near")
    assert content(place) == content_of(tmp_path / "near") and torch.equal(torch.cat(list(rows.blocks())), X)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_address_that_does_not_answer_is_not_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"drop://{tmp_path}/far"
    rows = written(place)
    gone(monkeypatch)
    store = RemoteStore(place)
    for ask in (
        lambda: store.has("index.json"),
        lambda: store.names("*"),
        lambda: store.read("index.json"),
        lambda: store.clear("index.json"),
        lambda: store.differing({"index.json": ""}),
        lambda: ShardFolder(place),
        lambda: rows.read(np.arange(len(X))),
        lambda: Tokens.load(place),
    ):
        with pytest.raises(AddressError, match="to answer"):
            ask()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(AddressError, match=r"a driver for s3://bucket.*s3fs.*Install"):
        RemoteStore("s3://bucket")


def test_tokens_at_an_address_are_those_that_were_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.arange(24).reshape(4, 6)
    spans = torch.zeros_like(ids, dtype=torch.int32)
    Tokens(ids, spans, spans.clone(), spans.clone(), [Document("a", "text")]).save("memory://b/tokens")
    found = Tokens.load("memory://b/tokens")
    assert torch.equal(found.ids, ids) and found.documents == [Document("a", "text")]
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/b/tokens/documents.parquet", b"other")
    assert Tokens.load("memory://b/tokens").documents == found.documents, "the copy is what was saved"
    Copies.of_environment().drop(json.loads(memory.cat_file("/b/tokens/index.json"))["sha256"]["documents.parquet"])
    with pytest.raises(DataError, match=r"documents.parquet as it was written"):
        Tokens.load("memory://b/tokens")


def test_a_training_whose_address_drops_goes_on_from_its_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies have no room, so that steps ask the address for rows."""
    written(place := f"drop://{tmp_path}/far")
    monkeypatch.setenv("KYOMEI_CACHE_GB", "1e-9")
    settings = TrainRecipe(steps=12, batch_rows=16, checkpoint_every=100, warmup_steps=2)

    def trained(folder: Path) -> dict[str, torch.Tensor]:
        start = random_start(8, DIM, 0, tied=False)
        sae = train(start, TopK(8, 2), ShardFolder(place), settings, seed=0, workplace=Workplace(folder, resume=True)).whole()
        return {"encoder": sae.encoder, "decoder": sae.decoder, "threshold": sae.threshold}

    expected = trained(tmp_path / "undisturbed")
    seen = [0]
    monkeypatch.setattr(DroppingFileSystem, "asked", staticmethod(lambda operation: seen.__setitem__(0, seen[0] + 1)))
    trained(tmp_path / "counted")
    gone(monkeypatch, seen[0] * 2 // 3)
    with pytest.raises(AddressError, match="to answer"):
        trained(tmp_path / "disturbed")
    steps = int(list_checkpoints(tmp_path / "disturbed")[-1].name.removeprefix("step-"))
    assert 0 < steps < settings.steps
    monkeypatch.setattr(DroppingFileSystem, "asked", staticmethod(lambda operation: None))
    found = trained(tmp_path / "disturbed")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
