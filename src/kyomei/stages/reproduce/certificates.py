"""Are certified features true ones? The certificate's rule on planted data, where the truth is known."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import normalize

from kyomei.dictionary.cosines import nearest
from kyomei.evidence.controls import GAUSSIAN
from kyomei.evidence.fidelity import fidelity
from kyomei.evidence.reproduction import STATUSES, certify_latents
from kyomei.learning.fit import fit
from kyomei.source.rows import TensorRows
from kyomei.stages.reproduce.experiment import Cell, Experiment, Record, Summary
from kyomei.stages.reproduce.trials import column, planted_of, recipe_of, values_of, where
from kyomei.views.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SET: dict[str, Any] = {"n": 128, "d": 42, "s": [3, 20], "rows": 30_000}
TRAINING = {"width": 256, "lr": 3e-3, "train_batch": 512}
STEPS, LONG_STEPS = 3000, 12_000
SEARCH = {"neurons": 1024, "search_steps": 12, "batch": 8192}
MECHANISMS: dict[str, dict[str, Any]] = {
    "GBA from resonance": {"name": "gba", "start": "resonance"},
    "TopK, k = 3": {"name": "topk", "k": 3},
    "BatchTopK, k = 3": {"name": "batchtopk", "k": 3},
    "ℓ1, λ = 0.1": {"name": "l1", "penalty": 0.1},
}
TRUE = 0.9
REPLICAS = 3


def cells(seeds: int | None, full: bool) -> list[Cell]:
    """Every mechanism on the imbalanced set, three seeds; the long version trains four times as long."""
    steps = LONG_STEPS if full else STEPS
    return [
        {"method": method, **SET, **TRAINING, **SEARCH, "mechanism": mechanism, "steps": steps, "seed": seed}
        for method, mechanism in MECHANISMS.items()
        for seed in range(seeds or 3)
    ]


def measure(cell: Cell) -> dict[str, Any]:
    """Three replicas on rows of their own, two of the Gaussian null, the verdicts on rows that none saw, and the truth."""
    planted, recipe, seed = planted_of(cell), recipe_of(cell), cell["seed"]
    parts = [TensorRows(planted.sample(cell["rows"], seed=100 * seed + i + 1)[0]) for i in range(REPLICAS + 1)]
    unseen = parts[REPLICAS]
    dictionaries = [fit(parts[i], recipe, seed=10 * seed + i) for i in range(REPLICAS)]
    null_rows = [GAUSSIAN.rows(part, 1000 + 10 * seed + i) for i, part in enumerate((*parts[:2], unseen))]
    for_null = GAUSSIAN.recipe(recipe)
    null = fit(null_rows[0], for_null, seed=10 * seed + 5), fit(null_rows[1], for_null, seed=10 * seed + 6)
    verdicts = certify_latents(dictionaries, unseen, null, null_rows[2])
    found = nearest(normalize(dictionaries[0].decoder, dim=1), planted.features)
    certified = torch.from_numpy(verdicts.mask("certified"))
    true = found.cosine >= TRUE
    kept = fidelity(dictionaries[0], unseen)
    return {
        **{status: float(verdicts.mask(status).mean()) for status in STATUSES},
        "certified_latents": int(certified.sum()),
        "certified_true": float(true[certified].double().mean()) if certified.any() else None,
        "others_true": float(true[~certified].double().mean()) if (~certified).any() else None,
        "features_certified": len(torch.unique(found.row[certified & true])) / planted.n_features,
        "null_passes": verdicts.null_false_positives,
        "q_largest": float(verdicts.q_value[certified.numpy()].max()) if certified.any() else None,
        "fvu": kept.fvu,
        "l0": kept.l0_mean,
    }


def summarise(records: list[Record]) -> Summary:
    """Certified latents beside what they are."""
    rows = []
    for method in values_of(records, "method"):
        own = where(records, method=method)
        shares = [column(own, name) for name in ("certified_true", "others_true", "features_certified", "null_passes")]
        statuses = [column(own, status) for status in STATUSES]
        size = (column(own, "certified_latents", 1, 0), column(own, "l0", 1, 1), column(own, "fvu", 1, 3))
        rows.append((method, str(len(own)), *size, *shares, *statuses))
    header = ("method", "seeds", "certified latents", "L0", "FVU", "certified within 0.9", "others within 0.9")
    title = "Percent, mean (smallest–largest) over seeds; 'features' is the share of true features with a certified latent."
    table = Table(title, (*header, "features", "null passes", *STATUSES), tuple(rows))
    return Summary((table,), lambda figure: _draw(figure, records))


def _draw(figure: Figure, records: list[Record]) -> None:
    methods = values_of(records, "method")
    axes = figure.subplots(1, 1)
    for i, (name, label) in enumerate((("certified_true", "certified"), ("others_true", "others"))):
        values = [[record[name] for record in where(records, method=m) if record[name] is not None] for m in methods]
        places = [j + 0.35 * i for j in range(len(methods))]
        axes.bar(places, [100 * fmean(v) if v else 0 for v in values], width=0.33, label=label)
    axes.axhline(95, color="0.6", linestyle=":")
    axes.set_xticks([j + 0.17 for j in range(len(methods))], methods)
    axes.set(ylabel="within cosine 0.9 of a true feature (%)")
    axes.legend()


EXPERIMENT = Experiment(
    "certificates",
    "Certified features on planted data: how many are true, and how many of the null's pass",
    "the paper certifies nothing; the rule asks for at least 95 % true and at most 1 % of the null.",
    cells,
    measure,
    summarise,
)
