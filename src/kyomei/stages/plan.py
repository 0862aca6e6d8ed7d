"""What a run will take before it is begun: time, memory, disk and money, from a short probe here or a table of GPUs."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kyomei.config import Recipe, ResonanceRecipe
from kyomei.dictionary.mechanisms import GBA, Mechanism, TopK, mechanism_from
from kyomei.errors import RecipeError
from kyomei.evidence.check.structure import HALF_ROWS, NULL_NEURONS, QUICK
from kyomei.evidence.intervals import as_percent
from kyomei.evidence.reproduction import MAX_ROWS
from kyomei.learning.fit import starts_from_resonance
from kyomei.learning.halves import POLISH_ROWS
from kyomei.learning.latents import random_start
from kyomei.learning.mesh import Mesh
from kyomei.learning.placement import ANCHOR_ROWS, aimed_l0
from kyomei.learning.resonance import default_frequencies, neuron_rows_per_second, rows_of_step
from kyomei.learning.spaces import Normalisation
from kyomei.learning.step import Training
from kyomei.source.model import LanguageModel
from kyomei.source.rows import TensorRows
from kyomei.source.stream import KEPT_SHARE
from kyomei.stages.hardware import (
    ENCODE_SHARE,
    GPU_ENCODES,
    GPUS,
    PROCESSOR_TFLOPS,
    STEP_SECONDS,
    UTILISATION,
    Hardware,
)
from kyomei.stages.harvest import load_model
from kyomei.stages.size import NUM_NULLS, Size
from kyomei.stages.traffic import MACHINE_GPUS
from kyomei.views.numbers import duration

PROBE_STEPS = 5
PROBE_ROWS = 8192
USUAL_ROUNDS = 2.0
"""Rounds of resonance on activations, where they often end early."""
ALL_STEPS, LEFT_AFTER_MERGING = 0.33, 0.4
"""Share of an iteration's steps that all neurons take, and share of them that is carried on once those that met are one."""
CHECK_SEARCHES = 9.0
"""The premise check as a multiple of its searches, measured once on the demo's rows: the rest looks at how codes behave."""
SURVEY_PASSES, WHITENING_PASSES, LATENT_SECONDS = 1.6, 6.0, 1.5e-3
"""Of a certificate: what one dictionary is asked on the evidence rows, in scorings of these; the whitening of the rows and the
null's, in scorings by as many neurons as rows have dimensions; a latent's line in the table that one process writes. From one
small run on one and two processes (docs/results.md)."""
MEASURE_PASSES = 12.0
"""The same of all figures; not measured."""
ALONE = "measure"
"""The part of the work that one process does, however many GPUs there are."""
MOST = 0.5
"""Share of the time, or of the rows, from which something is said about it."""


@dataclass(frozen=True)
class Plan:
    """What a run will take, from harvest to evidence.

    Attributes:
        hardware: where; "here" was probed, a GPU is reckoned from its maker's figures.
        seconds: of each part of the work.
        memory_bytes: largest resident memory of a process (here), or of a GPU.
        disk_bytes: activations, tokens, dictionaries and checkpoints; of activations at an address only copies.
        price: US dollars in all; none: no price an hour was given.
        mesh: parts of rows × parts of latents to train on.
        harvested_tokens: stored, all parts together.
        read_rows: that the steps of one replica read, a row that is read twice counted twice.
        rows: that one replica has.
        advice: what to change, in sentences, where something is out of proportion.
        traffic_bytes: that a rank sends in one step of training; 0 for one rank.
        address_bytes: activations and tokens at the recipe's address; 0 without one.
    """

    hardware: str
    seconds: dict[str, float]
    memory_bytes: float
    disk_bytes: float
    price: float | None
    mesh: str
    harvested_tokens: int
    read_rows: int
    rows: int
    advice: tuple[str, ...] = ()
    traffic_bytes: float = 0.0
    address_bytes: float = 0.0

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total_seconds": self.total_seconds}


