"""The default path from rows to a dictionary."""

from __future__ import annotations

import pytest
import torch

import kyomei
from kyomei.errors import Interrupted, RecipeError
from kyomei.learning.fit import choose_device, resonant_plan, spectrum_targets
from kyomei.learning.resonance import resonate
from kyomei.source.shards import open_rows

VALUES = {
    "resonance": {"neurons": 256, "steps": 10, "batch_rows": 8192, "frequencies": [0.02]},
    "train": {"steps": 40, "batch_rows": 256, "warmup_steps": 5},
}
RECIPE = kyomei.Recipe.parse(VALUES)


@pytest.fixture(scope="module")
def planted() -> kyomei.Planted:
    return kyomei.Planted(n_features=64, dim=32, active=3, seed=0)


@pytest.fixture(scope="module")
def x(planted: kyomei.Planted) -> torch.Tensor:
    return planted.sample(20_000, seed=1)[0]


def test_default_dictionary_holds_what_resonance_found(planted: kyomei.Planted, x: torch.Tensor) -> None:
    directions = resonate(x, seed=0, recipe=RECIPE.resonance)
    sae = kyomei.fit(x, RECIPE, seed=0, directions=directions)
    held = torch.nn.functional.normalize(sae.encoder[: len(directions)], dim=1)
    assert torch.allclose(held, directions.encoders, atol=1e-4)
    assert kyomei.recovery(sae.decoder, planted.features).frr(0.9) >= 0.9


def test_a_resonant_latent_scores_one_on_its_own_decoder_row(x: torch.Tensor) -> None:
    directions = resonate(x, seed=0, recipe=RECIPE.resonance)
    start = resonant_plan(open_rows(x), RECIPE, directions, 0).start
    assert start.decoder is not None
    own = (start.encoder * start.decoder).sum(dim=1)[: len(directions)]
    assert torch.allclose(own, torch.ones(len(directions)), atol=1e-3)


def test_seed_decides_the_bytes(x: torch.Tensor) -> None:
    a, b, c = (kyomei.fit(x, RECIPE, seed=s).decoder for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert a.shape != c.shape or not torch.equal(a, c)


@pytest.mark.parametrize("name", ["topk", "batchtopk", "l1", "ba", "gba"])
def test_every_mechanism_trains_from_a_random_start(x: torch.Tensor, name: str) -> None:
    recipe = kyomei.Recipe.parse(
        {**VALUES, "mechanism": {"name": name, "start": "random", "k": 4}, "dictionary": {"width": 64}}
    )
    sae = kyomei.fit(x, recipe)
    assert sae.width == 64
    assert torch.isfinite(sae(x[:100])).all()


def test_a_stop_without_a_folder_says_that_nothing_is_saved(x: torch.Tensor) -> None:
    with pytest.raises(Interrupted, match="no folder for checkpoints"):
        kyomei.fit(x, RECIPE, stop=lambda: True)


def test_tied_resonant_start_is_refused(x: torch.Tensor) -> None:
    with pytest.raises(RecipeError, match=r"set mechanism\.start to random"):
        kyomei.fit(x, RECIPE.with_values({"dictionary.tied": True}))


def test_targets_lie_on_the_spectrum() -> None:
    frequency = torch.logspace(-1, -3, 50)
    targets, groups = spectrum_targets(frequency, 10, 5)
    assert len(targets) == 60 and int(groups.max()) == 4
    assert (targets[:50] / frequency).log().abs().max() < 0.6
    assert targets[50:].unique().tolist() == targets[:50].unique().tolist()


def test_an_absent_device_is_named() -> None:
    absent = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(RecipeError, match=f"'{absent}', which torch does not see"):
        choose_device(absent)
    assert choose_device("auto") in ("cpu", "cuda", "mps")
