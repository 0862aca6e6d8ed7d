"""Training that begins wide: which latents are missed, and what is left of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.threads_as_ranks import together
from torch.nn.functional import normalize

import kyomei
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.learning import fit as fitting
from kyomei.learning.latents import trained_latents
from kyomei.learning.narrowing import PARTS, missed, narrowed, widths
from kyomei.learning.spaces import Normalisation
from kyomei.learning.spread import Spread
from kyomei.learning.workplace import Workplace
from kyomei.source.rows import open_rows


def test_widths_fall_in_equal_ratios_to_the_one_asked_for() -> None:
    assert widths(100, 10, 4.0) == widths(100, 34, None) == [400, 283, 200, 141]
    assert widths(100, 10, 1.0) == widths(100, 10, 1.004) == [100]
    assert all(a > b > 1000 for a, b in zip(widths(1001, 10, 2.0), widths(1001, 10, 2.0)[1:], strict=False))
    assert len(widths(1001, 10, 2.0)) == PARTS


def test_a_dictionary_begins_with_no_more_latents_than_its_rows_dimension_bears() -> None:
    assert [widths(width, 256, None)[0] for width in (64, 768, 1024, 2048, 3072, 4096)] == [256, 3072, 3072, 3072, 3072, 4096]
    assert len(widths(3072, 256, None)) == 1


def _dictionary(activation: str, k: int | None) -> tuple[SparseAutoencoder, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    encoder, x = torch.randn(24, 8, generator=generator), torch.randn(3000, 8, generator=generator)
    decoder = torch.randn(24, 8, generator=generator)
    centre, threshold = torch.randn(8, generator=generator), torch.rand(24, generator=generator)
    return SparseAutoencoder(encoder, decoder, threshold, centre, activation=activation, k=k), x  # type: ignore[arg-type]


@pytest.mark.parametrize(("activation", "k"), [("jumprelu", None), ("relu", None), ("topk", 4)])
def test_a_latent_is_missed_by_what_the_error_grows_without_it(activation: str, k: int | None) -> None:
    sae, x = _dictionary(activation, k)
    code = sae.encode(x)
    error = (x - sae.decode(code)).square().sum()
    expected = []
    for latent in range(sae.width):
        without = code.clone()
        without[:, latent] = 0
        expected.append(float((x - sae.decode(without)).square().sum() - error))
    assert missed(Spread.of(sae), open_rows(x)).tolist() == pytest.approx(expected, rel=1e-3, abs=1e-2)


def test_narrowing_leaves_the_latents_that_are_missed_most_as_they_are() -> None:
    sae, x = _dictionary("topk", 4)
    rows = open_rows(x)
    whole = Spread.of(sae)
    least = np.sort(missed(whole, rows).argsort(descending=True).numpy()[:9])
    left = narrowed(whole, rows, 9)
    for name in ("encoder", "decoder", "threshold"):
        assert torch.equal(getattr(left, name), getattr(sae, name)[least])
    assert left.k == 4 and narrowed(whole, rows, 3).k == 3 and narrowed(whole, rows, 24) is whole
    ranks = together(3, lambda rank: narrowed(Spread.of(sae, rank), rows, 10).whole())  # type: ignore[arg-type]
    expected = narrowed(whole, rows, 10).whole()
    assert all(torch.equal(found.encoder, expected.encoder) and found.k == 4 for found in ranks)


def test_what_is_trained_further_is_the_same_in_normalised_space() -> None:
    sae, x = _dictionary("topk", 4)
    normalisation = Normalisation.measure(open_rows(x))
    latents = trained_latents(sae, normalisation)
    assert torch.allclose(latents.decoder, normalize(sae.decoder, dim=1))
    scores = (normalisation.apply(x).float() - latents.centre) @ latents.encoder.T
    assert torch.allclose(scores * normalisation.scale, (x - sae.center) @ sae.encoder.T, atol=1e-4)


VALUES = {
    "resonance": {"neurons": 16, "steps": 3, "frequencies": [0.02], "rounds": 1},
    "dictionary": {"width": 24, "l0": 4.0},
    "train": {"steps": 80, "batch_rows": 64, "checkpoint_every": 8},
}


def test_a_stop_in_any_part_leaves_what_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    x = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    expected = kyomei.fit(x, VALUES, seed=0)
    folder, stops, done = tmp_path / "stopped", 0, 0
    while True:
        asked = iter([False] * 9 + [True] * 10_000)
        work = Workplace(folder, resume=True, stop=lambda asked=asked: next(asked))  # type: ignore[misc]
        try:
            found = kyomei.fit(x, VALUES, seed=0, workplace=work)
            break
        except kyomei.errors.Interrupted:
            stops, before, done = stops + 1, done, fitting.steps_done(folder)
            assert done > before
    assert stops >= 8
    for name in ("encoder", "decoder", "threshold", "center"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    # Parts that ended leave a dictionary; only the last has checkpoints.
    parts = sorted((folder / fitting.WARM_FOLDER).iterdir())
    assert len(parts) == PARTS and not any((part / "checkpoints").exists() for part in parts)
    assert fitting.steps_done(folder) == 80
    # One that was killed while it was saved has tensors and no settings yet: it is not taken for ended.
    (parts[0] / "config.json").unlink()
    assert fitting.steps_done(folder) == 80 - 12
    again = kyomei.fit(x, VALUES, seed=0, workplace=Workplace(folder, resume=True))
    assert torch.equal(again.encoder, expected.encoder) and (parts[0] / "config.json").exists()
