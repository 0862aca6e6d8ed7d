"""What is saved comes back bit by bit, and what is damaged is refused."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from kyomei.dictionary.formats import load, note_certificate
from kyomei.dictionary.formats.ours import read_part
from kyomei.dictionary.sae import Activation, SparseAutoencoder
from kyomei.errors import DataError, KyomeiError, RunError


def build(activation: Activation = "jumprelu", tied: bool = False, dtype: torch.dtype = torch.float32) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(0)
    encoder, decoder = torch.randn(2, 6, 4, generator=generator)
    sae = SparseAutoencoder(
        encoder,
        None if tied else decoder,
        torch.rand(6, generator=generator),
        torch.randn(4, generator=generator),
        activation=activation,
        k=3 if activation == "topk" else None,
    )
    return sae.to(dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("activation", "tied"), [("jumprelu", True), ("relu", False), ("topk", False)])
def test_round_trip_is_exact(tmp_path: Path, activation: Activation, tied: bool, dtype: torch.dtype) -> None:
    sae = build(activation, tied, dtype)
    sae.save(tmp_path / "new" / "folder")
    again = load(tmp_path / "new" / "folder")
    assert (again.tied, again.activation, again.k) == (sae.tied, sae.activation, sae.k)
    assert (again.decoder is again.encoder) == tied
    for name in ("encoder", "decoder", "threshold", "center"):
        ours, theirs = getattr(sae, name), getattr(again, name)
        assert ours.dtype == theirs.dtype == dtype
        assert torch.equal(ours, theirs)


def test_the_same_autoencoder_gives_the_same_bytes_and_no_other_files(tmp_path: Path) -> None:
    for name in ("a", "b", "b"):
        build().save(tmp_path / name)
    for file in ("sae.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["config.json", "sae.safetensors"]


def test_a_reader_of_the_old_files_is_not_disturbed(tmp_path: Path) -> None:
    build().save(tmp_path)
    for name in ("sae.safetensors", "config.json"):
        before = (tmp_path / name).read_bytes()
        with (tmp_path / name).open("rb") as reader:
            build("topk", tied=True).save(tmp_path)
            assert reader.read() == before != (tmp_path / name).read_bytes()
        build().save(tmp_path)


def _edit(**values: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


def _truncate(name: str) -> Callable[[Path], None]:
    def truncate(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-7])

    return truncate


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no .*config.json.*Check the folder"),
        (lambda folder: (folder / "sae.safetensors").unlink(), "sae.safetensors beside config.json"),
        (_truncate("sae.safetensors"), "safetensors in .*damage"),
        (_truncate("config.json"), "JSON in .*config.json"),
        (_edit(schema_version=4), "schema version 3 or less.*version 4.*newer Kyomei"),
        (_edit(format="other"), "another format"),
        (_edit(tied=True), r"the tensors \['center', 'encoder', 'threshold'\]"),
        (_edit(width=7), r"shape \[7, 4\].*\[6, 4\]"),
        (_edit(activation="gelu"), "gelu"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    build().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": torch.full((6, 4), torch.nan)}, r"a finite encoder in .* Found 24 value\(s\)"),
        ({"center": torch.tensor([0.0, torch.inf, 0.0, 0.0])}, r"a finite center"),
        ({"threshold": torch.full((6,), torch.nan)}, "a finite threshold"),
        ({"encoder": torch.ones(6, 4, dtype=torch.int64)}, "one floating dtype"),
        ({"center": torch.ones(4, dtype=torch.float64)}, r"one floating dtype in .* Found float32, float64"),
        ({"threshold": torch.ones(5)}, r"a threshold of shape \[6\]"),
        ({"decoder": torch.ones(6, 5)}, r"a decoder of shape \[6, 4\]"),
        ({"extra": torch.ones(1)}, "the tensors"),
    ],
)
def test_tensors_that_make_no_dictionary_are_named(tmp_path: Path, change: dict[str, torch.Tensor], message: str) -> None:
    build().save(tmp_path)
    save_file(load_file(tmp_path / "sae.safetensors") | change, tmp_path / "sae.safetensors")
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_a_single_number_in_the_place_of_rows_is_named_where_a_part_is_read(tmp_path: Path) -> None:
    build().save(tmp_path)
    single = {"encoder": torch.tensor(1.0)}
    save_file(load_file(tmp_path / "sae.safetensors") | single, tmp_path / "sae.safetensors")
    with pytest.raises(DataError, match=r"shape \[6, 4\] .* Found an encoder of shape \[\]"):
        read_part(tmp_path, lambda width: slice(0, 3))


def test_a_latent_that_is_never_active_may_have_an_infinite_threshold(tmp_path: Path) -> None:
    build().save(tmp_path)
    silent = {"threshold": torch.full((6,), torch.inf)}
    save_file(load_file(tmp_path / "sae.safetensors") | silent, tmp_path / "sae.safetensors")
    assert not load(tmp_path).encode(torch.ones(1, 4)).any()


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder" / "config.json").mkdir(parents=True)
    for name in ("file", "folder", "a\0b", "nothing"):
        with pytest.raises(DataError):
            load(tmp_path / name)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2)
)


@hypothesis.settings(max_examples=150, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(data=st.data())
def test_only_our_errors_come_out_of_damaged_files(data: st.DataObject, tmp_path: Path) -> None:
    build(data.draw(st.sampled_from(["jumprelu", "relu", "topk"])), data.draw(st.booleans())).save(tmp_path)
    name = data.draw(st.sampled_from(["sae.safetensors", "config.json"]))
    content = bytearray((tmp_path / name).read_bytes())
    if data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(json.loads((tmp_path / "config.json").read_text()))))
        _edit(**{key: data.draw(json_values)})(tmp_path)
    elif data.draw(st.booleans()):
        (tmp_path / name).write_bytes(content[: data.draw(st.integers(0, len(content)))])
    else:
        for _ in range(data.draw(st.integers(1, 5))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        (tmp_path / name).write_bytes(content)
    with contextlib.suppress(KyomeiError):
        load(tmp_path)(torch.ones(2, 4))


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"space on the disk.*sae.safetensors.*[Ff]ree some space"):
        build(tied=True).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_dictionary_of_an_old_run_loads_for_ever(tmp_path: Path) -> None:
    """Written here byte by byte, in the first format: whatever becomes of runs, these files keep their meaning."""
    tensors = {"encoder": torch.eye(3, 2), "decoder": torch.eye(3, 2) * 2}
    save_file({**tensors, "threshold": torch.full((3,), 0.5), "center": torch.ones(2)}, tmp_path / "sae.safetensors")
    config = {"schema_version": 1, "format": "kyomei", "width": 3, "dim": 2, "tied": False, "activation": "jumprelu", "k": None}
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    sae = load(tmp_path)
    x = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    assert torch.equal(sae.encode(x), torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    assert torch.equal(sae(x), torch.tensor([[5.0, 1.0], [1.0, 3.0]]))


def test_what_was_added_to_active_scores_is_read_as_a_bias(tmp_path: Path) -> None:
    """Before biases, thresholds were of scores without what was added to them: 2 > 1.5 and 2 + 0.25 = 2.25."""
    tensors = {"encoder": torch.eye(2), "decoder": torch.eye(2), "threshold": torch.tensor([1.5, torch.inf])}
    save_file({**tensors, "center": torch.zeros(2), "offset": torch.tensor([0.25, 7.0])}, tmp_path / "sae.safetensors")
    config = {"schema_version": 1, "format": "kyomei", "width": 2, "dim": 2, "tied": False, "activation": "jumprelu", "k": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path).encode(torch.tensor([[2.0, 9.0], [1.5, 9.0]])).tolist() == [[2.25, 0.0], [0.0, 0.0]]


def test_only_what_has_a_bias_asks_for_a_newer_reader(tmp_path: Path) -> None:
    build().save(tmp_path / "old")
    sae = build("topk")
    sae.bias = torch.arange(6.0)
    sae.save(tmp_path / "new")
    versions = [json.loads((tmp_path / name / "config.json").read_text())["schema_version"] for name in ("old", "new")]
    again = load(tmp_path / "new")
    assert versions == [1, 2] and again.bias is not None and torch.equal(again.bias, sae.bias)


def test_a_dictionary_of_before_provenance_loads(tmp_path: Path) -> None:
    build().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("provenance") == {}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path).provenance == {}
    (tmp_path / "config.json").write_text(json.dumps({**config, "provenance": "Paris"}))
    with pytest.raises(DataError, match="Expected a mapping as provenance"):
        load(tmp_path)


def written(path: Path) -> tuple[int, int, int]:
    """Which file it is and when it was written; reading it changes neither."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def test_a_certificate_is_told_without_a_byte_of_the_tensors_changing(tmp_path: Path) -> None:
    build().save(tmp_path)
    before = written(tmp_path / "sae.safetensors")
    note_certificate(tmp_path, {"certified": 3, "latents": 6})
    assert load(tmp_path).provenance == {"certificate": {"certified": 3, "latents": 6}}
    assert written(tmp_path / "sae.safetensors") == before
