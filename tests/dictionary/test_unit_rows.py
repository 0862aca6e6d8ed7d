"""A dictionary of unit rows: codes that do not know how long a row is, reconstructions that are as long as the row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.dictionary import formats
from kyomei.dictionary.card import card
from kyomei.dictionary.edits import Edit, EditedCode, Reconstruction
from kyomei.dictionary.sae import Activation, SparseAutoencoder
from kyomei.dictionary.saebench import SAEBenchAdapter
from kyomei.errors import DataError
from kyomei.evidence.codes import Coded, ExplainedSums
from kyomei.evidence.fidelity import fidelity
from kyomei.learning.least_squares import to_scipy
from kyomei.source.rows import TensorRows, UnitRows
from kyomei.views.index.codes import active_entries

ACTIVATIONS: tuple[Activation, ...] = ("jumprelu", "relu", "topk")
X = 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(4))


def build(activation: Activation = "jumprelu", unit_rows: bool = True, biased: bool = True) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(3)
    encoder, decoder = torch.randn(2, 9, 5, generator=generator)
    threshold, center = 0.3 * torch.rand(9, generator=generator), 0.2 * torch.randn(5, generator=generator)
    bias = 0.1 * torch.randn(9, generator=generator) if biased else None
    k = 2 if activation == "topk" else None
    return SparseAutoencoder(encoder, decoder, threshold, center, activation=activation, k=k, bias=bias, unit_rows=unit_rows)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@settings(deadline=None, max_examples=25)
@given(exponent=st.integers(-100, 100), row=st.integers(0, len(X) - 1))
def test_a_code_does_not_depend_on_how_long_the_row_is(activation: Activation, exponent: int, row: int) -> None:
    sae, x, times = build(activation), X[row], 2.0**exponent
    assert torch.equal(sae.encode(x * times), sae.encode(x))  # a power of two changes no digit
    torch.testing.assert_close(sae(x * times), sae(x) * times, rtol=1e-5, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_the_plain_dictionary_on_normalised_rows(activation: Activation) -> None:
    sae, plain, units = build(activation), build(activation, unit_rows=False), normalize(X, dim=1)
    torch.testing.assert_close(sae.encode(X), plain.encode(units))
    torch.testing.assert_close(sae.encode(X, sparse=True).to_dense(), plain.encode(units))
    torch.testing.assert_close(sae(X), X.norm(dim=1, keepdim=True) * plain(units))
    torch.testing.assert_close(sae.decode(sae.encode(X, sparse=True), X), sae(X))
    assert sae.to(dtype=torch.float64).unit_rows and "unit_rows" in repr(sae)


@pytest.mark.parametrize("unit_rows", [True, False])
def test_a_saved_dictionary_says_what_rows_it_is_of_without_its_tensors(unit_rows: bool, tmp_path: Path) -> None:
    build(unit_rows=unit_rows).save(tmp_path)
    (tmp_path / formats.TENSORS_FILE).unlink()
    assert formats.unit_rows_of(tmp_path) is unit_rows


def test_a_row_of_zeros_is_one() -> None:
    sae, zero = build(), torch.zeros(2, 5)
    assert torch.equal(sae.encode(zero), build(unit_rows=False).encode(zero)) and torch.equal(sae(zero), zero)
    rows = UnitRows(TensorRows(torch.cat([X, zero])))
    read = rows.read(np.array([41, 0, 3]))
    torch.testing.assert_close(read, torch.stack([zero[0], *normalize(X, dim=1)[[0, 3]]]))
    assert torch.equal(torch.cat(list(rows.blocks(7)))[[41, 0, 3]], read) and (rows.num_rows, rows.dim) == (42, 5)


def test_a_code_alone_cannot_be_decoded() -> None:
    sae = build()
    with pytest.raises(DataError, match=r"sae\.decode\(z, x\)"):
        sae.decode(sae.encode(X))
    assert "x_hat = sae.decode(z, rows)" in card(sae) and "x_hat = sae.decode(z)\n" in card(build(unit_rows=False))


def test_it_is_saved_and_older_files_stay_as_they_are(tmp_path: Path) -> None:
    build().save(tmp_path / "unit")
    build(unit_rows=False).save(tmp_path / "plain")
    again = formats.load(tmp_path / "unit")
    assert again.unit_rows and torch.equal(again(X), build()(X))
    settings = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("unit", "plain")]
    assert [one["schema_version"] for one in settings] == [3, 2] and "unit_rows" not in settings[1]
    (tmp_path / "unit" / "config.json").write_text(json.dumps({**settings[0], "unit_rows": "yes"}))
    with pytest.raises(DataError, match="unit_rows of type bool"):
        formats.load(tmp_path / "unit")


@pytest.mark.parametrize("name", ["saelens", "sparsify", "dictionary_learning"])
def test_formats_of_others_refuse_it(name: str, tmp_path: Path) -> None:
    sae = build("relu", biased=False)
    with pytest.raises(DataError, match="divided by a norm of its own"):
        formats.write(sae, tmp_path / name, name)
    assert not (tmp_path / name).exists()
    with pytest.raises(DataError, match="unit rows"):
        SAEBenchAdapter(sae, "gpt2-small", "blocks.3.hook_resid_post", 3)


def test_edits_are_in_the_scale_of_the_row() -> None:
    sae, steered = build(), EditedCode(build(), [Edit(4, "steer", 0.5)])
    change = steered.decode(steered.encode(X)) - X
    torch.testing.assert_close(change, X.norm(dim=1, keepdim=True) * 0.5 * sae.decoder[4])
    ablated, z = EditedCode(sae, [Edit(4, "ablate")]), sae.encode(X)
    z[:, 4] = 0
    torch.testing.assert_close(ablated.decode(ablated.encode(X)), X + sae.decode(z, X) - sae(X))
    whole = Reconstruction(sae)
    assert torch.equal(whole.decode(whole.encode(X)), sae(X))


@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
def test_the_explorer_reads_the_same_code(activation: Activation) -> None:
    sae = build(activation)
    latent, row, value = (torch.from_numpy(part) for part in active_entries(sae, X))
    dense = torch.zeros(len(X), sae.width).index_put((row.long(), latent.long()), value)
    torch.testing.assert_close(dense, sae.encode(X))


def test_figures_are_in_the_scale_of_the_rows() -> None:
    sae = build()
    sae.center = torch.zeros(5)
    found = fidelity(sae, X)
    assert found.fvu == pytest.approx(float((X - sae(X)).square().sum() / (X - X.mean(dim=0)).square().sum()), rel=1e-5)
    sums = ExplainedSums(sae)
    code = to_scipy(sae.encode(X, sparse=True))
    sums.add(Coded(0, X, code, sae(X), np.diff(code.indptr)))
    bias = _squared_bias(sae, X)
    assert float(sums.figures().sum()) == pytest.approx(1 - found.fvu + bias, rel=1e-4)


def _squared_bias(sae: SparseAutoencoder, x: Tensor) -> float:
    """The part of the FVU that is the error of the mean."""
    return float(len(x) * (sae(x) - x).mean(dim=0).square().sum() / (x - x.mean(dim=0)).square().sum())
