"""A dictionary that lies spread over ranks does what it does in one process, and has its files."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.threads_as_ranks import Rank, together

import kyomei
from kyomei.dictionary.figures import SampleFigures
from kyomei.dictionary.formats import ours
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import RecipeError, RunError
from kyomei.learning.mesh import Mesh
from kyomei.learning.spread import Spread, in_turn, picked, stacked

WIDTH, DIM = 37, 6
KINDS = {
    "jumprelu": {"activation": "jumprelu"},
    "relu": {"activation": "relu", "bias": True},
    "topk": {"activation": "topk", "k": 5},
    "more-than-a-rank-has": {"activation": "topk", "k": 20},
    "unit-rows": {"activation": "jumprelu", "unit_rows": True},
    "tied": {"activation": "jumprelu", "tied": True},
}


def made(kind: str) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    asked = dict(KINDS[kind])
    decoder, bias = None if asked.pop("tied", False) else draw(WIDTH, DIM), draw(WIDTH) if asked.pop("bias", False) else None
    known: dict[str, Any] = {**asked, "bias": bias, "provenance": {"site": "here"}}
    return SparseAutoencoder(draw(WIDTH, DIM), decoder, draw(WIDTH).abs(), draw(DIM), **known)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_encode_decode_read_and_write_as_one_process_does(kind: str, size: int, tmp_path: Path) -> None:
    sae, x = made(kind), torch.randn(700, DIM, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    sae.save(tmp_path / "one")
    code = sae.encode(x)

    def work(rank: Rank) -> None:
        spread = Spread.load(tmp_path / "one", rank)  # type: ignore[arg-type]
        assert (spread.width, len(spread.encoder)) == (WIDTH, len(range(WIDTH)[spread.here]))
        own = spread.encode(x)
        torch.testing.assert_close(own.to_dense(), code[:, spread.here], rtol=0, atol=1e-12)
        torch.testing.assert_close(spread.decode(own, x), sae(x), rtol=0, atol=1e-10)
        assert spread.figures(x[:100]).to_dict() == pytest.approx(SampleFigures.measure(sae, x[:100]).to_dict())
        torch.testing.assert_close(spread.whole().encode(x), code)
        index = torch.arange(WIDTH - 1, -1, -1)[spread.here]
        assert torch.equal(spread.chosen(index).encoder, sae.encoder[index])
        spread.save(tmp_path / "many")

    together(size, work)
    for file in (ours.TENSORS_FILE, ours.CONFIG_FILE):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "many" / file).read_bytes(), file
    with safe_open(tmp_path / "many" / ours.TENSORS_FILE, framework="pt") as file:
        assert torch.equal(file.get_tensor("encoder"), sae.encoder)


def test_alone_it_is_the_dictionary_itself() -> None:
    sae = made("topk")
    spread = Spread.of(sae)
    x = torch.randn(50, DIM, dtype=torch.float64)
    assert spread.whole().encoder.data_ptr() == sae.encoder.data_ptr()
    assert torch.equal(spread.encode(x).to_dense(), sae.encode(x)) and spread.here == slice(0, WIDTH)


@pytest.mark.parametrize("length", [1, 7, 256])
def test_rows_come_by_in_turn_and_are_picked_by_number(length: int) -> None:
    whole = torch.arange(3 * WIDTH).view(WIDTH, 3)

    def work(rank: Rank) -> None:
        own = whole[rank.share(WIDTH)]
        turns = list(in_turn(own, rank, length))  # type: ignore[arg-type]
        assert torch.equal(torch.cat([rows for _, rows in turns]), whole)
        assert all(torch.equal(rows, whole[first : first + len(rows)]) for first, rows in turns)
        wanted = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(rank.rank))[: 5 * rank.rank]
        assert torch.equal(picked(own, wanted, rank), whole[wanted])  # type: ignore[arg-type]

    together(3, work)


def test_rows_of_sparse_codes_are_stacked() -> None:
    dense = torch.randn(9, 4).relu()
    parts = [part.to_sparse_csr() for part in dense.split([2, 0, 7])]
    assert torch.equal(stacked(parts).to_dense(), dense)


def test_what_the_leading_rank_cannot_write_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full after the first piece: the others send what is left, and are told."""
    sae, before = made("jumprelu"), made("relu")
    before.save(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kyomei.dictionary.formats.files._as_bytes", full)
    said = []

    def work(rank: Rank) -> None:
        with pytest.raises(RunError, match="none left while writing"):
            Spread.of(sae, rank).save(tmp_path)  # type: ignore[arg-type]
        said.append(rank.rank)

    together(3, work)
    assert sorted(said) == [0, 1, 2] and kyomei.load(tmp_path).activation == "relu"


def test_more_ranks_than_latents_are_refused(tmp_path: Path) -> None:
    SparseAutoencoder(torch.eye(3), None, torch.zeros(3), torch.zeros(3)).save(tmp_path)
    with pytest.raises(RecipeError, match="a latent for each process"):
        together(4, lambda rank: Spread.load(tmp_path, rank))  # type: ignore[arg-type]
    assert kyomei.load(tmp_path).width == Spread.load(tmp_path, Mesh()).width == 3
