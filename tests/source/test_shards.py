"""Activation rows: what is read is what was written, damage is named, and the order of batches is a permutation."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kyomei.atomic import sha256_of
from kyomei.errors import DataError, KyomeiError, RunError
from kyomei.source import shards
from kyomei.source.order import BatchOrder
from kyomei.source.rows import Rows, open_rows
from kyomei.source.shard_files import packed, stored
from kyomei.source.shard_writer import ShardWriter
from kyomei.source.shards import ShardFolder

ROWS = torch.randn(23, 5, generator=torch.Generator().manual_seed(0))


def write(folder: Path, rows: torch.Tensor = ROWS, sizes: tuple[int, ...] = (10, 0, 13), dtype: Any = "float32") -> ShardFolder:
    writer = ShardWriter(folder, rows.shape[1], dtype, "layers.1.mlp", {"model": "tiny"})
    for number, block in enumerate(rows.split(list(sizes))):
        first = sum(sizes[:number])
        writer.write(number, block, np.arange(first, first + len(block)) * 3, {"dropped": number})
    return writer.close()


def reindex(folder: Path, **changes: Any) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, **changes}))


def replace_shard(folder: Path, number: int, rows: torch.Tensor) -> None:
    """Write a shard past the writer's checks, with an index that agrees with its bytes."""
    path = folder / f"shard-{number:05d}.safetensors"
    safetensors.torch.save_file({"activations": rows, "row_tokens": torch.arange(len(rows))}, path)
    index = json.loads((folder / "index.json").read_text())
    index["shards"][number]["sha256"] = sha256_of(path)
    (folder / "index.json").write_text(json.dumps(index))


def as_int8(rows: torch.Tensor) -> torch.Tensor:
    """Each value at the nearest of 255 multiples of its row's scale."""
    out = rows.clone()
    for row in out:
        scale = float(row.abs().max()) / 127
        row.copy_(torch.tensor([round(float(value) / scale) if scale else 0 for value in row]) * torch.tensor(scale))
    return out


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_shards_give_back_what_was_written(tmp_path: Path, dtype: str) -> None:
    folder = write(tmp_path, dtype=dtype)
    stored = as_int8(ROWS) if dtype == "int8" else ROWS.to(getattr(torch, dtype)).float()
    opened = open_rows(tmp_path)
    assert (opened.num_rows, opened.dim) == (23, 5)
    assert folder.meta == {"model": "tiny", "dropped": 0 + 1 + 2}
    index = np.array([22, 0, 9, 10, 10, 3])
    assert torch.equal(opened.read(index), stored[index])
    assert opened.read(index).dtype == torch.float32
    assert torch.equal(torch.cat(list(opened.blocks(7))), stored)
    assert folder.row_tokens().tolist() == [3 * i for i in range(23)]
    assert not (tmp_path / "progress.json").exists()


def test_int8_costs_a_byte_a_value_and_half_a_step_at_most(tmp_path: Path) -> None:
    rows = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 40)[:, None]
    rows[7] = 0
    read = write(tmp_path / "int8", rows, (40,), "int8").read(np.arange(40))
    half_a_step = rows.abs().amax(dim=1, keepdim=True) / 254
    assert bool(((read - rows).abs() <= 1.0001 * half_a_step).all())
    assert not read[7].any()
    write(tmp_path / "float32", rows, (40,), "float32")
    sizes = [(tmp_path / kind / "shard-00000.safetensors").stat().st_size for kind in ("int8", "float32")]
    assert sizes[1] - sizes[0] == pytest.approx(40 * (3 * 64 - 4), abs=100)
    with pytest.raises(DataError, match="Found inf in shard 0 as int8, row 3"):
        write(tmp_path / "infinite", rows.index_fill(0, torch.tensor([3]), torch.inf), (40,), "int8")


def test_a_shard_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    write(tmp_path, dtype="bfloat16")
    held = safetensors.torch.load_file(tmp_path / "shard-00000.safetensors")
    assert torch.equal(held["activations"], ROWS[:10].bfloat16())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("rows", [0, 1, 23])
def test_a_shard_in_pieces_is_what_the_library_writes(dtype: Any, rows: int) -> None:
    tensors = {**stored(ROWS[:rows], dtype), "row_tokens": torch.arange(rows) * 3}
    assert b"".join(packed(tensors)) == safetensors.torch.save(tensors)


