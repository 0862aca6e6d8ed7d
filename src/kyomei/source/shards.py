"""Activation rows, in memory or in checked safetensors shards on disk, and the order in which they are drawn."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float32, Int64, Shaped
from torch import Tensor

from kyomei.atomic import make_folder, remove_temporaries, sha256_of, write_atomic
from kyomei.errors import DataError, RunError
from kyomei.source.guards import require_finite, require_inside
from kyomei.source.ranks import ALONE, Ranks

SCHEMA_VERSION = 1
INDEX, JOURNAL = "index.json", "progress.json"
JOURNALS = re.compile(r"progress(-\d+)?\.json")
"""Of several ranks that harvest together each has a journal; the leading one's has no number."""
Dtype = Literal["float32", "float16", "bfloat16"]

# Mapped pages count as resident memory until dropped. One touched row faults in 64 KiB around it, or megabytes where the page
# cache holds large folios, so that a few rows make a whole shard resident. How much is resident is asked for each time that
# CHECK_BYTES may have come; where the system does not tell, pages are dropped then.
RELEASE_BYTES = 128 << 20
CHECK_BYTES = 64 << 20

_TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# numpy has no bfloat16: its bits are mapped as integers.
_STORED: dict[str, tuple[str, type[np.generic]]] = {
    "float32": ("F32", np.float32),
    "float16": ("F16", np.float16),
    "bfloat16": ("BF16", np.int16),
}
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}
_REDO = "harvest again with --resume: only this shard is redone"
FEW_ROWS = 64
"""So many rows of a shard that is not mapped are read by themselves: mapping it costs as much as reading them."""
_FILES_SHARE = 8
"""A folder keeps at most one in so many of the files open that this process may open: several folders may be in use."""


@final
class ShardFolder:
    """Rows of one site in memory-mapped shards; resident memory and open files stay bounded however many rows there are.

    Args:
        folder: holds index.json and the shards that it names.
        verify: check every shard's sha256 and that every value is finite, which reads all bytes once.

    Raises:
        DataError: something is missing, damaged, of another width or dtype, or not finite; the shard is named.
    """

    def __init__(self, folder: str | Path, *, verify: bool = True) -> None:
        self.folder = Path(folder)
        index = _read_index(self.folder)
        try:
            self.site: str = index["site"]
            self.dtype: Dtype = index["dtype"]
            self.dim: int = int(index["dim"])
            self.num_rows: int = int(index["num_rows"])
            self.meta: dict[str, Any] = dict(index["meta"])
            self.shards: list[dict[str, Any]] = index["shards"]
            self._mapped = [_MappedShard(self.folder, entry, self.dtype, self.dim) for entry in self.shards]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            found = f"{self.folder / INDEX}: {type(error).__name__}: {error}"
            raise DataError(f"a whole {INDEX}", found, "delete its folder and harvest again") from error
        self._ends = np.cumsum([shard.num_rows for shard in self._mapped], dtype=np.int64)
        if len(self._ends) == 0 or int(self._ends[-1]) != self.num_rows or self.num_rows == 0:
            found = f"{sum(self._ends[-1:])} in its shards"
            raise DataError(f"{self.num_rows} rows, as in {self.folder / INDEX}", found, "harvest this site again")
        self._open: OrderedDict[int, _MappedShard] = OrderedDict()
        self._most_open, self._lock = _most_open(), threading.Lock()
        self._unchecked = 0
        self._resident = resident_file_bytes()
        if verify:
            self._verify()

    def _verify(self) -> None:
        for entry in self.shards:
            if sha256_of(self.folder / entry["file"]) != entry.get("sha256"):
                raise DataError(f"{entry['file']} as it was written", f"other bytes (sha256 differs) in {self.folder}", _REDO)
        for shard, end in zip(self._mapped, self._ends, strict=True):
            for first in range(0, shard.num_rows, 8192):
                stop = min(first + 8192, shard.num_rows)
                start = int(end) - shard.num_rows
                block = self.read(np.arange(start + first, start + stop))
                require_finite(block, f"shard {shard.path.name} of {self.folder}", first)

    def read(self, index: Int64[np.ndarray, " batch"]) -> Float32[Tensor, "batch dim"]:
        """The rows at `index`, in its order."""
        require_inside(index, self.num_rows)
        order = np.argsort(index, kind="stable")
        ordered = index[order]
        out = torch.empty(len(index), self.dim)
        cuts = np.searchsorted(ordered, np.concatenate([[0], self._ends]))
        for number in np.flatnonzero(np.diff(cuts)):
            shard, first, last = self._mapped[number], cuts[number], cuts[number + 1]
            local = ordered[first:last] - (self._ends[number] - shard.num_rows)
            place = torch.from_numpy(order[first:last])
            if len(local) <= FEW_ROWS and self._is_full_without(int(number)):
                out[place] = shard.read_few(local)
                continue
            out[place] = self._opened(int(number)).read(local)
            self._unchecked += shard.span_bytes(local)
            if self._unchecked >= CHECK_BYTES:
                self._unchecked = 0
                if not self._resident or resident_file_bytes() - self._resident >= RELEASE_BYTES:
                    self._release()
        return out

    def blocks(self, rows_per_block: int = 8192) -> Iterator[Float32[Tensor, "block dim"]]:
        """All rows in order, `rows_per_block` at a time."""
        for first in range(0, self.num_rows, rows_per_block):
            yield self.read(np.arange(first, min(first + rows_per_block, self.num_rows)))

    def row_tokens(self) -> Int64[np.ndarray, " rows"]:
        """Where each row comes from: window × context + position in the part's tokens."""
        out = np.concatenate([self._opened(number).row_tokens() for number in range(len(self._mapped))])
        self._release()
        return out

    def _is_full_without(self, number: int) -> bool:
        """Whether another shard would have to be closed for this one."""
        with self._lock:
            return number not in self._open and len(self._open) >= self._most_open

    def _opened(self, number: int) -> _MappedShard:
        """A shard that stays mapped until so many others were read: a mapping keeps its file open."""
        with self._lock:
            self._open[number] = self._mapped[number]
            self._open.move_to_end(number)
            while len(self._open) > self._most_open:
                self._open.popitem(last=False)[1].close()
        return self._mapped[number]

    def _release(self) -> None:
        with self._lock:
            mapped = list(self._open.values())
        for shard in mapped:
            shard.release()
        self._unchecked = 0
        self._resident = resident_file_bytes()


