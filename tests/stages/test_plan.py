"""What a training is reckoned to take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kyomei.config import Recipe
from kyomei.errors import RecipeError
from kyomei.stages.hardware import GPUS, LIBRARY_BYTES
from kyomei.stages.plan import Plan, Probe, Rates, _advice, _reckoned, plan
from kyomei.stages.size import Size
from kyomei.views.tables import plan_table

SMALL = Recipe().with_values(
    {
        "source.num_tokens": 20_000,
        "source.context": 64,
        "dictionary.width": 256,
        "train.steps": 100,
        "train.batch_rows": 256,
        "resonance.frequencies": [0.01],
        "resonance.neurons": 128,
    }
)


@pytest.fixture(scope="module")
def here() -> Plan:
    return plan(SMALL)


def test_every_part_of_the_work_is_there(here: Plan) -> None:
    assert list(here.seconds) == ["harvest", "check", "resonance", "placing latents", "training", "certify", "measure"]
    assert all(seconds > 0 for seconds in here.seconds.values()) and here.total_seconds < 7200
    assert here.price is None and here.mesh == "1x1"
    assert 1e8 < here.memory_bytes < 1e10
    shown = dict(plan_table(here.to_dict(), "here", SMALL.source.replicas).rows)
    assert shown["what"] == "4 parts of the documents, 3 replicas and 2 of the null"


def test_more_of_anything_takes_more(here: Plan) -> None:
    longer = plan(SMALL.with_values({"train.steps": 10_000}))
    assert longer.seconds["training"] > 20 * here.seconds["training"]
    wider = plan(SMALL.with_values({"dictionary.width": 8192}))
    assert wider.memory_bytes > here.memory_bytes and wider.disk_bytes > here.disk_bytes
    more = plan(SMALL.with_values({"source.num_tokens": 2_000_000}))
    assert more.seconds["harvest"] > 10 * here.seconds["harvest"] and more.disk_bytes > 10 * here.disk_bytes
    streamed = plan(SMALL.with_values({"source.streamed_tokens": 100_000}))
    assert streamed.seconds["streaming"] > 0 and streamed.disk_bytes == here.disk_bytes
    baseline = plan(SMALL.with_values({"mechanism.name": "topk"}))
    assert list(baseline.seconds) == ["harvest", "check", "training", "certify", "measure"]


@pytest.mark.parametrize("width", [16_384, 65_536, 262_144, 1_048_576])
def test_a_gpus_step_is_reckoned_as_it_was_measured(width: int) -> None:
    """bench/gpu.py's table: an H100, bfloat16 products, 8,192 rows of 1,536 dimensions, 128 active latents of a row."""
    lines = (Path(__file__).parents[2] / "bench/data/gpu.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [one for one in map(json.loads, lines) if one["part"] == "step" and one["name"] == "kyomei GBA"]
    measured = next(one for one in steps if one["width"] == width and one["density"] == 128 / width and one["dim"] == 1536)
    settings = {"mechanism.name": "gba", "mechanism.start": "random", "dictionary.width": width, "train.batch_rows": 8192}
    recipe = Recipe.of({**settings, "dtype": "bfloat16", "dictionary.tied": False, "train.steps": 1})
    size = Size.of(recipe, 1536)
    taken = _reckoned(GPUS["h100"], 1e9, size, 1).step
    assert taken == pytest.approx(measured["step_ms"] / 1e3, rel=0.15)
    held = size.gpu_bytes(1, 1) - LIBRARY_BYTES
    assert held == pytest.approx(measured["peak_mb"] * 2**20, rel=0.15 if width > 16_384 else 0.35)


def test_a_gpu_is_reckoned_from_the_table_and_priced() -> None:
    wide = SMALL.with_values({"dictionary.width": 1_048_576, "train.batch_rows": 8192, "train.steps": 20_000})
    one, eight = plan(wide, "h100"), plan(wide, "h100", gpus=8)
    assert one.price == pytest.approx(one.total_seconds / 3600 * GPUS["h100"].price)
    assert plan(wide, "h100", price=6.0).price == pytest.approx(2 * (one.price or 0), rel=0.01)
    assert eight.total_seconds < one.total_seconds
    far = plan(wide.with_values({"source.store": "s3://bucket/rows"}), "h100")
    assert one.address_bytes == 0 < far.address_bytes and "at the address" in dict(plan_table(far.to_dict(), "h100", 3).rows)
    assert far.disk_bytes == pytest.approx(one.disk_bytes), "so few rows are all copied"
    # The table's smallest GPU holds a part of such a dictionary only.
    rows, latents = map(int, plan(wide, "rtx4090", gpus=4).mesh.split("x"))
    assert rows * latents == 4 and latents > 1


def test_what_is_out_of_proportion_is_said() -> None:
    """50M tokens harvested and 1M read; a search that takes 6.3 of 8.9 hours."""
    large = Recipe().with_values({"source.num_tokens": 50_000_000, "train.steps": 1000, "train.batch_rows": 1024})
    found = plan(large, "h100")
    shown = plan_table(found.to_dict(), "h100", 3)
    assert dict(shown.rows)["tokens harvested"] == "50,000,000"
    assert dict(shown.rows)["rows trained on"] == "1,024,000 of 12,500,000 (0.082 times each)"
    assert {row[0] for row in shown.rows} <= {name for name, _ in shown.legend}
    assert any("Training reads 8 % of what is harvested" in line for line in found.advice)
    (searched,) = _advice(large, {"resonance": 6.3 * 3600, "training": 2.6 * 3600}, 1.0)
    assert searched.startswith("Resonance takes 6.3 hours of 8.9 hours") and "resonance.rounds" in searched
    even = large.with_values({"source.num_tokens": 100_000, "train.steps": 20_000, "mechanism.name": "topk"})
    assert not plan(even, "h100").advice


def test_a_model_that_is_not_here_can_be_planned_for() -> None:
    settings = {"source.num_tokens": 10**9, "dictionary.width": 2**20, "train.batch_rows": 8192, "train.steps": 20_000}
    found = plan(Recipe().with_values(settings), "h100", gpus=64, model_size=(4096, 8e9))
    assert found.mesh == "1x64" and 0 < found.memory_bytes < 80e9
    assert 1e8 < found.traffic_bytes < 1e9
    assert dict(plan_table(found.to_dict(), "h100", 3).rows)["traffic"].endswith("GB a step")
    # Figures are made by one process: no more than a machine is paid for that long.
    alone = found.seconds["measure"]
    assert found.price == pytest.approx((64 * (found.total_seconds - alone) + 8 * alone) / 3600 * GPUS["h100"].price)
    assert any("the figures by one process: a smaller source.evidence_share" in line for line in found.advice)
    with pytest.raises(RecipeError, match=r"a model to probe here. Found its size alone. Name a GPU"):
        plan(SMALL, model_size=(4096, 8e9))


def test_a_certificate_is_shared_by_processes_but_for_the_whitening_and_the_table() -> None:
    """Three replicas on all of 1,000 rows, two of the null, and four searches among 256 latents twice; 64 dimensions."""
    own = SMALL.with_values({"source.num_tokens": 4000, "source.evidence_share": 0.25})
    probe = Probe("here", 1, None, 0.0, 64, Rates(1e4, 0.1, 0.1, 1e6, 1e6, 0.0))
    scored, whitened, table = (1.6 * 5 * 1000 + 2 * 4 * 256) * 256, 6 * 1000 * 64, 0.0015 * 256
    for processes in (1, 2, 8):
        assert probe.certify_seconds(own, processes) == pytest.approx((scored / processes + whitened) / 1e6 + table)
    assert probe.plan(own).seconds["certify"] == probe.certify_seconds(own, 1)
    # On GPUs it is made on the processors that come with them.
    wide = own.with_values({"dictionary.width": 65_536})
    one, eight, many = (plan(wide, "h100", gpus=gpus, model_size=(4096, 1e9)).seconds for gpus in (1, 8, 64))
    assert 1 < one["certify"] / eight["certify"] <= 8 and many["certify"] < eight["certify"]
    assert one["measure"] / eight["measure"] == pytest.approx(8) and eight["measure"] == many["measure"]


def test_unknown_hardware_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"here or one of a100, h100.*'abacus'"):
        plan(SMALL, "abacus")
