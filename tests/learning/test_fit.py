"""The default path from rows to a dictionary."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.threads_as_ranks import together

import kyomei
import kyomei.learning.fit
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import Interrupted, RecipeError
from kyomei.learning.anchoring import ACTIVE_SHARE, CLEAR_SHARE, Cone, usual_scores
from kyomei.learning.fit import choose_device, refit
from kyomei.learning.placement import resonant_plan, spectrum_targets
from kyomei.learning.resonance import resonate
from kyomei.learning.spaces import Normalisation
from kyomei.learning.spread import Spread
from kyomei.learning.workplace import Workplace
from kyomei.source.rows import open_rows

VALUES = {
    "resonance": {"neurons": 256, "steps": 10, "batch_rows": 8192, "frequencies": [0.02]},
    "train": {"steps": 40, "batch_rows": 256, "warmup_steps": 5},
}
RECIPE = kyomei.Recipe.parse(VALUES)
OF_EACH_DIRECTION = ("vectors", "encoders", "whitened", "found_at", "frequency", "support", "stability", "candidates")


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


def test_decoders_of_resonant_latents_stay_in_their_cone(x: torch.Tensor) -> None:
    directions = resonate(x, seed=0, recipe=RECIPE.resonance)
    sae = kyomei.fit(x, RECIPE, seed=0, directions=directions)
    whitened = torch.nn.functional.normalize(sae.decoder[: len(directions)] @ directions.whitening.forward, dim=1)
    cosine = (whitened * directions.whitened).sum(dim=1)
    assert float(cosine.min()) >= RECIPE.mechanism.anchor - 0.005
    assert torch.allclose(sae.decoder.norm(dim=1), torch.ones(sae.width), atol=1e-4)


def test_refitted_decoders_reconstruct_better(x: torch.Tensor) -> None:
    directions = resonate(x, seed=0, recipe=RECIPE.resonance)
    sae = kyomei.fit(x, RECIPE, seed=0, directions=directions)
    spoilt = torch.nn.functional.normalize(sae.decoder + 0.1 * torch.randn(sae.decoder.shape), dim=1)
    worse = SparseAutoencoder(sae.encoder, spoilt, sae.threshold, sae.center)
    cone = Cone.around(directions.whitened, RECIPE.mechanism.anchor, directions.whitening)
    again = refit(Spread.of(worse), open_rows(x), cone).whole()
    ranks = together(3, lambda rank: refit(Spread.of(worse, rank), open_rows(x), cone.part(rank.share(worse.width))).whole())  # type: ignore[arg-type]
    for found in ranks:
        torch.testing.assert_close(found.decoder, again.decoder, rtol=0, atol=1e-4)
    errors = [float((x - s(x)).square().sum()) for s in (sae, worse, again)]
    assert errors[2] < errors[1] and errors[2] == pytest.approx(errors[0], rel=0.03)
    # A latent is active on the same rows, whatever its scale.
    assert torch.equal(again.encode(x[:500]) > 0, worse.encode(x[:500]) > 0)


@pytest.fixture(scope="module")
def mixed() -> torch.Tensor:
    """Rare planted features on a dense part: what resonance finds leaves most of the variance."""
    sparse = kyomei.Planted(n_features=64, dim=32, active=1, seed=0).sample(20_000, seed=1)[0]
    generator = torch.Generator().manual_seed(5)
    return sparse + 2 * torch.randn(20_000, 12, generator=generator).abs() @ torch.randn(12, 32, generator=generator)


WARM = RECIPE.with_values({"dictionary.width": 80, "dictionary.l0": 8.0, "train.steps": 400})


def test_where_resonance_leaves_much_frequent_latents_are_learnt_first(mixed: torch.Tensor, tmp_path: Path) -> None:
    directions = resonate(mixed, seed=0, recipe=RECIPE.resonance)
    seen: dict[int, float] = {}

    class Events:
        def event(self, step: int, **values: float) -> None:
            seen[step] = values["lr"]

    recipe = WARM.with_values({"train.log_every": 80})
    sae = kyomei.fit(mixed, recipe, seed=0, directions=directions, workplace=Workplace(folder=tmp_path, sink=Events()))
    # Each of the four parts that narrow the dictionary ends with an event.
    assert list(seen) == [60, 120, 180, 240, 320, 400]
    # The rate falls once, over the last fifth of all steps.
    assert list(seen.values()) == pytest.approx([recipe.train.lr] * 5 + [recipe.train.lr / 80])
    assert (tmp_path / "warm").is_dir()
    code = sae.encode(mixed)
    l0 = float((code > 0).sum() / len(mixed))
    assert l0 == pytest.approx(8.0, rel=0.25)
    fvu = float((mixed - sae(mixed)).square().sum() / (mixed - mixed.mean(dim=0)).square().sum())
    alone = kyomei.fit(mixed, WARM.with_values({"mechanism.warm_share": 0.0}), seed=0, directions=directions)
    fvu_alone = float((mixed - alone(mixed)).square().sum() / (mixed - mixed.mean(dim=0)).square().sum())
    assert fvu < 0.5 * fvu_alone


def test_beside_free_latents_held_ones_are_active_from_a_share_of_their_usual_score_about_the_mean(mixed: torch.Tensor) -> None:
    directions = resonate(mixed, seed=0, recipe=RECIPE.resonance)
    sae = kyomei.fit(mixed, WARM.with_values({"dictionary.width": 128}), seed=0, directions=directions)
    scores = (mixed - mixed.mean(dim=0)) @ directions.encoders.T
    nearest = (torch.nn.functional.normalize(sae.encoder, dim=1) @ directions.encoders.T).max(dim=1)
    held = int((nearest.values > 0.9999).int().cumprod(dim=0).sum())
    assert held >= 20
    scores = scores[:, nearest.indices[:held]]
    expected = scores > CLEAR_SHARE * usual_scores(scores, torch.eye(held))
    # Training moved the centre, by which scores of the dictionary differ from these.
    assert float(((sae.center - mixed.mean(dim=0)) @ directions.encoders.T).abs().max()) > 0.01
    assert float(((sae.encode(mixed)[:, :held] != 0) != expected).float().mean()) < 1e-4


def test_without_a_width_held_latents_are_active_where_they_were_placed(mixed: torch.Tensor) -> None:
    directions = resonate(mixed, seed=0, recipe=RECIPE.resonance)
    sae = kyomei.fit(mixed, WARM.with_values({"dictionary.width": None}), seed=0, directions=directions)
    held = len(directions)
    # Placed by themselves, they are active from half their usual score about a centre near the mean.
    rows = mixed - mixed.mean(dim=0)
    expected = rows @ sae.encoder[:held].T > ACTIVE_SHARE * usual_scores(rows, sae.encoder[:held])
    moved = (sae.center - mixed.mean(dim=0)) @ torch.nn.functional.normalize(sae.encoder[:held], dim=1).T
    assert float(moved.abs().max()) > 0.1
    assert int(((sae.encode(mixed)[:, :held] != 0) != expected).sum()) < 0.03 * int(expected.sum())


@pytest.mark.parametrize("warm_share", [0.0, 0.5])
@pytest.mark.parametrize("width", [None, 24])
def test_where_a_search_finds_nothing_free_latents_are_trained(
    x: torch.Tensor, width: int | None, warm_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = resonate(x, seed=0, recipe=RECIPE.resonance.model_copy(update={"neurons": 8, "rounds": 1}))
    none = dataclasses.replace(one, **{name: getattr(one, name)[:0] for name in OF_EACH_DIRECTION})
    monkeypatch.setattr(kyomei.learning.fit, "resonate", None)  # an empty result is one: nothing is searched again
    recipe = RECIPE.with_values({"dictionary.width": width, "mechanism.warm_share": warm_share})
    sae = kyomei.fit(x, recipe, directions=none)
    assert sae.width == (width or 2 * max(one.n_features, 16))
    fvu = float((x - sae(x)).square().sum() / (x - x.mean(dim=0)).square().sum())
    assert fvu < 0.9


def test_thresholds_of_held_latents_are_not_cut() -> None:
    planted = kyomei.Planted(n_features=8, dim=16, active=1, seed=0)
    strong, _ = planted.sample(20_000, seed=1)
    rare = torch.rand(20_000, generator=torch.Generator().manual_seed(2)) < 0.04
    x = 10 * strong * rare[:, None] + 0.3 * torch.randn(20_000, 16, generator=torch.Generator().manual_seed(3))
    recipe = RECIPE.with_values({"resonance.frequencies": [0.005], "train.steps": 10})
    directions = resonate(x, seed=0, recipe=recipe.resonance)
    sae = kyomei.fit(x, recipe, directions=directions)
    expected = ACTIVE_SHARE * usual_scores(x - sae.center, sae.encoder[: len(directions)])
    scale = float((x - x.mean(dim=0)).square().sum(dim=1).mean().sqrt())
    assert int((expected > 1.2 * scale).sum()) >= 8  # beyond what an adapted bias may be in normalised space
    torch.testing.assert_close(sae.threshold[: len(directions)], expected, rtol=0.05, atol=0)


def _runs_out(asked: Iterator[int]) -> bool:
    return next(asked, None) is None


def test_a_stop_in_either_part_is_resumed_to_the_same_bytes(mixed: torch.Tensor, tmp_path: Path) -> None:
    directions = resonate(mixed, seed=0, recipe=RECIPE.resonance)
    whole = kyomei.fit(mixed, WARM, directions=directions, workplace=Workplace(folder=tmp_path / "whole"))
    for steps_left in (30, 230):  # step 30 of the first 240, then step 20 of the other 160
        asked = iter(range(steps_left + 1))
        with pytest.raises(Interrupted):
            stop = functools.partial(_runs_out, asked)
            kyomei.fit(mixed, WARM, directions=directions, workplace=Workplace(folder=tmp_path / "cut", resume=True, stop=stop))
    resumed = kyomei.fit(mixed, WARM, directions=directions, workplace=Workplace(folder=tmp_path / "cut", resume=True))
    for name in ("encoder", "decoder", "threshold", "center"):
        assert torch.equal(getattr(whole, name), getattr(resumed, name)), name


@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_selecting_mechanisms_start_at_directions_and_are_free_to_leave(
    planted: kyomei.Planted, x: torch.Tensor, name: str
) -> None:
    values = {"mechanism.name": name, "mechanism.start": "resonance", "mechanism.k": 3, "dictionary.width": 70}
    recipe = RECIPE.with_values(values)
    directions = resonate(x, seed=0, recipe=recipe.resonance)
    start = resonant_plan(open_rows(x), recipe, directions, 0, Normalisation.measure(open_rows(x))).latents
    assert not bool(start.hold.any()) and float(start.anchor.max()) == -1
    near = torch.nn.functional.normalize(start.encoder[: len(directions)], dim=1)
    assert torch.allclose(near, directions.encoders, atol=1e-4)
    assert kyomei.recovery(kyomei.fit(x, recipe, directions=directions).decoder, planted.features).frr(0.9) >= 0.9


def test_seed_decides_the_bytes(x: torch.Tensor) -> None:
    a, b, c = (kyomei.fit(x, RECIPE, seed=s).decoder for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert a.shape != c.shape or not torch.equal(a, c)


@pytest.mark.parametrize("name", ["topk", "batchtopk", "l1", "ba", "gba"])
def test_every_mechanism_trains_from_a_random_start(x: torch.Tensor, name: str) -> None:
    mechanism = {"name": name, "start": "random"} | ({"k": 4} if "topk" in name else {})
    recipe = kyomei.Recipe.parse({**VALUES, "mechanism": mechanism, "dictionary": {"width": 64}})
    sae = kyomei.fit(x, recipe)
    assert sae.width == 64
    assert torch.isfinite(sae(x[:100])).all()


def test_a_stop_without_a_folder_says_that_nothing_is_saved(x: torch.Tensor) -> None:
    with pytest.raises(Interrupted, match="no folder for checkpoints"):
        kyomei.fit(x, RECIPE, workplace=Workplace(stop=lambda: True))


def test_tied_resonant_start_is_refused(x: torch.Tensor) -> None:
    with pytest.raises(RecipeError, match=r"set mechanism\.start to random"):
        kyomei.fit(x, RECIPE.with_values({"dictionary.tied": True}))


def test_targets_lie_on_the_spectrum() -> None:
    frequency = torch.logspace(-1, -3, 50)
    targets, groups = spectrum_targets(frequency, 10, 5)
    assert len(targets) == 60 and int(groups.max()) == 4
    # A target is an upper bound: none lies below its latent's own frequency, nor far above it.
    assert (targets[:50] >= frequency * 0.999).all() and (targets[:50] / frequency).log().max() < 1.0
    assert targets[50:].unique().tolist() == targets[:50].unique().tolist()


def test_free_neurons_share_what_is_left_of_l0() -> None:
    frequency = torch.full((20,), 0.1)
    targets, _ = spectrum_targets(frequency, 10, 5, l0=3.0)
    assert float(targets[20:].sum()) == pytest.approx(1.0, rel=1e-5)
    assert float(spectrum_targets(frequency, 10, 5, l0=1.0)[0][20:].max()) == pytest.approx(1e-4)


def test_an_absent_device_is_named() -> None:
    absent = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(RecipeError, match=f"'{absent}', which torch does not see"):
        choose_device(absent)
    assert choose_device("auto") in ("cpu", "cuda", "mps")


def test_settings_may_be_a_dict(x: torch.Tensor) -> None:
    asked = {"mechanism": {"name": "topk", "k": 3}, "dictionary.width": 32, "train.steps": 5}
    sae = kyomei.fit(x, asked, seed=1)
    assert sae.width == 32 and sae.k == 3
    assert torch.equal(sae.encoder, kyomei.fit(x, kyomei.Recipe.of(asked), seed=1).encoder)
