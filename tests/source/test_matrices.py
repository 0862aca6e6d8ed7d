"""Files of activations: each format gives its rows; what is damaged or something else is refused in one line."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import strategies as st

from kyomei.errors import DataError, KyomeiError
from kyomei.source.matrices import READERS
from kyomei.source.rows import open_rows

X = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
T = torch.from_numpy(X)
LISTS = pa.array(X.tolist(), pa.list_(pa.float32()))


def npz(file: Any, **arrays: np.ndarray) -> None:
    np.savez_compressed(file, **arrays)


def columns(file: Any) -> None:
    pq.write_table(pa.table({f"c{i}": X[:, i].astype("f8") for i in range(6)}), file)


WRITERS: dict[str, Callable[[Any], None]] = {
    "x.npy": lambda file: np.save(file, X),
    "big-endian.npy": lambda file: np.save(file, X.astype(">f4")),
    "fortran.NPY": lambda file: np.save(file, np.asfortranarray(X)),
    "windows.npy": lambda file: np.save(file, X.reshape(5, 10, 6)),
    "one.npz": lambda file: npz(file, x=X),
    "several.npz": lambda file: npz(file, activations=X, labels=np.arange(50), other=X[:3]),
    "x.pt": lambda file: torch.save(T, file),
    "x.pth": lambda file: torch.save({"rows": T, "step": 3, "ids": torch.arange(50)}, file),
    "old.pt": lambda file: torch.save(T, file, _use_new_zipfile_serialization=False),
    "x.safetensors": lambda file: file.write(safetensors.torch.save({"rows": T, "row_tokens": torch.arange(50)})),
    "columns.parquet": columns,
    "lists.parquet": lambda file: pq.write_table(pa.table({"id": range(50), "rows": LISTS}), file),
    "large.parq": lambda file: pq.write_table(pa.table({"rows": LISTS.cast(pa.large_list(pa.float64()))}), file),
    "fixed.pq": lambda file: pq.write_table(pa.table({"rows": LISTS.cast(pa.list_(pa.float32(), 6))}), file, row_group_size=7),
}


def written(folder: Path, name: str) -> Path:
    with (folder / name).open("wb") as file:
        WRITERS[name](file)
    return folder / name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_gives_its_rows(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    for given in (path, str(path)):
        rows = open_rows(given)
        assert (rows.num_rows, rows.dim) == (50, 6)
        assert torch.equal(rows.read(np.array([49, 3, 3])), T[[49, 3, 3]])
        assert torch.equal(torch.cat(list(rows.blocks(16))), T)


def test_one_of_several_is_taken_by_name(tmp_path: Path) -> None:
    npz(tmp_path / "x.npz", a=X, b=X[:9])
    torch.save({"a": T, "b": T[:9].clone()}, tmp_path / "x.pt")
    (tmp_path / "x.safetensors").write_bytes(safetensors.torch.save({"a": T, "b": T[:9].clone()}))
    pq.write_table(pa.table({"a": LISTS, "b": LISTS}), tmp_path / "x.parquet")
    for ending in ("npz", "pt", "safetensors", "parquet"):
        path = tmp_path / f"x.{ending}"
        assert open_rows(f"{path}::a").num_rows == 50
        if ending != "parquet":
            assert open_rows(Path(f"{path}::b")).num_rows == 9
        with pytest.raises(DataError, match=rf"one matrix, or one called 'activations'. Found a, b in .*{ending}::NAME"):
            open_rows(path)
        with pytest.raises(DataError, match=r"a matrix called 'c'. Found a, b in"):
            open_rows(f"{path}::c")


def test_a_path_with_two_colons_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a::b").mkdir()
    assert open_rows(written(tmp_path / "a::b", "x.npy")).num_rows == 50


class Command:
    def __reduce__(self) -> Any:
        return os.system, ("touch run-by-pickle",)


def test_what_is_no_matrix_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("1,2\n")
    (tmp_path / "x.h5").write_bytes(b"\x89HDF")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "objects.npy", np.array([[None]]), allow_pickle=True)
    np.save(tmp_path / "vector.npy", X[0])
    torch.save([T, T], tmp_path / "list.pt")
    torch.save({"a": 1}, tmp_path / "nothing.pt")
    (tmp_path / "command.pt").write_bytes(pickle.dumps(Command()))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    pq.write_table(pa.table({"text": ["a"], "n": [1.0]}), tmp_path / "text.parquet")
    pq.write_table(pa.table({"rows": [[1.0, 2.0], [1.0]]}), tmp_path / "ragged.parquet")
    pq.write_table(pa.table({"rows": [[1.0, 2.0], None]}), tmp_path / "missing.parquet")
    pq.write_table(pa.table({"a": [1.0, None]}), tmp_path / "null.parquet")
    pq.write_table(pa.table({"rows": pa.array([], pa.list_(pa.float32()))}), tmp_path / "none.parquet")
    (tmp_path / "folder.npy").mkdir()
    for name, message in {
        "x.csv": "a file of activations",
        "x.h5": "a file of activations",
        "empty.npy": "a .npy file of numbers",
        "objects.npy": "a .npy file of numbers",
        "vector.npy": r"Pass x\[None\]",
        "list.pt": "a file of one tensor",
        "nothing.pt": "one matrix",
        "command.pt": "a .pt file of numbers",
        "module.pt": "a .pt file of numbers",
        "text.parquet": "columns of numbers, .* Found .*text.parquet, with text",
        "ragged.parquet": "lists of one length. Found lengths 1, 2",
        "missing.parquet": "lists of one length",
        "null.parquet": "Found nan in",
        "none.parquet": "at least one row",
        "folder.npy": "a folder with index.json",
        "gone.npy": "Found nothing at",
        "a\0b.npy": "Found nothing at",
        "a" * 5000: "Found nothing at",
    }.items():
        with pytest.raises(DataError, match=message) as raised:
            open_rows(name)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "run-by-pickle").exists()


_CONTENT: dict[str, bytes] = {}


def content(name: str) -> bytes:
    if name not in _CONTENT:
        file = io.BytesIO()
        file.close = lambda: None  # type: ignore[method-assign]  # Arrow closes what it wrote to
        WRITERS[name](file)
        _CONTENT[name] = file.getvalue()
    return _CONTENT[name]


@hypothesis.settings(max_examples=300, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(data=st.data())
def test_only_our_errors_come_out_of_damaged_files(data: st.DataObject, tmp_path: Path) -> None:
    kind = data.draw(st.sampled_from(["random", "cut", "changed", "renamed"]))
    name = data.draw(st.sampled_from(sorted(WRITERS)))
    ending = Path(name).suffix
    held = data.draw(st.binary(max_size=200)) if kind == "random" else content(name)
    if kind == "cut":
        held = held[: data.draw(st.integers(0, len(held)))]
    if kind == "changed":
        for _ in range(data.draw(st.integers(1, 8))):
            at = data.draw(st.integers(0, len(held) - 1))
            held = held[:at] + bytes([data.draw(st.integers(0, 255))]) + held[at + 1 :]
    if kind == "renamed":
        ending = data.draw(st.sampled_from(sorted(READERS)))
    path = tmp_path / f"x{ending}"
    path.write_bytes(held)
    try:
        rows = open_rows(path)
        rows.read(np.arange(min(3, rows.num_rows)))
    except KyomeiError as error:
        assert "\n" not in str(error)
