"""Rows in any usual container: the same rows, or a refusal in one line."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as numbers

from kyomei.arrays import tensor_of
from kyomei.errors import DataError, KyomeiError
from kyomei.source import rows as rows_module
from kyomei.source.rows import TensorRows, open_rows
from kyomei.source.shard_writer import ShardWriter
from kyomei.source.shards import ShardFolder

X = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
T = torch.from_numpy(X)


class Frame:
    """A stand-in for a data frame: it has rows and columns, and gives itself as an ndarray."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values


class Lent:
    """A stand-in for an array of another library: it lends its memory only."""

    def __dlpack__(self, **options: Any) -> Any:
        return T.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return T.__dlpack_device__()


class Exchanged:
    """A stand-in for a data frame of which only the interchange protocol is known."""

    def __dataframe__(self, **options: Any) -> Any:
        import pyarrow as pa

        return pa.table({str(i): X[:, i] for i in range(5)}).__dataframe__(**options)


SAME = {
    "float64": X.astype("f8"),
    "big-endian": X.astype(">f4"),
    "big-endian float64": X.astype(">f8"),
    "longdouble": X.astype(np.longdouble),
    "Fortran order": np.asfortranarray(X),
    "rows backwards": np.ascontiguousarray(X[::-1])[::-1],
    "columns backwards": np.ascontiguousarray(X[:, ::-1])[:, ::-1],
    "every second row": np.repeat(X, 2, axis=0)[::2],
    "windows": X.reshape(6, 10, 5),
    "Fortran windows": np.asfortranarray(X.reshape(6, 10, 5)),
    "lists": X.tolist(),
    "a tuple of arrays": tuple(X),
    "a list of tensors": list(T),
    "a matrix": np.matrix(X),
    "a masked array without masked values": np.ma.masked_array(X, mask=False),
    "a data frame": Frame(X),
    "a lent array": Lent(),
    "an exchanged table": Exchanged(),
    "SciPy's sparse": scipy.sparse.csr_array(X),
    "tensor, float64": T.double(),
    "tensor with gradients": T.clone().requires_grad_(),
    "a parameter": torch.nn.Parameter(T.clone()),
    "transposed tensor": T.T.contiguous().T,
    "tensor windows": T.reshape(6, 10, 5),
    "transposed windows": T.reshape(6, 10, 5).transpose(0, 1).contiguous().transpose(0, 1),
    "sparse COO": T.to_sparse(),
    "sparse CSR": T.to_sparse_csr(),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")
@pytest.mark.parametrize("name", SAME)
def test_any_container_gives_the_same_rows(name: str) -> None:
    rows = open_rows(SAME[name])
    assert (rows.num_rows, rows.dim) == X.shape
    index = np.array([59, 0, 17, 17, 30])
    assert torch.equal(rows.read(index), T[index])
    assert torch.equal(torch.cat(list(rows.blocks(7))), T)


@pytest.mark.parametrize(
    "dtype", ["f2", ">f2", "i1", "u1", "i2", "u2", ">i2", "i4", "u4", "i8", "u8", ">u8", "?", "float8_e4m3fn", "bfloat16"]
)
def test_numbers_of_any_dtype_are_rows(dtype: str) -> None:
    wanted = np.abs(X * 3).round()
    if hasattr(torch, dtype):
        made: Any = torch.from_numpy(wanted).to(getattr(torch, dtype))
    else:
        made = wanted.astype(dtype)
    if dtype == "?":
        wanted = (wanted != 0).astype("f4")
    assert torch.equal(torch.cat(list(open_rows(made).blocks(16))), torch.from_numpy(wanted))


def test_a_dtype_of_another_package_is_taken() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    assert torch.equal(open_rows(X.astype(bfloat16)).read(np.arange(60)), T.bfloat16().float())


def test_what_is_read_only_stays_as_it_was() -> None:
    held = X.copy()
    held.setflags(write=False)
    for block in open_rows(held).blocks():
        block += 1
    assert np.array_equal(held, X)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (X.astype("c8"), "real numbers. Found an ndarray of dtype complex64"),
        (X.astype(object), "real numbers. Found an ndarray of dtype object"),
        (np.zeros(3, dtype=[("a", "f4")]), "real numbers"),
        (np.array([["2020-01-01"]], dtype="M8[D]"), "real numbers"),
        ([["a", "b"]], "real numbers"),
        ([[1.0], [1.0, 2.0]], "rows of equal length"),
        ([T[:3], T[:4]], "rows of equal length"),
        ([], r"\[rows, dim\]"),
        ([[]], "at least one row and one column"),
        (X[0], r"Pass x\[None\] if it is one row"),
        (T[:, 0], r"Pass x\[None\] if it is one row"),
        (np.float32(3), r"Found shape \[\]"),
        (np.ma.masked_array(X, mask=X > 1), r"numbers in every place. Found \d+ masked"),
        (torch.empty(3, 4, device="meta"), "a tensor with values"),
        (torch.nested.nested_tensor([T[:3], T[:4]]), "one tensor. Found a nested"),
        (None, "numbers. Found a value of type NoneType"),
        ({"a": X}, "numbers. Found a value of type dict"),
        ((row for row in X), "numbers. Found a value of type generator"),
        (3.0, "numbers. Found a value of type float"),
        (Frame(X.astype(object)), "real numbers"),
        (np.zeros((0, 4)), "at least one row"),
        (np.zeros((2, 0, 4)), "at least one row"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_what_holds_no_rows_is_refused_in_one_line(made: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        open_rows(made)
    assert "\n" not in str(raised.value)


def test_values_that_are_not_finite_are_counted() -> None:
    x = np.zeros((9000, 4), "f4")
    x[8195, 2], x[8195, 3], x[8999, 0] = np.inf, np.nan, np.nan
    with pytest.raises(DataError, match="Found inf in array, row 8195, column 2, the first of 3 such values in 2 rows"):
        open_rows(x)
    wide = np.zeros((3, 2))
    wide[1, 0] = 1e300  # beyond float32
    with pytest.raises(DataError, match="Found inf in array, row 1, column 0"):
        open_rows(wide)


def test_gradients_pass_through_the_conversion() -> None:
    x = T.clone().requires_grad_()
    assert tensor_of(x) is x


def test_a_mapped_file_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=">f4", shape=(40_000, 32), fortran_order=True)
    large[:] = np.arange(40_000)[:, None]
    large.flush()
    del large
    released = []
    monkeypatch.setattr(rows_module, "RELEASE_BYTES", 1 << 20)
    monkeypatch.setattr(rows_module, "drop_pages", lambda mapped: released.append(mapped.nbytes))
    rows = open_rows(tmp_path / "x.npy")
    assert isinstance(rows, TensorRows)
    assert len(released) >= 4  # while it was checked
    assert rows.read(np.array([39_999, 5]))[:, 0].tolist() == [39_999, 5]


_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import numpy as np, torch
from kyomei.source.shards import ShardFolder
folders = [ShardFolder(sys.argv[1]) for _ in range(3)]
for folder in folders:
    index = np.random.default_rng(0).permutation(folder.num_rows)
    assert torch.equal(folder.read(index)[:, 0], torch.from_numpy(index).float())
    assert len(folder.row_tokens()) == folder.num_rows
"""


def test_few_open_files_are_enough_for_many_shards(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 2, "float32", "site", {})
    for number in range(300):
        tokens = np.arange(2 * number, 2 * number + 2)
        writer.write(number, torch.from_numpy(tokens).float()[:, None].expand(2, 2), tokens)
    writer.close()
    done = subprocess.run([sys.executable, "-c", _LIMITED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_rows_of_shards_that_are_not_mapped_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    writer = ShardWriter(tmp_path, 5, dtype, "site", {})
    for number in range(6):
        writer.write(number, T[10 * number : 10 * number + 10], np.arange(10))
    writer.close()
    index = np.array([59, 0, 0, 31, 12, 33, 32])
    mapped = ShardFolder(tmp_path)
    wanted, everything = mapped.read(index), mapped.read(np.arange(60))
    monkeypatch.setattr("kyomei.source.shards._most_open", lambda: 1)
    few = ShardFolder(tmp_path)
    assert torch.equal(few.read(index), wanted)
    assert torch.equal(torch.cat(list(few.blocks(7))), everything)
    if dtype != "int8":
        assert torch.equal(everything, T.to(getattr(torch, dtype)).float())
    path = tmp_path / "shard-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"a complete shard. Found .*shard-00003.* before row"):
        few.read(np.array([39]))


def test_a_shard_that_is_gone_when_it_is_read_is_named(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 5, "float32", "site", {})
    writer.write(0, T, np.arange(60))
    writer.close()
    rows = ShardFolder(tmp_path, verify=False)
    (tmp_path / "shard-00000.safetensors").unlink()
    with pytest.raises(DataError, match=r"shard-00000.safetensors"):
        rows.read(np.arange(3))


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    numbers.arrays(
        st.one_of(
            numbers.floating_dtypes(endianness="?"),
            numbers.integer_dtypes(endianness="?"),
            numbers.unsigned_integer_dtypes(endianness="?"),
            numbers.boolean_dtypes(),
            numbers.complex_number_dtypes(),
            numbers.unicode_string_dtypes(),
            numbers.datetime64_dtypes(),
        ),
        numbers.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    ),
    st.permutations(range(4)),
    st.sampled_from([1, -1, 2, -2]),
)
def test_an_array_is_rows_or_refused(array: np.ndarray, order: list[int], step: int) -> None:
    array = array.transpose([axis for axis in order if axis < array.ndim])
    array = array[(slice(None, None, step),) * array.ndim]
    try:
        rows = open_rows(array)
    except KyomeiError:
        return
    flat = array.reshape(-1, array.shape[-1])
    with np.errstate(over="ignore"):
        assert np.array_equal(torch.cat(list(rows.blocks(3))).numpy(), flat.astype("f4"))