def test_pages_are_released_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "RELEASE_BYTES", 1)
    monkeypatch.setattr(shards, "CHECK_BYTES", 1)
    folder = write(tmp_path)
    for _ in range(3):
        assert torch.equal(folder.read(np.arange(23)), ROWS)


@pytest.mark.skipif(not shards.resident_file_bytes(), reason="the system does not tell what is resident")
def test_random_reads_leave_little_resident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """120 MB of rows, of which no more than about 16 MB may stay."""
    monkeypatch.setattr(shards, "RELEASE_BYTES", 16 << 20)
    monkeypatch.setattr(shards, "CHECK_BYTES", 1 << 20)
    writer = ShardWriter(tmp_path, 128, "float32", "site", {})
    for number in range(8):
        writer.write(number, torch.full((30_000, 128), float(number)), np.arange(30_000), {})
    folder, rng = writer.close(), np.random.default_rng(0)
    before, most = shards.resident_file_bytes(), 0
    for _ in range(60):
        index = np.sort(rng.integers(0, folder.num_rows, 400))
        assert torch.equal(folder.read(index)[:, 0], torch.from_numpy(index // 30_000).float())
        most = max(most, shards.resident_file_bytes() - before)
    assert most < 40 << 20


@pytest.mark.parametrize("made", [ROWS, ROWS.numpy(), ROWS.double(), ROWS.numpy().astype(np.float64)])
def test_numbers_in_memory_are_rows(made: Any) -> None:
    rows = open_rows(made)
    assert isinstance(rows, Rows)
    assert open_rows(rows) is rows
    index = np.array([4, 4, 0])
    assert torch.equal(rows.read(index), ROWS[index])
    assert torch.equal(torch.cat(list(rows.blocks(8))), ROWS)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (torch.zeros(3), r"\[rows, dim\], .* Found shape \[3\]"),
        (torch.zeros(2, 3, 4, 5), r"\[rows, dim\], .* Found shape \[2, 3, 4, 5\]"),
        (torch.zeros(0, 4), r"at least one row and one column. Found shape \[0, 4\]"),
        (np.array([["a"]]), "real numbers. Found an ndarray of dtype <U1"),
        (torch.zeros(2, 2, dtype=torch.complex64), "real numbers. Found a tensor of dtype torch.complex64"),
    ],
)
def test_what_are_no_rows_is_refused(made: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_rows(made)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_named_by_row(value: float) -> None:
    rows = torch.zeros(9000, 3)
    rows[8195, 1] = value
    with pytest.raises(DataError, match=rf"finite activations. Found {value} in tensor, row 8195"):
        open_rows(rows)


def test_a_value_that_is_not_finite_is_named_by_shard_and_row(tmp_path: Path) -> None:
    write(tmp_path)
    rows = ROWS[10:].clone()
    rows[7, 2] = float("nan")
    replace_shard(tmp_path, 2, rows)
    with pytest.raises(DataError, match=r"Found nan in shard shard-00002.safetensors of .*, row 7\b"):
        open_rows(tmp_path)


def test_the_writer_refuses_what_overflows_as_stored(tmp_path: Path) -> None:
    rows = torch.ones(4, 2)
    rows[3, 0] = 1e6
    writer = ShardWriter(tmp_path, 2, "float16", "site", {})
    with pytest.raises(DataError, match=r"Found inf in shard 5 as float16, row 3. .*store float32 or bfloat16"):
        writer.write(5, rows, np.arange(4))
    assert writer.complete == 0


def test_the_writer_refuses_another_width(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"activations \[4, 2\]. Found \[4, 3\]"):
        ShardWriter(tmp_path, 2, "float32", "site", {}).write(0, torch.ones(4, 3), np.arange(4))


def test_rows_outside_are_refused(tmp_path: Path) -> None:
    for rows in (write(tmp_path), open_rows(ROWS)):
        with pytest.raises(DataError, match=r"row numbers from 0 to 22. Found -1 to 23"):
            rows.read(np.array([-1, 23]))


def test_a_flipped_byte_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "shard-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"shard-00002.safetensors as it was written. Found other bytes \(sha256 differs\)"):
        open_rows(tmp_path)


@pytest.mark.parametrize("keep", [0.9, 0.1, 0.0])
def test_a_truncated_shard_is_named_even_unverified(tmp_path: Path, keep: float) -> None:
    write(tmp_path)
    path = tmp_path / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(DataError, match=r"shard-00000.safetensors.* --resume: only this shard is redone"):
        ShardFolder(tmp_path, verify=False)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "shard-00002.safetensors").unlink()
    with pytest.raises(DataError, match=r"shard shard-00002.safetensors. Found no such file"):
        open_rows(tmp_path)


