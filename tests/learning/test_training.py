"""Training: the step against a slow one, exactness, and what it refuses."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.config import TrainRecipe
from kyomei.dictionary.kernels import Active
from kyomei.dictionary.mechanisms import BA, GBA, L1, Adaptation, BatchTopK, Mechanism, TopK, geometric_targets
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError, Interrupted, RecipeError, RunError, TrainingError
from kyomei.learning.checkpoint import list_checkpoints
from kyomei.learning.latents import Latents, random_start
from kyomei.learning.spaces import Normalisation
from kyomei.learning.step import NonFiniteError, Training, learning_rate
from kyomei.learning.training import train
from kyomei.learning.workplace import Workplace
from kyomei.source.order import BatchOrder
from kyomei.source.rows import TensorRows

WIDTH, DIM = 20, 10
PARTS = ("encoder", "decoder", "threshold", "center")


def data(rows: int = 600, offset: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(12, DIM, generator=generator), dim=1)
    active = torch.rand(rows, 12, generator=generator).argsort(dim=1) < 2
    return 5 * active.float() @ features + offset


def recipe(**values: Any) -> TrainRecipe:
    return TrainRecipe.model_validate({"steps": 12, "batch_rows": 50, "warmup_steps": 3, "checkpoint_every": 4, **values})


def gba() -> GBA:
    return GBA(*geometric_targets(WIDTH, 4, 0.3, 0.05), adaptation=Adaptation(gamma_down=0.05, adapt_every=3))


def start(tied: bool = True, held: int = 0) -> Latents:
    return dataclasses.replace(random_start(WIDTH, DIM, 7, tied), hold=torch.arange(WIDTH) < held)


def trained(*given: Any, **named: Any) -> SparseAutoencoder:
    """What one process trains, which is the whole."""
    return train(*given, **named).whole()


class Events:
    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def event(self, step: int, **values: float) -> None:
        self.seen.append((step, values))


class BrokenRows(TensorRows):  # type: ignore[misc]  # final for users; a test may break it
    """Rows of which some turn out not to be finite only once training reads them."""

    broken: tuple[int, ...] = ()

    def read(self, index: np.ndarray[Any, Any]) -> Tensor:
        x = super().read(index).clone()
        x[torch.from_numpy(np.isin(index, self.broken))] = torch.nan
        return x


def assert_same(a: SparseAutoencoder, b: SparseAutoencoder) -> None:
    for name in PARTS:
        assert torch.equal(getattr(a, name), getattr(b, name)), name


# The step


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_training_equals_a_plain_loop_over_the_formula(optimizer: str) -> None:
    x, mechanism = data().double(), L1(WIDTH, 0.02)
    settings = recipe(optimizer=optimizer, weight_decay=0.1, clip=0.05, steps=9)
    ours = trained(start(tied=False), mechanism, TensorRows(x), settings, seed=3, dtype=torch.float64)
    rows = TensorRows(x).read(np.arange(len(x))).double()
    mean = rows.mean(dim=0)
    scale = float((rows - mean).square().sum(dim=1).mean().sqrt())
    encoder, decoder = start(tied=False).encoder.double(), start(tied=False).encoder.double()
    centre, bias = torch.zeros(DIM).double(), torch.zeros(WIDTH).double()
    parameters = [tensor.requires_grad_(True) for tensor in (encoder, decoder, centre, bias)]
    moments = [(torch.zeros_like(tensor), torch.zeros_like(tensor)) for tensor in parameters]
    for step in range(9):
        batch = (rows[BatchOrder(len(rows), 50, 3).indices(step)] - mean) / scale
        z = ((batch - centre) @ encoder.T + bias).relu()
        loss = (0.5 * ((z @ decoder + centre - batch) ** 2).sum() + 0.02 * z.sum()) / len(batch)
        gradients = torch.autograd.grad(loss, parameters)
        norm = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        assert norm > 0.05  # clipping is at work
        with torch.no_grad():
            for parameter, gradient, (first, second) in zip(parameters, gradients, moments, strict=True):
                gradient = gradient * 0.05 / (norm + 1e-6)
                lr = learning_rate(settings, step)
                if optimizer == "adamw" and parameter.ndim == 2:
                    parameter -= lr * 0.1 * parameter
                first += 0.1 * (gradient - first)
                second += 0.001 * (gradient**2 - second)
                root = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                parameter -= lr * first / (1 - 0.9 ** (step + 1)) / root
            decoder /= decoder.norm(dim=1, keepdim=True)
    torch.testing.assert_close(ours.encoder, encoder.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(ours.decoder, decoder.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(ours.threshold, -scale * bias.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(ours.center, mean + scale * centre.detach(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("tied", [True, False])
def test_decoder_rows_keep_unit_norm_and_the_start_is_not_touched(tied: bool) -> None:
    given = start(tied)
    before = given.encoder.clone()
    sae = trained(given, gba(), TensorRows(data()), recipe(optimizer="adamw", weight_decay=0.5), seed=0)
    assert sae.tied == tied
    torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(WIDTH))
    assert torch.equal(given.encoder, before) and not torch.equal(sae.encoder, before)
    assert not any(getattr(sae, name).requires_grad for name in PARTS)


@pytest.mark.parametrize("tied", [True, False])
def test_held_encoders_stay_to_the_bit_and_the_rest_trains(tied: bool) -> None:
    given = start(tied, held=6)
    sae = trained(given, gba(), TensorRows(data()), recipe(optimizer="adamw", weight_decay=0.5), seed=0)
    expected = normalize(given.encoder, dim=1) if tied else given.encoder
    assert torch.equal(sae.encoder[:6], expected[:6])
    assert bool((sae.encoder[6:] != expected[6:]).any(dim=1).all())
    if not tied:
        assert bool((sae.decoder[:6] != expected[:6]).any(dim=1).any())


def test_held_encoders_do_not_count_in_the_norm_that_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    clip = Training._clip_gradients

    def spying(self: Training) -> float:
        assert self.encoder.grad is not None
        seen.append(self.encoder.grad.norm(dim=1))
        return clip(self)

    monkeypatch.setattr(Training, "_clip_gradients", spying)
    trained(start(tied=False, held=6), gba(), TensorRows(data()), recipe(), seed=0)
    assert len(seen) == 12
    assert all(bool((norms[:6] == 0).all()) and bool((norms[6:] > 0).any()) for norms in seen)


def test_biases_adapt_every_so_many_steps_and_get_no_gradient() -> None:
    mechanism = gba()
    seen: list[Tensor] = []
    trained(
        start(),
        mechanism,
        TensorRows(data()),
        recipe(),
        seed=0,
        workplace=Workplace(progress=lambda done, steps: seen.append(mechanism.bias.clone())),
    )
    moved = [not torch.equal(before, after) for before, after in zip([torch.zeros(WIDTH), *seen], seen, strict=False)]
    assert moved == [step % 3 == 0 for step in range(1, 13)]


def test_zero_steps_fold_the_start() -> None:
    x = data()
    sae = trained(start(), TopK(WIDTH, 3), TensorRows(x), recipe(steps=0), seed=0)
    torch.testing.assert_close(sae.center, x.mean(dim=0))
    torch.testing.assert_close(sae.encoder, start().encoder)


def test_bfloat16_multiplies_coarsely_but_keeps_float32_weights() -> None:
    coarse = trained(start(), gba(), TensorRows(data()), recipe(), seed=0, dtype=torch.bfloat16)
    fine = trained(start(), gba(), TensorRows(data()), recipe(), seed=0)
    assert coarse.encoder.dtype == torch.float32
    assert not torch.equal(coarse.encoder, fine.encoder)
    assert float((coarse.encoder - fine.encoder).abs().max()) < 0.05


def test_learning_rate_warms_up_stays_and_decays() -> None:
    settings = recipe(steps=100, warmup_steps=10, decay_share=0.2, lr=1.0)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:81] == [1.0] * 71
    assert rates[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 100)])
    assert learning_rate(recipe(decay_share=0.0, warmup_steps=0), 11) == recipe().lr


# Normalisation


def test_normalisation_gives_unit_mean_square_norm_despite_a_large_offset() -> None:
    x = data(offset=10_000.0)
    normalisation = Normalisation.measure(TensorRows(x))
    exact = x.double()
    torch.testing.assert_close(normalisation.mean, exact.mean(dim=0), rtol=1e-12, atol=1e-9)
    xn = normalisation.apply(exact)
    assert float(xn.square().sum(dim=1).mean()) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("make", [gba, lambda: BatchTopK(WIDTH, 3), lambda: L1(WIDTH, 0.01)])
def test_scaling_and_shifting_the_input_scales_and_shifts_the_result(make: Any) -> None:
    x = data().double()
    plain = trained(start(), make(), TensorRows(x), recipe(), seed=0, dtype=torch.float64)
    moved = trained(start(), make(), TensorRows(8 * x - 5), recipe(), seed=0, dtype=torch.float64)
    torch.testing.assert_close(moved.encoder, plain.encoder, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved.threshold, 8 * plain.threshold, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moved(8 * x - 5), 8 * plain(x) - 5, rtol=1e-3, atol=1e-2)


# Events


def test_events_agree_with_the_trained_autoencoder() -> None:
    x, sink = data(), Events()
    settings = recipe(batch_rows=600, log_every=5, decay_share=0.0)
    trained(start(), gba(), TensorRows(x), settings, seed=0, workplace=Workplace(sink=sink))
    assert [step for step, _ in sink.seen] == [5, 10, 12]
    before_last = recipe(batch_rows=600, log_every=5, steps=11, decay_share=0.0)
    sae = trained(start(), gba(), TensorRows(x), before_last, seed=0)
    last = sink.seen[-1][1]
    assert set(last) == {"loss", "fvu", "l0", "dead", "lr", "rows_per_second"}
    fvu = float((sae(x) - x).square().sum() / (x - x.mean(dim=0)).square().sum())
    assert last["fvu"] == pytest.approx(fvu, rel=1e-3)
    assert last["loss"] == pytest.approx(fvu / 2, rel=1e-3)
    assert last["l0"] == pytest.approx(float((sae.encode(x) > 0).sum(dim=1).float().mean()), rel=1e-3)
    assert last["lr"] == settings.lr and last["rows_per_second"] > 0


def test_dead_share_counts_latents_silent_since_the_last_event() -> None:
    sink = Events()
    mechanism = BA(WIDTH, 0.3, bias=torch.where(torch.arange(WIDTH) < 5, -1.0, 0.0), adaptation=Adaptation(adapt_every=1000))
    trained(start(), mechanism, TensorRows(data()), recipe(log_every=4, lr=1e-6), seed=0, workplace=Workplace(sink=sink))
    assert [values["dead"] for _, values in sink.seen] == [pytest.approx(5 / WIDTH)] * 3


def test_latents_that_fall_silent_are_dead_from_the_next_event_on() -> None:
    sink = Events()
    mechanism = BA(WIDTH, 0.3, adaptation=Adaptation(adapt_every=1000))

    def silence(done: int, steps: int) -> None:
        if done == 4:
            mechanism.bias[:7] = -1.0

    trained(
        start(),
        mechanism,
        TensorRows(data()),
        recipe(log_every=4, lr=1e-6),
        seed=0,
        workplace=Workplace(sink=sink, progress=silence),
    )
    assert [values["dead"] for _, values in sink.seen] == [pytest.approx(share, abs=1e-6) for share in (0, 7 / 20, 7 / 20)]


def test_logging_does_not_change_training() -> None:
    silent = trained(start(), gba(), TensorRows(data()), recipe(), seed=0)
    assert_same(
        silent, trained(start(), gba(), TensorRows(data()), recipe(log_every=1), seed=0, workplace=Workplace(sink=Events()))
    )


# Exactness


def test_the_seed_alone_decides_the_bytes() -> None:
    first, again, other = (trained(start(), gba(), TensorRows(data()), recipe(), seed=seed) for seed in (1, 1, 2))
    assert_same(first, again)
    assert not torch.equal(first.encoder, other.encoder)
    assert torch.equal(random_start(4, 3, 5, True).encoder, random_start(4, 3, 5, True).encoder)
    assert not torch.equal(random_start(4, 3, 5, True).encoder, random_start(4, 3, 6, True).encoder)


def make_all() -> dict[str, Mechanism]:
    return {"gba": gba(), "topk": TopK(WIDTH, 3), "batchtopk": BatchTopK(WIDTH, 3), "l1": L1(WIDTH, 0.02)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gba", "topk", "batchtopk", "l1"])
@pytest.mark.parametrize("stop_after", [0, 1, 4, 7])
def test_a_stopped_training_resumes_to_the_same_bytes(tmp_path: Path, name: str, stop_after: int, dtype: torch.dtype) -> None:
    tied = name == "gba"
    moments = "bfloat16" if dtype == torch.bfloat16 else "float32"
    settings = recipe(optimizer="adamw", weight_decay=0.01, log_every=5, moments=moments)
    whole_events, events = Events(), Events()
    rows = TensorRows(data())
    whole = trained(
        start(tied, 3), make_all()[name], rows, settings, seed=0, dtype=dtype, workplace=Workplace(sink=whole_events)
    )
    done: list[int] = []
    cut = Workplace(tmp_path, resume=True, sink=events)
    stopped = dataclasses.replace(cut, stop=lambda: len(done) >= stop_after, progress=lambda step, steps: done.append(step))
    with pytest.raises(Interrupted, match=rf"12 training steps.*after {stop_after}, saved in .*the same command.*--resume"):
        trained(start(tied, 3), make_all()[name], rows, settings, seed=0, dtype=dtype, workplace=stopped)
    assert list_checkpoints(tmp_path)[-1].name == f"step-{stop_after:08d}"
    resumed = trained(start(tied, 3), make_all()[name], rows, settings, seed=0, dtype=dtype, workplace=cut)
    assert_same(whole, resumed)
    timeless = [[(step, {**values, "rows_per_second": 0}) for step, values in sink.seen] for sink in (whole_events, events)]
    assert timeless[0] == timeless[1]


def test_resuming_what_is_finished_gives_it_again_without_a_step(tmp_path: Path) -> None:
    rows = TensorRows(data())
    first = trained(start(), gba(), rows, recipe(), seed=0, workplace=Workplace(folder=tmp_path))
    steps: list[int] = []
    again = trained(
        start(),
        gba(),
        rows,
        recipe(),
        seed=0,
        workplace=Workplace(folder=tmp_path, resume=True, progress=lambda done, all_: steps.append(done)),
    )
    assert_same(first, again)
    assert steps == []


@pytest.mark.parametrize("others", [(4, 0.2, 0.05), (3, 0.3, 0.05)])
def test_resuming_with_other_targets_or_groups_is_refused(others: tuple[int, float, float], tmp_path: Path) -> None:
    rows = TensorRows(data())
    trained(start(), gba(), rows, recipe(), seed=0, workplace=Workplace(folder=tmp_path))
    other = GBA(*geometric_targets(WIDTH, *others), adaptation=Adaptation(gamma_down=0.05, adapt_every=3))
    with pytest.raises(RunError, match=r"mechanism\.targets = "):
        trained(start(), other, rows, recipe(), seed=0, workplace=Workplace(folder=tmp_path, resume=True))


class NoisyRows(TensorRows):  # type: ignore[misc]  # final for users; a test may extend it
    """Rows that draw from every process-wide generator when they are read."""

    def read(self, index: np.ndarray[Any, Any]) -> Tensor:
        noise = torch.randn(DIM) + float(np.random.standard_normal()) + random.gauss(0, 1)
        return super().read(index) + 0.1 * noise


def seed_everything() -> None:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)


def test_process_wide_generators_are_resumed_too(tmp_path: Path) -> None:
    seed_everything()
    rows = NoisyRows(data())
    whole = trained(start(), gba(), rows, recipe(), seed=0)
    seed_everything()
    done: list[int] = []
    with pytest.raises(Interrupted):
        trained(
            start(),
            gba(),
            rows,
            recipe(),
            seed=0,
            workplace=Workplace(folder=tmp_path, stop=lambda: len(done) == 7, progress=lambda step, steps: done.append(step)),
        )
    torch.manual_seed(99)
    assert_same(whole, trained(start(), gba(), rows, recipe(), seed=0, workplace=Workplace(folder=tmp_path, resume=True)))


# Refusals


def broken_rows(*broken: int) -> BrokenRows:
    rows = BrokenRows(data())
    rows.broken = broken
    return rows


def test_a_non_finite_batch_stops_before_anything_moves(tmp_path: Path) -> None:
    step = 6
    bad = int(BatchOrder(600, 50, 0).indices(step)[17])
    mechanism = gba()
    biases: list[Tensor] = []
    with pytest.raises(
        NonFiniteError, match=rf"finite loss and gradient.*loss nan.*step 6, whose input rows {bad} are not"
    ) as caught:
        trained(
            start(),
            mechanism,
            broken_rows(bad),
            recipe(),
            seed=0,
            workplace=Workplace(folder=tmp_path, progress=lambda done, steps: biases.append(mechanism.bias.clone())),
        )
    assert isinstance(caught.value, TrainingError)
    assert caught.value.step == step
    assert caught.value.rows.tolist() == BatchOrder(600, 50, 0).indices(step).tolist()
    assert torch.equal(mechanism.bias, biases[-1]) and len(biases) == step
    repaired = trained(start(), gba(), broken_rows(), recipe(), seed=0, workplace=Workplace(folder=tmp_path, resume=True))
    assert_same(repaired, trained(start(), gba(), TensorRows(data()), recipe(), seed=0))


def test_weights_stay_as_they_were_when_the_loss_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    original = Training.step

    def spying(self: Any, x: Tensor, step: int, rows: Any, stop: bool = False) -> Any:
        kept[:] = [self, [tensor.detach().clone() for tensor in self.parameters]]
        return original(self, x * (1e30 if step == 5 else 1), step, rows, stop)

    monkeypatch.setattr(Training, "step", spying)
    with pytest.raises(NonFiniteError, match=r"loss inf.*step 5, over rows \d+, .* and 42 more.*Lower train.lr"):
        trained(start(), gba(), TensorRows(data()), recipe(), seed=0)
    training, before = kept
    assert all(torch.equal(tensor.detach(), old) for tensor, old in zip(training.parameters, before, strict=True))


def test_an_infinite_gradient_alone_is_enough() -> None:
    class Spike(TopK):  # type: ignore[misc]  # final for users; a test may break it
        def penalty(self, scores: Tensor, values: Tensor, active: Active) -> Tensor:
            return (scores - scores.detach()).clamp_min(0).sqrt().sum()  # value 0, gradient infinite

    with pytest.raises(NonFiniteError, match=r"loss 0\.\d+, gradient norm (nan|inf) at step 0"):
        trained(start(), Spike(WIDTH, 3), TensorRows(data()), recipe(), seed=0)


def test_normalisation_names_a_row_that_is_not_finite() -> None:
    rows = TensorRows(x := data(9000))
    x[8207, 3] = torch.inf  # after TensorRows looked
    with pytest.raises(DataError, match="row 8207"):
        Normalisation.measure(rows)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rows": data(DIM - 1)}, DataError, r"as many rows as dimensions \(10\).*9 rows"),
        ({"rows": data()[:, :4]}, DataError, "dimension 10.*dimension 4"),
        ({"rows": torch.full((50, DIM), 0.1)}, DataError, "50 rows that are all equal"),
        ({"mechanism": TopK(WIDTH + 1, 3)}, RecipeError, "width 20.*mechanism of 21"),
        ({"start": Latents.of(torch.zeros(WIDTH, DIM), torch.zeros(WIDTH, 3))}, RecipeError, r"\[20, 3\]"),
        ({"start": Latents.of(torch.zeros(WIDTH, DIM), None, hold=torch.zeros(3) > 0)}, RecipeError, "hold of 3"),
        ({"dtype": torch.float16}, RecipeError, "float32, float64 or bfloat16.*float16"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    rows = TensorRows(arguments.get("rows", data()))
    with pytest.raises(error, match=message):
        trained(
            arguments.get("start", start()),
            arguments.get("mechanism", gba()),
            rows,
            recipe(),
            seed=0,
            dtype=arguments.get("dtype", torch.float32),
        )


def test_checkpoints_of_another_training_are_neither_mixed_nor_overwritten(tmp_path: Path) -> None:
    rows = TensorRows(data())
    trained(start(), gba(), rows, recipe(), seed=0, workplace=Workplace(folder=tmp_path))
    with pytest.raises(RunError, match=r"no checkpoints.*--resume.*--overwrite"):
        trained(start(), gba(), rows, recipe(), seed=0, workplace=Workplace(folder=tmp_path))
    with pytest.raises(RunError, match=r"seed = 0 there, 1 here.*train\.lr = 0\.003 there, 0\.1 here"):
        trained(start(), gba(), rows, recipe(lr=0.1), seed=1, workplace=Workplace(folder=tmp_path, resume=True))
    trained(
        start(), gba(), rows, recipe(log_every=1, checkpoint_every=1), seed=0, workplace=Workplace(folder=tmp_path, resume=True)
    )


def test_a_stop_without_a_folder_says_that_nothing_was_kept() -> None:
    with pytest.raises(Interrupted, match="no folder for checkpoints"):
        trained(start(), gba(), TensorRows(data()), recipe(), seed=0, workplace=Workplace(stop=lambda: True))


# Frozen controls


def trained_with(freeze: str, steps: int = 40) -> tuple[SparseAutoencoder, Latents]:
    first = random_start(WIDTH, DIM, 7, tied=False)
    settings = recipe(freeze=freeze, steps=steps, lr=0.05)
    return trained(first, TopK(WIDTH, 3), TensorRows(data()), settings, seed=1), first


def test_a_frozen_encoder_or_decoder_stays_and_the_other_learns() -> None:
    sae, first = trained_with("encoder")
    assert torch.equal(sae.encoder, first.encoder)
    assert (normalize(sae.decoder, dim=1) * first.encoder).sum(dim=1).min() < 0.95
    sae, first = trained_with("decoder")
    assert torch.allclose(sae.decoder, first.encoder, atol=1e-6)
    assert not torch.allclose(sae.encoder, first.encoder, atol=0.05)


def test_a_soft_frozen_decoder_moves_up_to_its_cone() -> None:
    sae, first = trained_with("soft_decoder")
    cosine = (sae.decoder * first.encoder).sum(dim=1)
    assert cosine.min() == pytest.approx(0.8, abs=1e-5) and cosine.max() < 0.999
    assert torch.allclose(sae.decoder.norm(dim=1), torch.ones(WIDTH), atol=1e-5)
    free, _ = trained_with("none")
    assert (free.decoder * first.encoder).sum(dim=1).min() < 0.75  # without the restraint rows leave the cone


def test_anchored_rows_stay_on_their_cone_and_the_others_move() -> None:
    first = random_start(WIDTH, DIM, 7, tied=False)
    anchor = torch.full((WIDTH,), -1.0)
    anchor[:3], anchor[3:6] = 0.95, 1.0
    settings = recipe(steps=40, lr=0.05)
    sae = trained(dataclasses.replace(first, anchor=anchor), TopK(WIDTH, 3), TensorRows(data()), settings, seed=1)
    cosine = (sae.decoder * first.encoder).sum(dim=1)
    assert cosine[:3].min() == pytest.approx(0.95, abs=1e-5) and cosine[:3].max() < 1
    assert torch.allclose(sae.decoder[3:6], first.encoder[3:6], atol=1e-6)
    assert cosine[6:].min() < 0.75
    with pytest.raises(RecipeError, match="one anchor for each"):
        trained(dataclasses.replace(first, anchor=anchor[:2]), TopK(WIDTH, 3), TensorRows(data()), settings, seed=1)


def test_a_tied_dictionary_cannot_be_frozen() -> None:
    with pytest.raises(RecipeError, match=r"untied dictionary with train\.freeze = decoder"):
        trained(start(tied=True), gba(), TensorRows(data()), recipe(freeze="decoder"), seed=0)


@pytest.mark.parametrize("freeze", ["soft_decoder", "encoder"])
def test_a_frozen_training_resumes_exactly(tmp_path: Path, freeze: str) -> None:
    def run(folder: Path, until: int | None, resume: bool = False) -> SparseAutoencoder:
        asked = iter(range(100))
        stop = (lambda: False) if until is None else lambda: next(asked) == until
        first = random_start(WIDTH, DIM, 7, tied=False)
        rows, settings = TensorRows(data()), recipe(freeze=freeze, steps=30, lr=0.05)
        return trained(
            first, TopK(WIDTH, 3), rows, settings, seed=1, workplace=Workplace(folder=folder, stop=stop, resume=resume)
        )

    whole = run(tmp_path / "whole", None)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", 17)
    assert_same(whole, run(tmp_path / "parts", None, resume=True))
