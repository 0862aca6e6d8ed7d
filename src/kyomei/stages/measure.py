"""Every number of a run, each beside its null, and the text that its best features fire on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import RunError
from kyomei.evidence.consistency import Consistency, Null, consistency
from kyomei.evidence.controls import GAUSSIAN, control_named
from kyomei.evidence.fidelity import cross_entropy_recovered, fidelity
from kyomei.evidence.selectivity import Selectivity, selectivity, strongest_rows
from kyomei.learning.directions import Directions
from kyomei.learning.spaces import Whitening
from kyomei.runs import Run
from kyomei.source.shards import ShardFolder
from kyomei.source.text import Tokens
from kyomei.stages.arms import Arm, Pair, made_from, trained_pairs
from kyomei.stages.harvest import activations, load_model, site_of
from kyomei.stages.progress import Reporter
from kyomei.stages.train import train_control

STAGE = "measure"
REPRODUCED = 0.7
"""MCS above which a feature counts as reproduced."""
CONTEXTS_PER_FEATURE = 5
CONTEXT_TOKENS = (14, 6)
"""Tokens shown before and after the strongest one."""
BEST_FEATURES = 30


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
    for pair in pairs:
        for arm in (pair.arm, pair.null):
            missing = [arm.stage(i) for i in range(arm.replicas) if not run.done(arm.stage(i))]
            if missing:
                raise RunError("a trained run", f"no '{missing[0]}' in {run.folder}", "run `kyomei train` with --resume first")
    rows = activations(run, "evidence")
    metric = Whitening.fit(rows).forward
    evidence: dict[str, Any] = {"rows": rows.num_rows, "site": site_of(run), "mechanisms": {}}
    for pair in pairs:
        reporter.note(f"measure {pair.name}")
        evidence["mechanisms"][pair.name] = {"title": pair.title, **_measure_pair(run, pair, rows, metric)}
        if nulls:
            evidence["mechanisms"][pair.name]["against"] = _against(run, pair, nulls, metric, reporter)
        reporter.leave_if_asked("measuring")
    evidence["cross_entropy"] = _cross_entropy(run, pairs)
    evidence["directions"] = _measure_directions(run, pairs[0], metric)
    run.write_json("evidence.json", evidence)
    run.write_json("examples.json", _examples(run, pairs[0].arm, rows, metric))
    run.record("evidence.json", "examples.json")
    run.finish(STAGE, made_from(run, *pairs))
    return evidence


def measured(run: Run) -> bool:
    """Whether evidence.json is there, of the dictionaries that there are now."""
    return run.done(STAGE, made_from(run, *trained_pairs(run)))


def _measure_pair(run: Run, pair: Pair, rows: ShardFolder, metric: Tensor) -> dict[str, Any]:
    dictionaries = [pair.arm.dictionary(run, i) for i in range(pair.arm.replicas)]
    figures = [fidelity(sae, rows) for sae in dictionaries]
    null = _null(run, pair.null)
    first = dictionaries[0]
    per_replica = [f.to_dict() for f in figures]
    agreement = [_agreement(first.decoder, other.decoder, null, metric) for other in dictionaries[1:]]
    return {
        "width": first.width,
        "fidelity": [{k: v for k, v in values.items() if k != "frequency"} for values in per_replica],
        "frequency": per_replica[0]["frequency"],
        "consistency": [{"whitened": w.to_dict(), "raw": r.to_dict()} for w, r in agreement],
        "selections": _selections(agreement[0][0], selectivity(first, rows)) if agreement else {},
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
        unseen = activations(where, "evidence")
        fvu = [fidelity(arm.dictionary(where, i), unseen).fvu for i in range(2)]
        figures[name] = {"survives": control.survives, "whitened": whitened.to_dict(), "raw": raw.to_dict(), "null_fvu": fvu}
    return figures


def _agreement(a: Tensor, b: Tensor, null: Null, metric: Tensor) -> tuple[Consistency, Consistency]:
    """In whitened space and in raw space, where any two decoders share the leading components."""
    return consistency(a, b, null=null, metric="whitened", whitening=metric), consistency(a, b, null=null)


def _selections(agreement: Consistency, values: Selectivity) -> dict[str, Any]:
    """The paper's selections: MCS among the latents that are most active, most selective, most frequent."""
    scores = {"max activation": values.max_activation, "Z-score": values.z_score, "frequency": values.frequency}
    return {
        name: {f"{alpha:g}": _brief(agreement.among(name, score, alpha)) for alpha in (0.05, 0.2)}
        for name, score in scores.items()
    }


def _brief(agreement: Consistency) -> dict[str, Any]:
    return {f"mcs_above_{t:g}": {"value": agreement.share_above(t), "null": agreement.null_share_above(t)} for t in (0.7, 0.9)}


