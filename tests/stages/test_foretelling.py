"""What certified runs foretell of larger ones: in a plan, of a pilot's full run, and of the stages of a roll-out."""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from tests.stages.test_pilot import done, kyomei, refused, tiny_pilots

from kyomei.errors import EvidenceError
from kyomei.evidence.certificate import Certificate
from kyomei.evidence.rows_law import REACH, FiringsLaw
from kyomei.runs import Run
from kyomei.stages.foretelling import _rows, held_to
from kyomei.views.foretold import pilot_lines
from kyomei.views.speech import Speech

TOKENS, LATENTS = 12_000, 300
SMALL = ["--dim", 256, "--parameters", 1e6, "--hardware", "h100"]
"""A plan for which nothing is measured."""


def with_law(folder: Path, times: float = 1.0, slope: float = 0.7) -> Path:
    """Let a run's certificate be of latents whose log odds grow with their firings, at so many times the run's rows."""
    rng = np.random.default_rng(0)
    frequency = np.exp(rng.normal(-5, 1.5, LATENTS)).clip(0, 0.09)
    p = expit(-2 + slope * np.log(frequency * 1000 * times))
    run, path = Run.open(folder), folder / "certificate.json"
    known = Certificate.read(path)
    statuses = np.where(rng.random(LATENTS) < p, "certified", "unstable")
    features = [
        {**known.features[0], "index": i, "frequency": float(f), "status": str(status)}
        for i, (f, status) in enumerate(zip(frequency, statuses, strict=True))
    ]
    replace(known, features=features, width=LATENTS).write(path)
    run.record(path)
    return folder


def certified(folder: Path) -> float:
    found = Certificate.read(folder / "certificate.json")
    return len(found.certified) / len(found.features)


def copied(made: Path, folder: Path, tokens: int = TOKENS) -> Path:
    """The same run as one of more tokens."""
    shutil.copytree(made, folder)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(f"num_tokens: {TOKENS}", f"num_tokens: {tokens}"))
    assert Run.open(folder).recipe.source.num_tokens == tokens
    return folder


@pytest.mark.slow
def test_a_plan_takes_as_many_tokens_as_the_wished_share_needs(made: Path, tmp_path: Path) -> None:
    run = with_law(copied(made, tmp_path / "p"))
    found = certified(run)
    wished = found + 0.15
    plan = done("plan", "--run", run, "--certified-share", wished, *SMALL)
    law = plan["certified"]
    assert law["by"] == "firings" and law["runs"] == {str(run): {"tokens": TOKENS, "share": found}}
    needed = law["needed"]
    assert TOKENS < needed["low"] < needed["estimate"]
    assert needed["high"] is None  # beyond ten times the rows: so small a run says little of how firings certify
    assert plan["harvested_tokens"] == law["tokens"] == round(needed["estimate"])
    assert law["share"]["estimate"] == pytest.approx(wished, abs=1e-3)
    back = done("plan", "--run", run, "--tokens", law["tokens"], *SMALL)["certified"]
    assert back["share"] == law["share"] and back["needed"] is None
    said = " ".join(kyomei("plan", "--run", run, "--certified-share", wished, *SMALL).stdout.split())
    assert "of the latents takes about" in said and "It is a projection" in said and "latents to stay as they are" in said


