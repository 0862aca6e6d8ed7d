"""verdict.json: go, conditional or no-go of a run, from what its stages have left so far.

The file holds
    schema_version  1
    created         when, ISO 8601 in UTC
    level           "go", "conditional" or "no-go"
    decided_by      titles of the grounds that set the level
    grounds         of each: title, name, stance ("for", "between", "against", "unknown"), estimate, interval, go, no_go, facts;
                    `kyomei.views.decisions` puts them into words, English or Japanese
    thresholds      what was asked, by name of the setting in the recipe's section "verdict"
    run             model, site, side, mechanism, width, tokens, steps, replicas and seed that it is of
    made_from       SHA-256, by path in the run, of the files that it rests on; with others it no longer holds
"""

from __future__ import annotations

from typing import Any

from kyomei.evidence.controls import RANDOM_WEIGHTS
from kyomei.evidence.goals.detector import FILE as GOALS
from kyomei.evidence.goals.detector import standing_goals
from kyomei.evidence.verdict import decide
from kyomei.provenance import now
from kyomei.runs import Run
from kyomei.stages.arms import BASELINES, own_pair
from kyomei.stages.certify import FILE as CERTIFICATE
from kyomei.stages.certify import RANDOM, certificates_of
from kyomei.stages.check import FILE as PREMISES
from kyomei.stages.harvested import site_of

FILE = "verdict.json"
SCHEMA_VERSION = 1
BASELINE = "baseline "
"""What the name of a baseline's certificate begins with."""


def decide_run(run: Run) -> dict[str, Any]:
    """Go, conditional or no-go of a trained run, written to verdict.json; one that still holds is read back.

    Args:
        run: trained, and harvested from a language model; what of certificate, control, premises, baselines and goals is there
            is weighed, and what is not is said to be unknown.
    """
    before = standing_verdict(run)
    if before is not None:
        return before
    certificates = {name: certificate.to_dict() for name, certificate in certificates_of(run).items()}
    own = certificates.get(own_pair(run).name)
    decision = decide(
        own,
        run.recipe.verdict,
        premises=run.read_json(PREMISES) if run.path(PREMISES).exists() else None,
        control=certificates.get(RANDOM),
        baselines={name.removeprefix(BASELINE): c for name, c in certificates.items() if name.startswith(BASELINE)},
        goals=own_goals(run),
    )
    source, recipe = run.recipe.source, run.recipe
    facts = {
        "model": source.model,
        "site": site_of(run),
        "side": source.side,
        "mechanism": recipe.mechanism.label,
        "width": recipe.dictionary.width if own is None else own["width"],
        "tokens": source.num_tokens,
        "steps": recipe.train.steps,
        "replicas": source.replicas,
        "seed": recipe.seed,
    }
    head = {"schema_version": SCHEMA_VERSION, "created": now()}
    run.write_json(FILE, {**head, **decision.to_dict(), "run": facts, "made_from": _made_from(run)})
    run.record(FILE)
    return dict(run.read_json(FILE))


def standing_verdict(run: Run) -> dict[str, Any] | None:
    """The verdict of a run, if it is as it was written, of the files that there are now and of the recipe's thresholds."""
    if not run.path(FILE).exists():
        return None
    found = dict(run.read_json(FILE))
    same = found.get("made_from") == _made_from(run) and found.get("thresholds") == run.recipe.verdict.model_dump()
    return found if same and run.recorded(FILE) else None


def _made_from(run: Run) -> dict[str, str]:
    """Digests of what a verdict rests on, of those files that are there."""
    baselines = [f"baselines/{name}/{CERTIFICATE}" for name in BASELINES]
    return run.digests([CERTIFICATE, PREMISES, GOALS, f"controls/{RANDOM_WEIGHTS.name}/{CERTIFICATE}", *baselines])


def own_goals(run: Run) -> dict[str, dict[str, Any]]:
    """Of every goal of the run's own dictionary, by name, what it is measured by, the figure and its interval.

    Goals that an earlier dictionary told, or one from elsewhere, are left out, and so are those that have expired or have no
    finite figure.
    """
    found: dict[str, dict[str, Any]] = {}
    own = set(run.digests([f"{own_pair(run).places[0]}/sae.safetensors"]).values())
    for name, goal in standing_goals(run.folder).items():
        key = "auc" if "auc" in goal["figures"] else "r2"
        figure = goal["figures"][key]
        if goal["detector"]["dictionary"] in own and figure["value"] is not None and None not in figure["interval"]:
            measure = "AUC" if key == "auc" else "R²"
            found[name] = {"measure": measure, "value": figure["value"], "interval": figure["interval"]}
    return found