def _cross_entropy(run: Run, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Cross-entropy recovered by each mechanism's first dictionary; empty for a model that predicts no tokens."""
    if run.recipe.source.side != "output":
        return {}
    model = load_model(run.recipe)
    if not model.is_causal:
        return {}
    tokens = Tokens.load(run.path("tokens/evidence"))
    figures = {}
    for pair in pairs:
        sae = pair.arm.dictionary(run, 0).to(model.device)
        figures[pair.name] = cross_entropy_recovered(
            model, tokens, site_of(run), sae, max_windows=32, special_ids=model.special_ids
        ).to_dict()
    return figures


def _measure_directions(run: Run, pair: Pair, metric: Tensor) -> dict[str, Any]:
    """The resonant directions themselves: how many, where found, and how far they reproduce."""
    found = [d for i in range(pair.arm.replicas) if (d := pair.arm.directions(run, i)) is not None]
    null = [d for i in range(pair.null.replicas) if (d := pair.null.directions(run, i)) is not None]
    if not found or not null or any(len(d) == 0 for d in (*found, *null)):
        return {}
    first, *others = found
    # Directions are looked up in the other replica's whole union, less stable ones included: for the null likewise.
    null_pair = Null(null[0].vectors, _union(null[1]), GAUSSIAN.title)
    agreement = [consistency(first.vectors, _union(d), null=null_pair, metric="whitened", whitening=metric) for d in others]
    return {
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


def _examples(run: Run, arm: Arm, rows: ShardFolder, metric: Tensor) -> list[dict[str, Any]]:
    """The features that every other replica reproduces best, with the text they fire on."""
    sae = arm.dictionary(run, 0)
    values = selectivity(sae, rows)
    mcs = _lowest_mcs(sae, [arm.dictionary(run, i) for i in range(1, arm.replicas)], metric)
    # A latent that fires in a handful of rows has no text to show, however well its direction reproduces.
    usable = values.frequency * values.num_rows >= 2 * CONTEXTS_PER_FEATURE
    best = torch.where(usable, mcs, -1.0).argsort(descending=True, stable=True)[:BEST_FEATURES]
    index, activation = strongest_rows(sae, rows, best, 4 * CONTEXTS_PER_FEATURE)
    tokens = Tokens.load(run.path("tokens/evidence"))
    place = rows.row_tokens()
    cards = []
    for latent, row, strength in zip(best.tolist(), index.tolist(), activation.tolist(), strict=True):
        places = [int(place[r]) for r in row if r >= 0]
        centres = [tokens.text_at(at) for at in places]
        cards.append(
            {
                "index": latent,
                "mcs": float(mcs[latent]),
                "frequency": float(values.frequency[latent]),
                "max_activation": float(values.max_activation[latent]),
                "z_score": float(values.z_score[latent]),
                "top_tokens": list(dict.fromkeys(centres))[:8],
                "contexts": _contexts(sae, rows, tokens, place, latent, places, max(strength)),
            }
        )
    return cards


def _lowest_mcs(sae: SparseAutoencoder, others: Sequence[SparseAutoencoder], metric: Tensor) -> Tensor:
    """For each latent the smallest, over the other replicas, of its largest cosine with their decoders."""
    unit = torch.nn.functional.normalize
    own = unit(sae.decoder @ metric, dim=1)
    best = [(own @ unit(other.decoder @ metric, dim=1).T).amax(dim=1) for other in others]
    return torch.stack(best).amin(dim=0) if best else torch.zeros(sae.width)


def _contexts(
    sae: SparseAutoencoder, rows: ShardFolder, tokens: Tokens, place: np.ndarray, latent: int, places: list[int], most: float
) -> list[list[tuple[str, float]]]:
    """Stretches of text around the strongest tokens, each from another document where there are enough."""
    before, after = CONTEXT_TOKENS
    documents, starts = tokens.document.flatten(), tokens.start.flatten()
    fresh: dict[int, int] = {}
    for at in places:
        fresh.setdefault(int(documents[at]), at)
    chosen = [*fresh.values(), *(at for at in places if at not in fresh.values())][:CONTEXTS_PER_FEATURE]
    contexts = []
    for at in chosen:
        span = np.array(tokens.around(at, before, after))
        row = np.searchsorted(place, span).clip(max=len(place) - 1)
        code = sae.encode(rows.read(row))[:, latent]
        present = place[row] == span  # dropped rows have no activation
        words = [tokens.text_at(t) for t in span.tolist()]
        if not tokens.has_text:  # whoever has the document can look there
            words[0] = f"{tokens.documents[int(documents[at])].name}, character {int(starts[span[0]])}: {words[0]}"
        contexts.append([(w, float(a) if p else 0.0) for w, a, p in zip(words, code.tolist(), present.tolist(), strict=True)])
    return contexts
