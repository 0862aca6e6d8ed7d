"""Every number of a run, each beside its null, and the text that its best features fire on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kyomei.dictionary.formats import unit_rows_of
from kyomei.evidence.consistency import Consistency, Null, consistency
from kyomei.evidence.controls import GAUSSIAN, control_named
from kyomei.evidence.examples import cards, choose, lowest_mcs
from kyomei.evidence.fidelity import cross_entropy_recovered
from kyomei.evidence.reproduction import MIN_REPLICAS
from kyomei.evidence.selectivity import Selectivity
from kyomei.evidence.site import check_site
from kyomei.evidence.survey import Survey, survey
from kyomei.learning.directions import Directions
from kyomei.learning.spaces import Whitening
from kyomei.runs import Run
from kyomei.source.model import LanguageModel
from kyomei.source.rows import Rows, as_seen
from kyomei.source.trial import try_sites
from kyomei.stages.arms import Arm, Pair, made_from, own_pair, require_trained, trained_pairs
from kyomei.stages.certify import evidence_null, standing
from kyomei.stages.harvest import load_model
from kyomei.stages.harvested import activations, site_of, tokens_of
from kyomei.stages.named import NAMES, names_of
from kyomei.stages.progress import Reporter
from kyomei.stages.train import train_control

STAGE = "measure"
REPRODUCED = 0.7
"""MCS above which a feature counts as reproduced."""


def measure_run(run: Run, reporter: Reporter, nulls: Sequence[str] = ()) -> dict[str, Any]:
    """Measure every arm on the documents that no replica saw, and write evidence.json and examples.json.

    Args:
        run: its replicas and Gaussian nulls are trained.
        reporter: shows progress.
        nulls: names of further nulls to ask every consistency figure against; missing ones are trained first.

    Returns:
        What evidence.json holds.
    """
    pairs = trained_pairs(run)
    require_trained(run, *pairs)
    if not (run.writable or nulls) and measured(run):
        reporter.note(f"{run.folder} cannot be written to: its figures are shown as they were measured")
        return dict(run.read_json("evidence.json"))
    rows = activations(run, "evidence")
    # As `space_of` decides it for a certificate: of rows of norm 1, where all of a pair's dictionaries are of such rows.
    unit = {pair.name: all(unit_rows_of(run.path(place)) for place in pair.places) for pair in pairs}
    spaces = {kind: Whitening.fit(as_seen(rows, kind)) for kind in sorted({*unit.values()})}
    metrics = {name: spaces[kind].forward for name, kind in unit.items()}
    constant = int((~next(iter(spaces.values())).varies).sum())
    shape = {"rows": rows.num_rows, "dim": rows.dim, "constant": constant}
    evidence: dict[str, Any] = {NAMES: names_of(run), **shape, "site": site_of(run), "mechanisms": {}}
    surveys: list[Survey] = []
    for pair in pairs:
        reporter.note(f"measure {pair.name}")
        check_site(pair.arm.dictionary(run, 0), rows)
        found = survey([pair.arm.dictionary(run, i) for i in range(pair.arm.replicas)], rows)
        surveys.append(found[0])
        metric = metrics[pair.name]
        evidence["mechanisms"][pair.name] = {"title": pair.title, **_measure_pair(run, pair, found, rows, metric)}
        if nulls and pair.tested_by is None:  # what comes from elsewhere is trained by no procedure that a null could repeat
            evidence["mechanisms"][pair.name]["against"] = _against(run, pair, nulls, metric, reporter)
    evidence |= _cross_entropy(run, pairs)
    evidence["directions"] = _measure_directions(run, own_pair(run), metrics[own_pair(run).name])
    examples = _examples(run, pairs[0], surveys[0], metrics[pairs[0].name], reporter)
    run.write_json("evidence.json", evidence)
    run.write_json("examples.json", examples)
    run.record("evidence.json", "examples.json")
    run.finish(STAGE, made_from(run, *pairs))
    return evidence


def measured(run: Run) -> bool:
    """Whether evidence.json is there, of the dictionaries that there are now."""
    return run.done(STAGE, made_from(run, *trained_pairs(run)))


def _measure_pair(run: Run, pair: Pair, surveys: Sequence[Survey], rows: Rows, metric: Tensor) -> dict[str, Any]:
    first, *others = pair.dictionaries(run)
    null = _null(run, pair.null)
    per_replica = [found.fidelity.to_dict() for found in surveys]
    agreement = [_agreement(first.decoder, other.decoder, null, metric) for other in others]
    selections = {}
    if agreement:
        # What is most active on the null's rows stands beside what is most active on the data's.
        (null_found,) = survey([pair.null.dictionary(run, 0)], evidence_null(run, rows))
        selections = _selections(agreement[0][0], surveys[0].selectivity, null_found.selectivity)
    return {
        "width": first.width,
        "fidelity": [{k: v for k, v in values.items() if k != "frequency"} for values in per_replica],
        "frequency": per_replica[0]["frequency"],
        "consistency": [{"whitened": w.to_dict(), "raw": r.to_dict()} for w, r in agreement],
        "selections": selections,
    }


def _null(run: Run, arm: Arm, title: str = GAUSSIAN.title) -> Null:
    a, b = (arm.dictionary(run, i).decoder for i in range(2))
    return Null(a, b, title)


def _against(run: Run, pair: Pair, nulls: Sequence[str], metric: Tensor, reporter: Reporter) -> dict[str, Any]:
    """The first two replicas' consistency beside each of the nulls asked for, and how well each null reconstructs."""
    first, second = (pair.arm.dictionary(run, i) for i in range(2))
    figures = {}
    for name in nulls:
        control = control_named(name)
        where, arm = train_control(run, pair.arm, pair.name, control, reporter)
        null = _null(where, arm, control.title)
        whitened, raw = _agreement(first.decoder, second.decoder, null, metric)
        found = survey([arm.dictionary(where, i) for i in range(2)], activations(where, "evidence"))
        fvu = [one.fidelity.fvu for one in found]
        figures[name] = {"survives": control.survives, "whitened": whitened.to_dict(), "raw": raw.to_dict(), "null_fvu": fvu}
    return figures


