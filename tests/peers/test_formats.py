"""What we write, loaded by the libraries it is written for, and what they write today, read here, after `make peers`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kyomei
from kyomei.config import SETTINGS
from kyomei.dictionary.formats import tensors_path, write
from kyomei.dictionary.sae import SparseAutoencoder

ROOT = Path(__file__).parents[2]
FILES = ROOT / "tests" / "dictionary" / "formats" / "files"
ROWS, DIM, WIDTH = 10_000, 32, 96

pytestmark = pytest.mark.peers


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-5)


Loaded = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
"""How another library encodes and decodes."""


def by_saelens(folder: Path) -> Loaded:
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)
    return sae.encode, sae.decode


def by_sparsify(folder: Path) -> Loaded:
    from sparsify import SparseCoder

    sae = SparseCoder.load_from_disk(folder)

    def encode(x: Tensor) -> Tensor:
        top, index, _ = sae.encode(x)
        return torch.zeros(len(x), sae.num_latents).scatter(1, index, top)

    return encode, lambda z: sae.decode(*z.topk(sae.num_latents))


def by_dictionary_learning(folder: Path) -> Loaded:
    from dictionary_learning.utils import load_dictionary

    sae, _ = load_dictionary(str(folder), "cpu")
    return sae.encode, sae.decode


READERS: dict[str, Callable[[Path], Loaded]] = {
    "saelens": by_saelens,
    "sparsify": by_sparsify,
    "dictionary_learning": by_dictionary_learning,
}


@torch.no_grad()
def agree(sae: SparseAutoencoder, x: Tensor, folder: Path, format: str) -> None:
    """Our code and reconstruction are those of the library that loads the export."""
    write(sae, folder, format)
    encode, decode = READERS[format](folder)
    z = sae.encode(x)
    assert 0.001 < (z > 0).float().mean() < 0.95
    close(z, encode(x))
    close(sae.decode(z), decode(z))


@pytest.fixture(scope="module")
def planted() -> tuple[Tensor, dict[str, SparseAutoencoder]]:
    """Rows of planted features, and a dictionary of them by every mechanism."""
    x, _ = kyomei.Planted(n_features=64, dim=DIM, active=3, seed=0).sample(ROWS, seed=1)
    small = {"train.steps": 60, "train.batch_rows": 128, "dictionary.width": WIDTH, "dictionary.l0": 4, "device": "cpu"}
    search = {"resonance.neurons": 128, "resonance.rounds": 1, "resonance.steps": 20, "resonance.frequencies": [0.05]}
    return x, {name: kyomei.fit(x, {**small, **search, "mechanism.name": name}, seed=0) for name in SETTINGS}


@pytest.mark.parametrize("format", READERS)
@pytest.mark.parametrize("mechanism", SETTINGS)
def test_every_mechanism_is_loaded_as_the_same_function(
    mechanism: str, format: str, planted: tuple[Tensor, dict[str, SparseAutoencoder]], tmp_path: Path
) -> None:
    x, dictionaries = planted
    sae = dictionaries[mechanism]
    if format == "sparsify" and sae.activation == "jumprelu":
        with pytest.raises(kyomei.KyomeiError, match="--format saelens"):
            write(sae, tmp_path, format)
    else:
        agree(sae, x, tmp_path, format)


@pytest.mark.parametrize("format", READERS)
@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu"])
def test_so_is_whatever_else_a_dictionary_may_be(activation: str, format: str, tmp_path: Path) -> None:
    """Tied or not, with decoders of any norm, biases, and latents that are never active."""
    if format == "sparsify" and activation == "jumprelu":
        return
    threshold = torch.zeros(WIDTH) if activation == "topk" else normal(0, WIDTH).abs()
    threshold[3] = 0 if activation == "topk" else torch.inf
    parts: dict[str, Any] = {"activation": activation, "k": 7 if activation == "topk" else None, "bias": normal(1, WIDTH)}
    provenance = {"model": "gpt2", "site": "transformer.h.3", "context": 128}
    for number, decoder in enumerate((None, normal(2, WIDTH, DIM) / DIM**0.5)):
        encoder = normal(3, WIDTH, DIM) / DIM**0.5
        sae = SparseAutoencoder(encoder, decoder, threshold, normal(4, DIM), **parts, provenance=provenance)
        agree(sae, normal(5, ROWS, DIM), tmp_path / str(number), format)


def test_saelens_knows_the_place_and_leaves_what_we_know_alone(tmp_path: Path) -> None:
    from sae_lens import SAE

    provenance = {
        "model": "gpt2",
        "site": "transformer.h.3",
        "context": 128,
        "dataset": "pile",
        "certificate": {"certified": 9},
    }
    write(
        SparseAutoencoder(normal(0, WIDTH, DIM), None, torch.ones(WIDTH), normal(1, DIM), provenance=provenance),
        tmp_path,
        "saelens",
    )
    loaded = SAE.load_from_disk(tmp_path)
    metadata = loaded.cfg.metadata
    assert (metadata.model_name, metadata.hook_name, metadata.context_size) == ("gpt2", "transformer.h.3", 128)
    assert (metadata.dataset_path, metadata.model_class_name) == ("pile", "AutoModelForCausalLM")
    loaded.save_model(tmp_path / "again")
    assert kyomei.load(tmp_path / "again").provenance == provenance


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tools/peer_files.py writes, with codes of many rows."""
    spec = importlib.util.spec_from_file_location("peer_files", ROOT / "tools" / "peer_files.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.ROWS = ROWS
    folder = tmp_path_factory.mktemp("theirs") / "files"
    tool.write_files(folder)
    return folder


def test_what_they_write_is_the_same_function_here(theirs: Path) -> None:
    from safetensors.torch import load_file

    folders = sorted(path.parent for path in theirs.rglob("expected.safetensors"))
    assert len(folders) >= 20
    for folder in folders:
        sae, expected = kyomei.load(folder), load_file(folder / "expected.safetensors")
        z = sae.encode(expected["x"])
        assert len(z) == ROWS
        torch.testing.assert_close(z, expected["z"], rtol=1e-5, atol=1e-5, msg=lambda said, at=folder.name: f"{at}: {said}")
        close(sae.decode(z), expected["x_hat"])


def test_the_files_that_are_kept_are_what_they_write(theirs: Path) -> None:
    kept = sorted(
        path.relative_to(FILES) for path in FILES.rglob("*") if path.is_file() and path.name != "expected.safetensors"
    )
    written = {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()}
    assert set(kept) <= written
    for path in kept:
        # Archives of torch and numpy hold times.
        if path.suffix in (".json", ".safetensors"):
            assert (FILES / path).read_bytes() == (theirs / path).read_bytes(), path
        elif tensors_path(FILES / path.parent) is not None:
            ours, now = kyomei.load(FILES / path.parent), kyomei.load(theirs / path.parent)
            assert torch.equal(ours.encoder, now.encoder) and torch.equal(ours.decoder, now.decoder), path