@pytest.mark.slow
def test_runs_of_four_sizes_are_a_measured_law(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {1: 0.3, 2: 0.42, 3: 0.48, 4: 0.55}
    monkeypatch.setattr("kyomei.stages.foretelling._share", lambda c: shares[c.num_rows])
    monkeypatch.setattr("kyomei.stages.foretelling._rows", lambda run: run.recipe.source.num_tokens // 4)
    runs = []
    for times in shares:
        runs += ["--run", copied(made, tmp_path / str(times), times * TOKENS)]
        path = runs[-1] / "certificate.json"
        replace(Certificate.read(path), num_rows=times).write(path)
    law = done("plan", *runs, "--certified-share", 0.56, *SMALL)["certified"]
    assert law["by"] == "rows" and [point["share"] for point in law["runs"].values()] == list(shares.values())
    assert 4 * TOKENS < law["needed"]["estimate"] < 8 * TOKENS
    assert "line through the certified shares of 4 runs" in " ".join(kyomei("plan", *runs, *SMALL).stdout.split())
    assert "which the law reaches" in refused("plan", *runs, "--certified-share", 0.7, *SMALL), "a line has a ceiling"
    assert "4 or more numbers of rows" in refused("plan", *runs[:6], "--certified-share", 0.6, *SMALL)
    path = tmp_path / "4/certificate.json"
    replace(Certificate.read(path), width=64).write(path)
    assert "runs of one width" in refused("plan", *runs, *SMALL)


@pytest.mark.slow
def test_what_a_run_cannot_foretell_is_refused_in_a_line(made: Path, tmp_path: Path) -> None:
    assert "10 certified latents and as many others" in refused("plan", "--run", made, "--certified-share", 0.7, *SMALL)
    run = with_law(copied(made, tmp_path / "p"))
    assert "which the law reaches" in refused("plan", "--run", run, "--certified-share", 0.999, *SMALL)
    assert "a certified share between 0 and 1" in refused("plan", "--run", run, "--certified-share", 70, *SMALL)
    assert "--run with --certified-share" in refused("plan", "--certified-share", 0.7)
    both = ["--certified-share", 0.5, "--tokens", 20_000]
    assert "--tokens or --certified-share" in refused("plan", "--run", run, *both, *SMALL)
    assert "the dictionary of the run" in refused("plan", "--run", run, "--width", 64, "--certified-share", 0.5, *SMALL)
    (run / "certificate.json").unlink()
    assert "a run with a certificate that holds" in refused("plan", "--run", run, "--certified-share", 0.5, *SMALL)


@pytest.mark.slow
def test_a_pilot_says_what_to_expect_of_its_full_run(made: Path, tmp_path: Path) -> None:
    pilot = with_law(copied(made, tmp_path / "p"))
    with tiny_pilots():
        told = done("pilot", pilot)["pilot"]["full"]["foretold"]
        said = " ".join(kyomei("pilot", pilot, "--full-tokens", 100 * TOKENS).stdout.split())
    assert told["wanted"] == told["tokens"] == 24_000
    assert certified(pilot) < told["share"]["estimate"]
    law = FiringsLaw.of(Certificate.read(pilot / "certificate.json").to_dict(), _rows(Run.open(pilot)), 0)
    assert told["share"] == asdict(law.share(2 * law.rows))
    assert f"With {int(REACH * TOKENS):,} tokens," in said and "further than this run can foretell" in said
    english, japanese = (" ".join((pilot / page).read_text().split()) for page in ("report.html", "report.ja.html"))
    assert "are to be expected certified (90 %:" in english and "認証される見込みです" in japanese


@pytest.mark.slow
@pytest.mark.parametrize(("slope", "holds"), [(0.7, True), (1.6, False)])
def test_a_stage_is_held_to_what_the_stage_before_foretold(made: Path, tmp_path: Path, slope: float, holds: bool) -> None:
    pilot = with_law(copied(made, tmp_path / "p"))
    stage = with_law(copied(made, pilot / "rollout/all", 3 * TOKENS), times=3, slope=slope)
    held: dict[str, Any] | None = held_to(Run.open(stage))
    assert held is not None and held["stage"] == "pilot" and held["found"] == certified(stage) and held["holds"] is holds
    assert (held["share"]["low"] <= held["found"] <= held["share"]["high"]) is holds
    with tiny_pilots():
        said = " ".join(kyomei("pilot", stage).stdout.split())
    assert "The stage before (pilot) foretold a certified share of" in said
    assert ("which is within" if holds else "which is outside") in said
    assert held_to(Run.open(pilot)) is None


@pytest.mark.slow
def test_a_stage_of_another_width_is_held_to_nothing(made: Path, tmp_path: Path) -> None:
    pilot = with_law(copied(made, tmp_path / "p"))
    held = held_to(Run.open(copied(made, pilot / "rollout/all", 3 * TOKENS)))
    assert held is not None and held["refused"] == {"expected": f"a dictionary of {LATENTS} latents", "found": "32"}
    (line,) = pilot_lines({"held": held}, Speech("ja"))
    assert f"潜在変数 {LATENTS} 個の辞書" in line and "32" in line


def test_why_nothing_is_foretold_is_said_in_japanese_too() -> None:
    frequency, refusals = np.linspace(0.001, 0.09, 100), []
    for certified in (frequency > 1, frequency < 0.04):
        with pytest.raises(EvidenceError) as error:
            FiringsLaw.fit(frequency, certified, 1000)
        refusals.append(error.value)
    with pytest.raises(EvidenceError) as error:
        FiringsLaw.fit(frequency, frequency > 0.04, 1000).share(1e6)
    for refusal in (*refusals, error.value):
        told = {"wanted": 1, "refused": {"expected": refusal.expected, "found": refusal.found}}
        (line,) = pilot_lines({"foretold": told}, Speech("ja"))
        assert not re.search("[a-z]{2}", line), line