def _agreement(a: Tensor, b: Tensor, null: Null, metric: Tensor) -> tuple[Consistency, Consistency]:
    """In whitened space and in raw space, where any two decoders share the leading components."""
    return consistency(a, b, null=null, metric="whitened", whitening=metric), consistency(a, b, null=null)


def _selections(agreement: Consistency, values: Selectivity, null_values: Selectivity) -> dict[str, Any]:
    """The paper's selections: MCS among the latents that are most active, most selective, most frequent; the null's as well."""
    scores, null_scores = (
        {"max activation": v.max_activation, "Z-score": v.z_score, "frequency": v.frequency} for v in (values, null_values)
    )
    return {
        name: {f"{alpha:g}": _brief(agreement.among(name, score, alpha, null_scores[name])) for alpha in (0.05, 0.2)}
        for name, score in scores.items()
    }


def _brief(agreement: Consistency) -> dict[str, Any]:
    return {f"mcs_above_{t:g}": {"value": agreement.share_above(t), "null": agreement.null_share_above(t)} for t in (0.7, 0.9)}


def _cross_entropy(run: Run, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Cross-entropy recovered by each mechanism's first dictionary; or "cross_entropy_note", why there is none."""
    source, site = run.recipe.source, site_of(run)
    model, tokens = load_model(run.recipe), tokens_of(run, "evidence")
    reason = try_sites(model, tokens.ids, [site], source.side).unspliceable.get(site)
    if reason is not None:
        return {"cross_entropy": {}, "cross_entropy_note": reason}
    figures = {}
    for pair in pairs:
        sae = pair.arm.dictionary(run, 0).to(model.device)
        figures[pair.name] = cross_entropy_recovered(
            model, tokens, site, sae, max_windows=32, side=source.side, **kept_rows(run, model)
        ).to_dict()
    return {"cross_entropy": figures}


def kept_rows(run: Run, model: LanguageModel) -> dict[str, Any]:
    """Where a site keeps its own activation: what the harvest dropped, no dictionary has learnt."""
    source, median_norm = run.recipe.source, activations(run, "evidence", verify=False).meta["median_norm"]
    special = model.special_ids if source.drop_special else set()
    return {"special_ids": special, "max_norm": source.norm_bound * median_norm}


def _measure_directions(run: Run, pair: Pair, metric: Tensor) -> dict[str, Any]:
    """The resonant directions themselves: how many, where found, and how far they reproduce; or "note", why there are none."""
    found = [d for i in range(pair.arm.replicas) if (d := pair.arm.directions(run, i)) is not None]
    null = [d for i in range(pair.null.replicas) if (d := pair.null.directions(run, i)) is not None]
    if not found or not null:
        return {"note": "No directions were searched for: this dictionary starts at random."}
    first, *others = found
    agreement = []
    if len(null[0]) and len(null[1].candidates):
        # Directions are looked up in the other replica's whole union, less stable ones included: for the null likewise.
        against = Null(null[0].vectors, _union(null[1]), GAUSSIAN.title)
        agreement = [consistency(first.vectors, _union(d), null=against, metric="whitened", whitening=metric) for d in others]
    return {
        "note": _emptiness([len(d) for d in found], compared=bool(agreement)),
        "count": [len(d) for d in (first, *others)],
        "n_features": first.n_features,
        "interval": list(first.interval),
        "stable_null_count": [int((d.stability >= run.recipe.resonance.min_stability).sum()) for d in null],
        "frequency": first.frequency.tolist(),
        "consistency": [a.to_dict() for a in agreement],
        "mcs": agreement[0].mcs.tolist() if agreement else [],
        "null_mcs": agreement[0].null_mcs.tolist() if agreement else [],
        "by_frequency": _by_frequency(first, agreement),
    }


def _emptiness(counts: Sequence[int], *, compared: bool) -> str:
    """What is missing, in a sentence; empty where nothing is."""
    if not any(counts):
        return "Resonance found no stable direction in any replica."
    empty = [str(i) for i, count in enumerate(counts) if not count]
    if empty:
        return f"Resonance found no stable direction in replica {', '.join(empty)}."
    if len(counts) > 1 and not compared:
        return "Resonance found nothing on the Gaussian null, so how far directions reappear has nothing to stand beside."
    return ""


def _union(directions: Directions) -> Tensor:
    """Every distinct direction a replica found, in input space."""
    return directions.candidates @ directions.whitening.backward


def _by_frequency(directions: Directions, agreement: Sequence[Consistency]) -> list[dict[str, Any]]:
    """The curve over p: directions found at each target frequency, and the share of them that another replica's union has."""
    curve = []
    for p in torch.unique(directions.found_at).tolist():
        here = directions.found_at == p
        shares = [float((a.mcs[here] > REPRODUCED).double().mean()) for a in agreement]
        curve.append({"p": round(p, 6), "count": int(here.sum()), "mcs_above_0.7": shares})
    return curve


def _examples(run: Run, pair: Pair, found: Survey, metric: Tensor, reporter: Reporter) -> list[dict[str, Any]]:
    """The features to show: certified ones where there is a certificate, those that reproduce best elsewhere."""
    certificate = standing(run, pair)
    sae, *others = pair.dictionaries(run)
    if certificate is None and len(others) + 1 >= MIN_REPLICAS:
        do = "run `kyomei certify`, then measure again to show certified features first"
        reporter.note(f"no certificate holds for these dictionaries: {do}")
    mcs = lowest_mcs(sae, others, metric)
    chosen = choose(mcs, found.selectivity, certificate.certified if certificate else ())
    return cards(sae, activations(run, "evidence"), tokens_of(run, "evidence"), found, mcs, chosen)