@pytest.mark.parametrize(
    ("rows", "found"), [(torch.zeros(13, 6), r"F32 \[13, 6\]"), (torch.zeros(13, 5).half(), r"F16 \[13, 5\]")]
)
def test_mixed_width_or_dtype_is_named(tmp_path: Path, rows: torch.Tensor, found: str) -> None:
    write(tmp_path)
    replace_shard(tmp_path, 2, rows)
    with pytest.raises(DataError, match=rf"activations of F32 \[13, 5\].* Found {found} in .*shard-00002.safetensors"):
        open_rows(tmp_path)


def test_an_index_of_other_rows_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    reindex(tmp_path, num_rows=24)
    with pytest.raises(DataError, match=r"24 rows, as in .*. Found 23 in its shards"):
        open_rows(tmp_path)


def test_an_index_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    reindex(tmp_path, schema_version=99)
    with pytest.raises(DataError, match=r"schema 1 or older. Found schema 99 in .* Update Kyomei"):
        open_rows(tmp_path)


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(DataError, match=r"a readable index.json. Found .* is damaged"):
        open_rows(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2)
)


@hypothesis.settings(max_examples=150, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(data=st.data())
def test_only_our_errors_come_out_of_a_damaged_folder(data: st.DataObject, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    write(tmp_path)
    held = json.loads((tmp_path / "index.json").read_text())
    entry = data.draw(st.sampled_from([held, held["shards"][0]]))
    key = data.draw(st.sampled_from(sorted(entry)))
    if data.draw(st.booleans()):
        del entry[key]
    else:
        entry[key] = data.draw(json_values)
    kind = data.draw(st.sampled_from(["index", "bytes of the index", "shard"]))
    content = json.dumps(held).encode()
    if kind == "index":
        (tmp_path / "index.json").write_bytes(content)
    path = tmp_path / ("index.json" if kind == "bytes of the index" else "shard-00000.safetensors")
    if kind != "index":
        damaged = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 5))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(damaged)
    for verify in (True, False):
        with contextlib.suppress(KyomeiError):
            rows = ShardFolder(tmp_path, verify=verify)
            rows.read(np.arange(min(3, rows.num_rows)))
            rows.row_tokens()


def test_a_folder_without_shards_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"activations. Found nothing at"):
        open_rows(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"a folder with index.json. Found .* without one"):
        open_rows(tmp_path)
    write(tmp_path / "layers.1.mlp")
    with pytest.raises(DataError, match=r"Name one of its sites: layers.1.mlp"):
        open_rows(str(tmp_path))
    for part in ("evidence", "replica-0"):
        write(tmp_path / "run" / "activations" / part / "layers.1.mlp")
    with pytest.raises(DataError, match=r"sites: activations/evidence/layers.1.mlp, activations/replica-0/layers.1.mlp"):
        open_rows(tmp_path / "run")


def test_an_unfinished_harvest_is_no_rows(tmp_path: Path) -> None:
    ShardWriter(tmp_path, 5, "float32", "site", {}).write(0, ROWS, np.arange(23))
    with pytest.raises(DataError, match=r"a finished harvest. Found an interrupted one .* --resume"):
        open_rows(tmp_path)


def test_a_second_writer_keeps_whole_shards_and_discards_damaged_ones(tmp_path: Path) -> None:
    write(tmp_path / "undisturbed")
    write(tmp_path / "damaged")
    path = tmp_path / "damaged" / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "damaged" / ".shard-00002.safetensors.123.tmp").write_bytes(b"half")
    writer = ShardWriter(tmp_path / "damaged", 5, "float32", "layers.1.mlp", {"model": "tiny"})
    assert writer.finished == {1, 2}
    assert writer.complete == 2
    assert writer.discarded == ["shard-00000.safetensors"]
    assert not (tmp_path / "damaged" / "index.json").exists()
    with pytest.raises(DataError, match=r"Found shard 0 not written"):
        writer.close()
    writer.write(0, ROWS[:10], np.arange(10) * 3, {"dropped": 0})
    writer.close()
    assert {p.name: p.read_bytes() for p in (tmp_path / "damaged").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "undisturbed").iterdir()
    }