def resident_file_bytes() -> int:
    """Bytes of files that are resident in this process; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[2]) * mmap.PAGESIZE
    except (OSError, IndexError, ValueError):
        return 0


def drop_pages(mapped: np.memmap[Any, Any]) -> None:
    """Drop the resident pages of a file that is mapped for reading; they come back when they are read again."""
    _advise_drop(getattr(mapped, "_mmap", None))


def _advise_drop(mapping: mmap.mmap | None) -> None:
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _most_open() -> int:
    """How many shards of a folder may be mapped at a time."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 1024
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1024 if limit == resource.RLIM_INFINITY else max(1, min(1024, limit // _FILES_SHARE))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn an error of the system into a DataError that names the shard."""
    try:
        yield
    except OSError as error:
        raise DataError(f"shard {path.name} to stay readable", f"{error}", "keep the folder in place") from error


@final
class _MappedShard:
    """One shard file, mapped into memory from when it is first read until it is closed."""

    def __init__(self, folder: Path, entry: dict[str, Any], dtype: Dtype, dim: int) -> None:
        self.path, self.num_rows, self._dim, self._dtype = folder / entry["file"], int(entry["num_rows"]), dim, dtype
        layout = _layout(self.path)
        stored, self._as_numpy = _STORED[dtype]
        self._check(layout, "activations", stored, [self.num_rows, dim])
        self._check(layout, "row_tokens", "I64", [self.num_rows])
        self._start = {name: layout[name]["span"][0] for name in ("activations", "row_tokens")}
        self._mapping: mmap.mmap | None = None

    def _check(self, layout: dict[str, Any], name: str, dtype: str, shape: list[int]) -> None:
        held = layout.get(name, {})
        if held.get("shape") != shape or held.get("dtype") != dtype:
            found = f"{held.get('dtype', 'nothing')} {held.get('shape', '')}".strip()
            raise DataError(f"{name} of {dtype} {shape}, as in {INDEX}", f"{found} in {self.path}", "harvest this site again")
        first, last = held["span"]
        if last - first != math.prod(shape) * _BYTES[dtype]:
            raise DataError("a safetensors shard", f"a damaged header in {self.path}", _REDO)

    def _view(self, name: str, dtype: type[np.generic], count: int) -> Shaped[np.ndarray, " values"]:
        mapping = self._mapping
        if mapping is None:
            with _named(self.path), open(self.path, "rb", buffering=0) as file:
                mapping = self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapping, dtype, count, self._start[name])

    def row_tokens(self) -> Int64[np.ndarray, " rows"]:
        """A copy of where the rows come from."""
        return self._view("row_tokens", np.int64, self.num_rows).copy()

    def read(self, local: Int64[np.ndarray, " batch"]) -> Float32[Tensor, "batch dim"]:
        rows = self._view("activations", self._as_numpy, self.num_rows * self._dim).reshape(self.num_rows, self._dim)
        return self._as_float(rows[local])

    def read_few(self, local: Int64[np.ndarray, " batch"]) -> Float32[Tensor, "batch dim"]:
        """The same without a mapping."""
        rows = np.empty((len(local), self._dim), self._as_numpy)
        bytes_of, size = rows.data.cast("B"), rows.strides[0]
        with _named(self.path), open(self.path, "rb", buffering=0) as file:
            for place, row in enumerate(local.tolist()):
                file.seek(self._start["activations"] + row * size)
                if file.readinto(bytes_of[place * size : (place + 1) * size]) != size:
                    raise DataError("a complete shard", f"{self.path}, which ends before row {row}", _REDO)
        return self._as_float(rows)

    def _as_float(self, rows: Shaped[np.ndarray, "batch dim"]) -> Float32[Tensor, "batch dim"]:
        tensor = torch.from_numpy(rows)
        return (tensor.view(torch.bfloat16) if self._dtype == "bfloat16" else tensor).float()

    def span_bytes(self, local: Int64[np.ndarray, " batch"]) -> int:
        """Bytes from the first to the last of these sorted rows: all of them may have become resident."""
        return int(local[-1] - local[0] + 1) * self._dim * np.dtype(self._as_numpy).itemsize

    def release(self) -> None:
        """Drop the resident pages."""
        _advise_drop(self._mapping)

    def close(self) -> None:
        """Let the mapping go; a reader that is at it keeps it until it is done."""
        self._mapping = None


def _layout(path: Path) -> dict[str, Any]:
    """Header of a safetensors file: name → dtype, shape and span, in bytes from the start of the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < size else {}
        header.pop("__metadata__", None)
        for entry in header.values():
            first, last = entry["data_offsets"]
            entry["span"] = (8 + length + int(first), 8 + length + int(last))
    except FileNotFoundError as error:
        raise DataError(f"shard {path.name}", f"no such file in {path.parent}", _REDO) from error
    except OSError as error:
        raise DataError(f"shard {path.name} to be readable", f"{error}", "check the file and its permissions") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError("a safetensors shard", f"a damaged header in {path}", _REDO) from error
    end = max((entry["span"][1] for entry in header.values()), default=size + 1)
    if end != size:
        raise DataError("a complete shard", f"{path} of {size} bytes, truncated or overgrown", _REDO)
    return dict(header)


def read_journal(folder: str | Path) -> dict[str, Any] | None:
    """What a finished or killed harvest left about itself in `folder`; none if nothing.

    Of several ranks that were killed it is what one of them left; the next writer makes one journal of theirs.
    """
    folder = Path(folder)
    paths = [path for path in (folder / INDEX, *_journals(folder)) if path.exists()]
    return _read_journal(paths[0]) if paths else None


def _read_journal(path: Path) -> dict[str, Any]:
    try:
        journal: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if journal["schema_version"] <= SCHEMA_VERSION and journal["shards"] is not None:
            return journal
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        do = "delete its folder and harvest again"
        raise DataError(f"a readable {path.name}", f"{path} is damaged", do) from error
    version = journal["schema_version"]
    raise DataError(f"schema {SCHEMA_VERSION} or older", f"schema {version} in {path}", "update Kyomei to read it")


def _read_index(folder: Path) -> dict[str, Any]:
    journal = read_journal(folder)
    if journal is not None and "num_rows" in journal:
        return journal
    if journal is not None:
        raise DataError("a finished harvest", f"an interrupted one in {folder}", "harvest again with --resume")
    if not folder.exists():
        raise DataError("a folder of activation shards", f"nothing at {folder}", "check the path, or run `kyomei harvest`")
    # A part of a harvest holds sites; a run holds parts.
    found = [*folder.glob(f"*/{INDEX}"), *folder.glob(f"activations/*/*/{INDEX}")]
    inside = sorted(path.parent.relative_to(folder).as_posix() for path in found)
    do = f"name one of its sites: {', '.join(inside)}" if inside else "check the path, or run `kyomei harvest`"
    raise DataError(f"a folder with {INDEX}", f"{folder} without one", do)


@final
class ShardWriter:
    """Writes one site's shards so that a crash at any moment loses at most the shard in hand.

    Args:
        folder: created if missing; shards of an earlier attempt are verified, and kept where they are whole.
        dim: width of a row.
        dtype: how activations are stored.
        site: module path that the rows come from.
        meta: what else the rows depend on; an earlier attempt with other values is refused.
        ranks: processes that write into the folder together, all calling this and `close`; each keeps a journal of its own
            shards, which are those whose number leaves its rank when divided by how many ranks there are.

    Attributes:
        finished: numbers of this rank's shards that are complete.
        discarded: files of the earlier attempt that were damaged and must be written again.

    Raises:
        RunError: the folder holds a harvest of something else, or the disk is full.
    """

    def __init__(
        self, folder: str | Path, dim: int, dtype: Dtype, site: str, meta: dict[str, Any], ranks: Ranks = ALONE
    ) -> None:
        self.folder, self.dim, self.dtype, self.site, self.meta = Path(folder), dim, dtype, site, meta
        self._head = {"schema_version": SCHEMA_VERSION, "site": site, "dtype": dtype, "dim": dim}
        self._shards: dict[int, dict[str, Any]] = {}
        self._ranks = ranks
        self.discarded: list[str] = []
        # Read once for all: a rank that is slow to read would find what another already writes.
        earlier = ranks.tell(ranks.first(self._prepare))[0]
        if earlier is not None:
            self._require_same(earlier)
            self._adopt(earlier["shards"], whole="num_rows" in earlier)

    def _prepare(self) -> dict[str, Any] | None:
        """What an earlier attempt left, put in order: no files of killed processes, and one journal of all its ranks."""
        make_folder(self.folder)
        remove_temporaries(self.folder)
        journals = _journals(self.folder)
        if journals and not (self.folder / INDEX).exists() and journals != [self.folder / JOURNAL]:
            read = [_read_journal(path) for path in journals]
            entries = {entry["file"]: entry for journal in read for entry in journal["shards"]}
            self._write(JOURNAL, {**read[0], "shards": [entries[file] for file in sorted(entries)]})
            for path in journals:
                if path.name != JOURNAL:
                    path.unlink(missing_ok=True)
        return read_journal(self.folder)

    @property
    def finished(self) -> frozenset[int]:
        return frozenset(self._shards)

    @property
    def complete(self) -> int:
        """Number of complete shards."""
        return len(self._shards)

    def _require_same(self, earlier: dict[str, Any]) -> None:
        wanted, held = {**self._head, **self.meta}, {**earlier, **earlier["meta"]}
        for key, value in wanted.items():
            if held.get(key) != value:
                do = "harvest into another folder, or start over with --overwrite"
                raise RunError(f"{key} = {held.get(key)!r}, as harvested before in {self.folder}", f"{key} = {value!r}", do)

    def _adopt(self, entries: list[dict[str, Any]], whole: bool) -> None:
        """Take over this rank's shards of an earlier attempt, which ended or not."""
        for entry in entries:
            number = number_of(entry["file"])
            if number % self._ranks.size != self._ranks.rank:
                continue
            path = self.folder / entry["file"]
            if path.exists() and sha256_of(path) == entry["sha256"]:
                self._shards[number] = entry
            else:
                self.discarded.append(entry["file"])
        damaged = any(self._ranks.tell(bool(self.discarded)))
        if damaged or not whole:
            # The leading rank's journal, or the index, holds the shards of all until the others have theirs.
            if not self._ranks.leads:
                self._journal()
            self._ranks.tell(None)
            self._ranks.first(self._journal)

    def _journal(self) -> None:
        entries = [self._shards[number] for number in sorted(self._shards)]
        name = JOURNAL if self._ranks.leads else f"progress-{self._ranks.rank}.json"
        self._write(name, {**self._head, "meta": self.meta, "shards": entries})
        if self._ranks.leads:
            (self.folder / INDEX).unlink(missing_ok=True)  # it would claim that the harvest is finished

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_atomic(self.folder / name, json.dumps(content, indent=1).encode())

    def write(
        self,
        shard_number: int,
        activations: Shaped[Tensor, "rows dim"],
        row_tokens: Int64[np.ndarray, " rows"],
        counts: dict[str, int] | None = None,
    ) -> None:
        """Write one shard and journal it.

        Args:
            shard_number: its place, from 0; shards may come in any order.
            activations: rows to store.
            row_tokens: where each row comes from, as in `ShardFolder.row_tokens`.
            counts: figures of this shard, summed into the index's meta by `close`.

        Raises:
            DataError: shapes disagree, or a value is not finite as stored.
            RunError: the disk is full; nothing half-written stays.
        """
        if list(activations.shape) != [len(row_tokens), self.dim]:
            raise DataError(f"activations [{len(row_tokens)}, {self.dim}]", f"{list(activations.shape)}", "harvest sites apart")
        stored = activations.detach().to("cpu", _TORCH[self.dtype]).contiguous()
        do = "look at the model, or store float32 or bfloat16: float16 overflows at 65,504"
        require_finite(stored, f"shard {shard_number} as {self.dtype}", do=do)
        file = f"shard-{shard_number:05d}.safetensors"
        content = safetensors.torch.save({"activations": stored, "row_tokens": torch.from_numpy(row_tokens)})
        write_atomic(self.folder / file, content)
        entry = {"file": file, "num_rows": len(row_tokens), "sha256": sha256_of(self.folder / file)}
        self._shards[shard_number] = {**entry, "counts": counts or {}}
        self._journal()

    def close(self) -> ShardFolder:
        """Write index.json, once all ranks have written their shards, and open what was written.

        Raises:
            DataError: a shard is missing, or there is no row.
        """
        parts = self._ranks.tell(self._shards)
        self._ranks.first(lambda: self._close({number: entry for part in parts for number, entry in part.items()}))
        return ShardFolder(self.folder, verify=False)

    def _close(self, shards: dict[int, dict[str, Any]]) -> None:
        missing = sorted(set(range(max(shards, default=0) + 1)) - set(shards))
        num_rows = sum(entry["num_rows"] for entry in shards.values())
        if missing or not num_rows:
            found = f"shard {missing[0]} not written" if missing else "no row"
            raise DataError("every shard, and rows in them", f"{found} in {self.folder}", "harvest more tokens, or resume")
        entries = [shards[number] for number in sorted(shards)]
        totals = {key: sum(entry["counts"].get(key, 0) for entry in entries) for key in entries[0]["counts"]}
        self._write(INDEX, {**self._head, "num_rows": num_rows, "meta": {**self.meta, **totals}, "shards": entries})
        remove_journals(self.folder)


def number_of(file: str) -> int:
    """A shard's place, from its file's name."""
    return int(file.split("-")[1].split(".")[0])


def _journals(folder: Path) -> list[Path]:
    """Journals of all ranks of harvests that did not end here."""
    return sorted(path for path in folder.glob("progress*.json") if JOURNALS.fullmatch(path.name))


def remove_journals(folder: Path) -> None:
    """Remove what only a harvest that did not end needs."""
    for path in _journals(folder):
        path.unlink(missing_ok=True)