@dataclass(frozen=True)
class Rates:
    """What the probe found, or a table gives.

    Attributes:
        tokens_per_second: through the model up to the site.
        warm_step, step: seconds of a training step, in the first part of a training and after it.
        neuron_rows: neurons times rows that a search scores in a second.
        latent_rows: latents times rows that are scored to all their digits in a second.
        base_bytes: resident before the work begins.
    """

    tokens_per_second: float
    warm_step: float
    step: float
    neuron_rows: float
    latent_rows: float
    base_bytes: float


@dataclass(frozen=True)
class Probe:
    """How fast a machine is at a recipe's work: measured once, it plans every recipe of that width, site and batch.

    Attributes:
        hardware: "here", or a GPU of the table.
        gpus: how many.
        price: US dollars an hour of one; none: no sum.
        load_seconds: that the model took to load.
        dim: of the site's rows.
        rates: what was measured or reckoned.
    """

    hardware: str
    gpus: int
    price: float | None
    load_seconds: float
    dim: int
    rates: Rates

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        hardware: str = "here",
        *,
        price: float | None = None,
        gpus: int = 1,
        model_size: tuple[int, float] | None = None,
    ) -> Probe:
        """Measure this machine for about 20 seconds, or look a GPU up.

        Args:
            recipe, hardware, price, gpus, model_size: as `plan` takes them.

        Raises:
            RecipeError: the hardware is not in the table, or a model that is not there is to be run here.
        """
        if gpus < 1 or (gpus > 1 and hardware == "here"):
            found = f"{gpus} of '{hardware}'"
            raise RecipeError("one machine here, or GPUs of the table", found, "name the GPU with --hardware")
        if hardware != "here" and hardware not in GPUS:
            raise RecipeError(f"here or one of {', '.join(GPUS)}", f"'{hardware}'", "choose one of them")
        rate = price if price is not None or hardware == "here" else GPUS[hardware].price
        if model_size is not None:
            if hardware == "here":
                do = "name a GPU with --hardware, or leave --dim and --parameters out"
                raise RecipeError("a model to probe here", "its size alone", do)
            dim, parameters = model_size
            return cls(hardware, gpus, rate, 0.0, dim, _reckoned(GPUS[hardware], parameters, Size.of(recipe, dim), gpus))
        began = time.perf_counter()
        model = load_model(recipe, recipe.source.sites)
        load_seconds = time.perf_counter() - began
        size = Size.of(recipe, _dim(recipe, model))
        if hardware == "here":
            return cls(hardware, gpus, rate, load_seconds, size.dim, _probed(recipe, model, size))
        parameters = float(sum(parameter.numel() for parameter in model.model.parameters()))
        return cls(hardware, gpus, rate, load_seconds, size.dim, _reckoned(GPUS[hardware], parameters, size, gpus))

    def widened(self, factor: float) -> Probe:
        """The same for a dictionary so many times as wide: a step takes as many times as long."""
        rates = replace(self.rates, step=factor * self.rates.step, warm_step=factor * self.rates.warm_step)
        return replace(self, rates=rates)

    def certify_seconds(self, recipe: Recipe, processes: int) -> float:
        """What a certificate takes there on so many processes."""
        return _certify_seconds(Size.of(recipe, self.dim), self._evidence_rate, processes)

    @property
    def _evidence_rate(self) -> float:
        """Neurons times rows that a process scores in a second where certificates and figures are made: on processors."""
        return self.rates.latent_rows if self.hardware == "here" else UTILISATION * PROCESSOR_TFLOPS * 1e12 / (4.0 * self.dim)

    def plan(self, recipe: Recipe) -> Plan:
        """What a recipe takes there."""
        size, rates, gpus = Size.of(recipe, self.dim), self.rates, self.gpus
        here = self.hardware == "here"
        machine = min(gpus, MACHINE_GPUS)  # whose processors one process can have
        features = 1 if here else _feature_parts(size, GPUS[self.hardware], gpus)
        traffic, first = (size.traffic(gpus // features, features, width) for width in (size.width, size.widest))
        if not here:
            links = GPUS[self.hardware].machine_gbs, GPUS[self.hardware].network_gbs
            # Sums wait for products, and products for sums.
            step, warm = rates.step + traffic.seconds(*links), rates.warm_step + first.seconds(*links)
            rates = replace(rates, step=step, warm_step=warm)
        seconds = {
            "harvest": self.load_seconds + size.tokens / rates.tokens_per_second,
            "check": _check_seconds(size, rates),
            **_training_seconds(recipe, size, rates),
            "certify": self.certify_seconds(recipe, gpus),
            "measure": _measure_seconds(size, self._evidence_rate * machine),
        }
        memory = rates.base_bytes + size.working_bytes if here else size.gpu_bytes(gpus // features, features)
        hours = sum(taken * (machine if part == ALONE else gpus) for part, taken in seconds.items()) / 3600
        cost = None if self.price is None else self.price * hours
        mesh, read = f"{gpus // features}x{features}", recipe.train.steps * recipe.train.batch_rows
        advice = tuple(_advice(recipe, seconds, read / size.rows))
        known = size.room.disk_bytes, cost, mesh, size.tokens, read, size.rows, advice, first.sent_bytes
        return Plan(self.hardware, seconds, memory, *known, size.room.address_bytes)


def plan(
    recipe: Recipe,
    hardware: str = "here",
    *,
    price: float | None = None,
    gpus: int = 1,
    model_size: tuple[int, float] | None = None,
) -> Plan:
    """Time, memory, disk and money of `kyomei harvest`, `check`, `train`, `certify` and `measure` with a recipe.

    Args:
        recipe: what would be trained.
        hardware: "here" measures for about 20 seconds; or a GPU of the table.
        price: US dollars an hour of one machine or GPU; none: the table's, or no sum.
        gpus: how many GPUs there are.
        model_size: width of the site and parameters of a language model that is not loaded; none: the recipe's is.

    Raises:
        RecipeError: the hardware is not in the table, or a model that is not there is to be run here.
    """
    return Probe.of(recipe, hardware, price=price, gpus=gpus, model_size=model_size).plan(recipe)


def _advice(recipe: Recipe, seconds: dict[str, float], read_share: float) -> Iterator[str]:
    """What to change where one part takes most of the time, or most of a replica's rows are never trained on."""
    total = sum(seconds.values())
    if seconds.get("resonance", 0.0) > MOST * total:
        width = "" if recipe.dictionary.width else " A dictionary.width ends the search once it is full."
        yield (
            f"Resonance takes {duration(seconds['resonance'])} of {duration(total)}. Fewer resonance.neurons or "
            f"resonance.rounds make it shorter, and find fewer of the rare features.{width}"
        )
    evidence = seconds.get("certify", 0.0) + seconds.get(ALONE, 0.0)
    if evidence > MOST * total:
        yield (
            f"Certificate and figures take {duration(evidence)} of {duration(total)}, on processors, the figures by one "
            "process: a smaller source.evidence_share makes them shorter."
        )
    if read_share < MOST and not recipe.source.streamed_tokens:
        yield (
            f"Training reads {as_percent(read_share)} of what is harvested for it: raise train.steps, or lower "
            "source.num_tokens if resonance does not need the rows."
        )


def _feature_parts(size: Size, gpu: Hardware, gpus: int) -> int:
    """The parts of the latents that fit and have least to send, the fewest of equals; all GPUs if none fits."""
    divisors = [parts for parts in range(1, gpus + 1) if gpus % parts == 0]
    fit = [parts for parts in divisors if size.gpu_bytes(gpus // parts, parts) < 0.8e9 * gpu.memory_gb]
    return min(fit, key=lambda parts: size.traffic(gpus // parts, parts, size.widest).sent_bytes, default=gpus)


def _dim(recipe: Recipe, model: LanguageModel) -> int:
    """Of the site's rows."""
    source = recipe.source
    site = source.sites[0] if source.sites else model.default_site()
    # A whole window: some models pad shorter ones.
    ids = torch.full((1, source.context), 5, dtype=torch.int64)
    return int(model.capture(ids, [site], source.side)[site].shape[-1])


def _check_seconds(size: Size, rates: Rates) -> float:
    """The premise check: quick searches in two halves of the rows, and in two surrogates of them."""
    rows = min(size.rows // 2, HALF_ROWS)
    null = QUICK.model_copy(update={"neurons": NULL_NEURONS})
    return CHECK_SEARCHES * 2 * (_search_work(QUICK, rows) + _search_work(null, rows)) / rates.neuron_rows


def _certify_seconds(size: Size, rate: float, processes: int) -> float:
    """A certificate, whose processes share the latents out: every one of them meets rows and the latents of the others.

    Replicas meet all evidence rows, the null those that activations are compared on. Each of the null's two is looked for in
    the other, and the dictionary in all other replicas, by encoders and by decoders. All processes whiten the rows, and one
    writes the table.
    """
    rows, replicas = size.evidence_rows, size.recipe.source.replicas
    compared = min(rows, MAX_ROWS)
    scored = SURVEY_PASSES * (replicas * rows + NUM_NULLS * compared) + 2.0 * size.width * (replicas - 1 + NUM_NULLS)
    whitened = WHITENING_PASSES * rows * size.dim
    return (scored * size.width / processes + whitened) / rate + LATENT_SECONDS * size.width


def _measure_seconds(size: Size, rate: float) -> float:
    """All figures: every dictionary meets the evidence rows a few times."""
    return MEASURE_PASSES * size.evidence_rows * (size.recipe.source.replicas + NUM_NULLS) * size.width / rate


def _search_work(recipe: ResonanceRecipe, rows: int) -> float:
    """Neurons times rows that one round of starts scores, over all frequencies."""
    work = 0.0
    for p in recipe.frequencies or default_frequencies(int(0.9 * rows)):
        batch = min(rows_of_step(recipe, p), rows)
        polished = 2 * 3 * min(POLISH_ROWS, rows // 2)
        alive = recipe.neurons * (ALL_STEPS + (1 - ALL_STEPS) * LEFT_AFTER_MERGING)
        work += recipe.steps * batch * alive + polished * LEFT_AFTER_MERGING * recipe.neurons
    return work


def _training_seconds(recipe: Recipe, size: Size, rates: Rates) -> dict[str, float]:
    """Seconds of resonance and training over all replicas and the two of the null, which streams nothing.

    Resonance is reckoned through all frequencies; where a width ends the search earlier it takes less.
    """
    replicas = recipe.source.replicas
    steps = recipe.train.steps
    streamed = replicas * steps * recipe.train.batch_rows / KEPT_SHARE if recipe.source.streamed_tokens else 0
    streaming = {"streaming": streamed / rates.tokens_per_second} if streamed else {}
    if not starts_from_resonance(recipe):
        return {"training": (replicas + NUM_NULLS) * steps * rates.step, **streaming}
    warm = recipe.mechanism.placing.first_share * steps
    training = warm * rates.warm_step + (steps - warm) * rates.step
    own = recipe.resonance
    frequencies = own.frequencies or default_frequencies(int(0.9 * size.rows))
    searched = min(own.rounds, USUAL_ROUNDS) * replicas * _search_work(own, size.rows)
    # A null has enough directions after a round at the first frequency.
    searched += NUM_NULLS * _search_work(own.model_copy(update={"frequencies": frequencies[:1]}), size.rows)
    placing = (replicas + NUM_NULLS) * _placing_seconds(size, rates)
    return {
        "resonance": searched / rates.neuron_rows,
        "placing latents": placing,
        "training": (replicas + NUM_NULLS) * training,
        **streaming,
    }


def _placing_seconds(size: Size, rates: Rates) -> float:
    """Thresholds and decoders of resonant latents, twice: they score a sample about eight times over."""
    sample = min(size.rows, ANCHOR_ROWS)
    return 8 * sample * size.width / rates.latent_rows


def _probed(recipe: Recipe, model: LanguageModel, size: Size) -> Rates:
    source = recipe.source
    site = source.sites[0] if source.sites else model.default_site()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 200, (source.windows_per_batch, source.context), generator=generator)
    batch_seconds = _median(lambda: model.capture(ids, [site], source.side), 3)
    base = _peak_bytes()
    rows = torch.randn(max(PROBE_ROWS, 2 * size.dim), size.dim, generator=generator)
    l0 = aimed_l0(recipe, size.width)
    if recipe.mechanism.placing.first_share:
        step = _step_seconds(recipe, size, rows, _at_l0(rows, size, l0))
        # Steps take about as long as their width is: one at the mean stands for those of all parts.
        wide = replace(size, width=round(float(np.mean(size.first_widths))))
        warm = _step_seconds(recipe, wide, rows, TopK(wide.width, min(wide.width, max(1, round(l0)))))
    else:
        step = warm = _step_seconds(recipe, size, rows, mechanism_from(recipe, size.width))
    searched, scored = (neuron_rows_per_second(rows, recipe.resonance.neurons, exactly) for exactly in (False, True))
    return Rates(ids.numel() / batch_seconds, warm, step, searched, scored, base)


def _at_l0(rows: Tensor, size: Size, l0: float) -> Mechanism:
    """GBA whose biases give an L0 on random rows."""
    start = random_start(size.width, size.dim, 0, tied=True)
    scores = rows[:256] @ start.encoder.T / float(np.sqrt(size.dim))
    wanted = max(1, min(round(l0 * 256), scores.numel()))
    threshold = max(0.0, float(scores.flatten().topk(wanted).values[-1]))
    targets = torch.full((size.width,), min(l0 / size.width, 0.5))
    return GBA(targets, torch.zeros(size.width, dtype=torch.int64), bias=torch.full((size.width,), -min(threshold, 1.0)))


def _step_seconds(recipe: Recipe, size: Size, rows: Tensor, mechanism: Mechanism) -> float:
    start = random_start(size.width, size.dim, 0, tied=False)
    own = recipe.train.model_copy(update={"lr": 1e-6})
    device = "cpu" if recipe.device == "auto" and not torch.cuda.is_available() else recipe.device.replace("auto", "cuda")
    normalisation = Normalisation.measure(TensorRows(rows))
    training = Training(start, mechanism, normalisation, own, device, getattr(torch, recipe.dtype), Mesh())
    count = recipe.train.batch_rows
    batch = rows[torch.arange(count) % len(rows)]
    number = iter(range(10**6))
    return _median(lambda: training.step(batch, next(number), np.arange(count)), PROBE_STEPS)


def _median(run: Any, times: int) -> float:
    run()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return sorted(taken)[len(taken) // 2]


def _reckoned(gpu: Hardware, parameters: float, size: Size, gpus: int) -> Rates:
    """Rates of a GPU from its maker's figures; steps by what they reached on one of them."""
    stated = gpu.tflops * 1e12 * gpus
    flops = UTILISATION * stated
    encode = 2.0 * size.recipe.train.batch_rows * size.width * size.dim / (ENCODE_SHARE * stated)
    step = GPU_ENCODES * encode + STEP_SECONDS
    scored = flops / (4.0 * size.dim)
    return Rates(flops / (2 * parameters), step, step, scored, scored, 0.0)


def _peak_bytes() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