@pytest.mark.parametrize(
    ("dtype", "site", "meta", "key"),
    [
        ("float16", "layers.1.mlp", {"model": "tiny"}, "dtype = 'float32', .* Found dtype = 'float16'"),
        ("float32", "layers.2.mlp", {"model": "tiny"}, "site = 'layers.1.mlp', .* Found site = 'layers.2.mlp'"),
        ("float32", "layers.1.mlp", {"model": "large"}, "model = 'tiny', .* Found model = 'large'"),
    ],
)
def test_a_writer_of_something_else_is_refused(tmp_path: Path, dtype: Any, site: str, meta: dict[str, Any], key: str) -> None:
    write(tmp_path)
    with pytest.raises(RunError, match=key):
        ShardWriter(tmp_path, 5, dtype, site, meta)
    assert open_rows(tmp_path).num_rows == 23


def test_a_harvest_that_kept_no_row_is_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 5, "float32", "site", {})
    writer.write(0, ROWS[:0], np.arange(0))
    with pytest.raises(DataError, match=r"Found no row"):
        writer.close()


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ShardWriter(tmp_path, 5, "float32", "site", {})
    writer.write(0, ROWS[:10], np.arange(10))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"space on the disk. Found none left while writing .*shard-00001.* resume"):
        writer.write(1, ROWS[10:], np.arange(13))
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["progress.json", "shard-00000.safetensors"]
    again = ShardWriter(tmp_path, 5, "float32", "site", {})
    assert again.finished == {0}
    again.write(1, ROWS[10:], np.arange(13))
    assert torch.equal(again.close().read(np.arange(23)), ROWS)


@settings(max_examples=60, deadline=None)
@given(num_rows=st.integers(1, 300), batch_rows=st.integers(1, 90), seed=st.integers(0, 2**31))
def test_every_epoch_is_a_permutation(num_rows: int, batch_rows: int, seed: int) -> None:
    order = BatchOrder(num_rows, batch_rows, seed)
    drawn = np.concatenate([order.indices(step) for step in range(-(-2 * num_rows // batch_rows))])
    assert drawn.dtype == np.int64
    for epoch in drawn[: 2 * num_rows].reshape(2, num_rows):
        assert np.array_equal(np.sort(epoch), np.arange(num_rows))


def test_the_order_is_a_pure_function_of_seed_and_step() -> None:
    order = BatchOrder(1000, 64, seed=3)
    later = order.indices(50)
    order.indices(0)
    assert np.array_equal(order.indices(50), later)
    assert np.array_equal(BatchOrder(1000, 64, seed=3).indices(50), later)
    assert not np.array_equal(BatchOrder(1000, 64, seed=4).indices(50), later)
    assert not np.array_equal(order.indices(51), later)


def test_the_order_does_not_depend_on_the_batch() -> None:
    whole = BatchOrder(1000, 3000, seed=3).indices(0)
    assert np.array_equal(np.concatenate([BatchOrder(1000, 300, seed=3).indices(step) for step in range(10)]), whole)
    assert not np.array_equal(whole[:1000], whole[1000:2000])


def test_the_order_looks_random() -> None:
    order = BatchOrder(10_000, 10_000, seed=0).indices(0)
    neighbours = np.corrcoef(order[:-1], order[1:])[0, 1]
    place = np.corrcoef(order, np.arange(10_000))[0, 1]
    assert max(abs(neighbours), abs(place)) < 4 / np.sqrt(10_000)
    # Means of 100 batches of a uniform permutation spread as the finite-population formula says.
    means = order.reshape(100, 100).mean(axis=1)
    expected = 10_000 / np.sqrt(12) / np.sqrt(100) * np.sqrt(1 - 100 / 10_000)
    assert means.std() == pytest.approx(expected, rel=0.25)


def test_the_order_refuses_nonsense() -> None:
    with pytest.raises(DataError, match=r"Found 0 rows, batches of 5"):
        BatchOrder(0, 5, 0)
    with pytest.raises(DataError, match=r"a step of at least 0. Found -1"):
        BatchOrder(5, 5, 0).indices(-1)
