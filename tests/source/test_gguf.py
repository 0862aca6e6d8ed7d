"""GGUF files: weights, configuration and tokenizer from one file, wherever it lies."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kyomei.errors import ModelError
from kyomei.source.model import LanguageModel

pytest.importorskip("gguf", reason="reading GGUF files needs kyomei[gguf]")
pytest.importorskip("accelerate", reason="reading GGUF files needs kyomei[gguf]")

import gguf
from tests.source.gguf_files import write_gguf

IDS = torch.randint(1, 300, (2, 9), generator=torch.Generator().manual_seed(0))
TEXT = "the quick brown fox, naïve 日本語 🎉 and 12 more"


def test_a_file_holds_all_of_a_model(llama: LanguageModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf")
    loaded = LanguageModel.load(str(path))
    assert capfd.readouterr() == ("", "")
    assert loaded.fingerprint() == llama.fingerprint()
    torch.testing.assert_close(loaded.logits(IDS), llama.logits(IDS))
    assert loaded.is_causal
    assert (
        loaded.tokenizer(TEXT, add_special_tokens=False).input_ids == llama.tokenizer(TEXT, add_special_tokens=False).input_ids
    )
    assert loaded.tokenizer.eos_token_id == llama.tokenizer.eos_token_id
    assert loaded.default_site() == llama.default_site()


def test_the_header_is_parsed_once(llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a minute for a large vocabulary, and transformers alone parses it four times."""
    path = write_gguf(llama, tmp_path / "tiny.gguf")
    made, reader = [], gguf.GGUFReader
    monkeypatch.setattr(gguf, "GGUFReader", lambda name: made.append(name) or reader(name))
    counting = gguf.GGUFReader
    LanguageModel.load(str(path))
    assert len(made) == 1
    assert gguf.GGUFReader is counting


def test_a_folder_with_one_file_is_that_model(llama: LanguageModel, tmp_path: Path) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf")
    assert LanguageModel.load(str(tmp_path)).fingerprint() == llama.fingerprint()
    path.with_name("other.gguf").write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match=r"one .gguf file in .*\. Found 2: other.gguf, tiny.gguf. Name one of them"):
        LanguageModel.load(str(tmp_path))


def test_random_weights_have_the_architecture_of_the_file(llama: LanguageModel, tmp_path: Path) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf")
    drawn = LanguageModel.load(str(path), random_weights_seed=1)
    assert drawn.is_causal
    assert drawn.fingerprint() not in (llama.fingerprint(), LanguageModel.load(str(path), random_weights_seed=2).fingerprint())


def test_a_weight_that_a_file_lacks_is_named(llama: LanguageModel, tmp_path: Path) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf", without="blk.1.ffn")
    with pytest.raises(ModelError, match=r"Found 4 of 30 missing: model.layers.1.mlp.down_proj.weight, "):
        LanguageModel.load(str(path))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.95])
def test_a_file_cut_short_is_refused(llama: LanguageModel, tmp_path: Path, share: float) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelError, match=r"GGUF file at .*tiny.gguf|at '.*tiny.gguf'") as caught:
        LanguageModel.load(str(path))
    assert "\n" not in str(caught.value)


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    with pytest.raises(ModelError, match=r"Found nothing at .*tiny.gguf"):
        LanguageModel.load(str(path))
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(ModelError, match=r"Found a Git LFS pointer"):
        LanguageModel.load(str(path))
    path.write_text("<html>not found</html>")
    with pytest.raises(ModelError, match=r"a GGUF file at .*tiny.gguf. Found one that begins with b'<htm'"):
        LanguageModel.load(str(path))
    piece = tmp_path / "large-00001-of-00003.gguf"
    piece.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"Found .*large-00001-of-00003.gguf, a piece of one. Merge the pieces"):
        LanguageModel.load(str(piece))


def test_missing_packages_are_named(llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf")
    for name in ("gguf", "accelerate"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelError, match=r"Found no gguf and no accelerate. Run `pip install 'kyomei\[gguf\]'`"):
        LanguageModel.load(str(path))


def package(root: Path, name: str, files: dict[str, bytes]) -> Path:
    folder = root / name / "data"
    folder.mkdir(parents=True)
    (root / name / "__init__.py").write_text("raise AssertionError('importing is not needed')")
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


def test_a_package_ships_a_file(llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_gguf(llama, tmp_path / "tiny.gguf").read_bytes()
    package(tmp_path / "site", "gguf_in_a_package", {"tiny.gguf": whole})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert LanguageModel.load("package:gguf-in-a-package").fingerprint() == llama.fingerprint()


@pytest.fixture
def parts(llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose model lies in three others, with its digest; its parts are put together in a cache of the test's own."""
    whole = write_gguf(llama, tmp_path / "tiny.gguf").read_bytes()
    third = len(whole) // 3
    site = tmp_path / "site"
    name = f"gguf_in_parts_{tmp_path.name[-1]}"
    package(site, name, {"SHA256SUMS": f"{hashlib.sha256(whole).hexdigest()}  tiny.gguf\n".encode()})
    for n, piece in enumerate((whole[:third], whole[third : 2 * third], whole[2 * third :])):
        package(site, f"{name}_part{n + 1}", {f"tiny.gguf.part{n:02}": piece})
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return site / name


def test_parts_in_packages_are_put_together_once(llama: LanguageModel, parts: Path, tmp_path: Path) -> None:
    assert LanguageModel.load(f"package:{parts.name}").fingerprint() == llama.fingerprint()
    (whole,) = (tmp_path / "cache").rglob("*.gguf*")
    written = whole.stat().st_mtime_ns
    assert LanguageModel.load(f"package:{parts.name}").fingerprint() == llama.fingerprint()
    assert whole.stat().st_mtime_ns == written


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_part_is_named(parts: Path, tmp_path: Path, number: int) -> None:
    next(parts.parent.rglob(f"*.part{number:02}")).unlink()
    with pytest.raises(ModelError, match=r"(all parts of one .gguf file|tiny.gguf with SHA-256 .*)\. Found .* Install"):
        LanguageModel.load(f"package:{parts.name}")
    assert not list((tmp_path / "cache").rglob("*.gguf*"))


def test_a_cache_that_cannot_be_written_is_named(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the folder's place")
    with pytest.raises(ModelError, match=r"room for tiny.gguf in .*Set XDG_CACHE_HOME to a folder that can be written"):
        LanguageModel.load(f"package:{parts.name}")


def test_a_full_disk_leaves_nothing_in_the_cache(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelError, match=r"room for tiny.gguf in .* Found none left while writing .*tiny.gguf. Set XDG_CACHE"):
        LanguageModel.load(f"package:{parts.name}")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_part_that_cannot_be_read_is_named(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refused(path: Path, *how: Any, **more: Any) -> Any:
        if path.suffix == ".part01":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *how, **more)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ModelError, match=r"to read .*part01\. Found .*denied.* Make it readable"):
        LanguageModel.load(f"package:{parts.name}")


def test_parts_in_a_folder_are_put_together(llama: LanguageModel, parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for part in parts.parent.rglob("*.part*"):
        (folder / part.name).write_bytes(part.read_bytes())
    assert LanguageModel.load(str(folder)).fingerprint() == llama.fingerprint()
    assert "gguf_in_parts" not in "".join(sys.modules)
