"""Every table of a terminal, built here from what stages return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kyomei.views.findings import (
    Facts,
    certificate_lines,
    certified_by,
    evidence_rows,
    expected_recovery,
    premise_figures,
)
from kyomei.views.numbers import duration, format_number, percent
from kyomei.views.words import PARTS, TERMS, dictionary_title, difference_words

TOKENS_SHOWN = 5
NULL_REPLICAS = 2


@dataclass(frozen=True)
class Table:
    """One table of text.

    Attributes:
        title: what it shows.
        header: name of each column.
        rows: one tuple of cells a row; the first stands to the left, the others to the right.
        legend: words of the table, each with what it means.
        words: columns of words, by number; they stand to the left as well.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    legend: tuple[tuple[str, str], ...] = ()
    words: tuple[int, ...] = (0,)

    def markdown(self) -> str:
        """The table with its title above."""
        lines = (self.header, ("---",) * len(self.header), *self.rows)
        return f"{self.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


# ── Certificate ──


def certificate_table(certificates: Mapping[str, Facts], title: str) -> Table:
    """The same for a terminal."""
    by_status, *others = certificate_lines(certificates)
    lines = [*by_status.lines, *certified_by(list(certificates.values())), *(line for group in others for line in group.lines)]
    header = ("", *map(dictionary_title, certificates))
    legend = tuple((line.name, line.meaning) for line in lines)
    return Table(title, header, tuple((line.name, *line.cells) for line in lines), legend)


def certify_tables(facts: Facts, folder: str) -> list[Table]:
    """What `kyomei certify` prints: all dictionaries side by side, then the best certified features of the first.

    Args:
        facts: what `certify_run` returns.
        folder: of the run.
    """
    certificates = facts["certificates"]
    first = next(iter(certificates))
    known = {feature["index"]: feature for feature in certificates[first]["features"]}
    best = [known[latent] for latent in facts["best"][first]]
    together = certificate_table(certificates, f"{folder}: how many latents are certified, and where those come from")
    return [together, *([_best_table(best, dictionary_title(first))] if best else [])]


def certify_notes(facts: Facts) -> list[str]:
    """What stands below: where no feature is certified, what random weights say, and the files."""
    best = facts["best"].items()
    lines = [f"No feature of {dictionary_title(name)} is certified." for name, chosen in best if not chosen]
    lines += [difference_words(among, found) for among, found in (facts.get("origin_difference") or {}).items()]
    return [*lines, *(f"{dictionary_title(name)}: {path}" for name, path in facts["files"].items())]


def _best_table(features: Sequence[Facts], title: str) -> Table:
    """The certified features that other replicas confirm best, with the tokens that they fire on."""
    rows = [
        (
            str(f["index"]),
            percent(f["frequency"]),
            f"{min(*f['encoder_mcs'], *f['decoder_mcs']):.2f}",
            f"{min(f['correlation']):.2f}",
            f["origin"]["kind"],
            " ".join(repr(token) for token, _ in f.get("tokens", ())[:TOKENS_SHOWN]),
        )
        for f in features
    ]
    header = ("feature", "frequency", "cosine", "correlation", "origin", "tokens")
    legend = _legend("frequency", "cosine", "correlation")
    return Table(f"best certified features of {title}", header, tuple(rows), legend, words=(0, 4, 5))


# ── Premises ──


def premises_table(premises: Facts) -> Table:
    """Status and estimate of every premise, and what each means and asks for, from what `Premises.to_dict` gives."""
    title = f"premises: {premises['verdict']}; expected share of features recovered (cosine 0.9): {expected_recovery(premises)}"
    each = premises["premises"]
    rows = tuple((p["name"], p["status"], premise_figures(p)) for p in each)
    legend = tuple((p["name"], p["meaning"] + ("" if p["status"] == "met" else f" → {p['advice']}")) for p in each)
    return Table(title, ("premise", "status", "estimate"), rows, legend)


def premises_by_name(each: Mapping[str, Facts], title: str) -> Table:
    """Verdict and expected recovery of several checks, by name."""
    rows = tuple((name, premises["verdict"], expected_recovery(premises)) for name, premises in each.items())
    header = ("rows of", "premises", "share of features recovered (cosine 0.9)")
    return Table(title, header, rows, words=(0, 1))


# ── Evidence ──


def evidence_table(evidence: Facts, title: str) -> Table:
    """The same for a terminal."""
    rows = [
        (row.figure, *("" if v is None else format_number(v) for v in (row.value, row.spread, row.null)))
        for row in evidence_rows(evidence)
    ]
    terms = ("latent", "FVU", "L0", "dead", "MCS", "whitened", "raw", "null", "over replicas", "cross-entropy recovered")
    return Table(title, ("figure", "value", "over replicas", "null"), tuple(rows), _legend(*terms))


# ── The verbs' ──


def settings_table(settings: Sequence[tuple[str, str, str]]) -> Table:
    """Key, default and help of every setting of a recipe."""
    title = "settings of a recipe: --set KEY=VALUE, or a file that `kyomei recipe --mechanism NAME` begins"
    return Table(title, ("setting", "default", "what it does"), tuple(settings), words=(0, 1, 2))


def harvest_table(facts: Facts, folder: str) -> Table:
    """Rows of each part of the documents at each site, and what was dropped beside them."""
    rows = []
    for site, values in facts["sites"].items():
        for part, counts in values["parts"].items():
            dropped = (f"{counts[key]:,}" for key in ("dropped_special", "dropped_norm"))
            rows.append((site, str(values["dim"]), part, f"{counts['rows']:,}", *dropped))
    header = ("site", "width", "part", "rows", "special", "massive")
    return Table(f"{folder}: rows of each site", header, tuple(rows), _legend(*header), words=(0, 2))


def index_table(facts: Mapping[str, Facts], folder: str) -> Table:
    """The explorer's index of each dictionary."""
    counted = ("width", "rows", "documents")
    shown = ((name, *(format_number(of[key]) for key in counted), of["folder"]) for name, of in facts.items())
    header = ("dictionary", "latents", "rows", "documents", "index")
    return Table(f"{folder}: indices", header, tuple(shown), _legend("latent"), words=(0, 4))


def labels_table(labels: Sequence[Facts], source: str) -> Table:
    """Automatic labels, each score beside its null."""
    rows = ((str(e["latent"]), e["label"], format_number(e["score"]), format_number(e["null_score"])) for e in labels)
    header = ("latent", "label", "score", "null")
    return Table(f"automatic labels: {source}", header, tuple(rows), _legend("latent", "score"), words=(1,))


def train_table(facts: Facts, title: str) -> Table:
    """Every dictionary that was trained, nulls beside."""
    rows = []
    for arm in facts["arms"]:
        for i, replica in enumerate(arm["replicas"]):
            counts = (format_number(replica.get(key)) for key in ("stable", "used"))
            rows.append((f"{arm['folder']}/{i}", dictionary_title(arm["mechanism"]), str(replica["width"]), *counts))
    header = ("dictionary", "mechanism", "latents", "stable directions", "used")
    return Table(title, header, tuple(rows), _legend("latent", "replica", "null", "stable directions", "used"), words=(0, 1))


def plan_table(facts: Facts, title: str, replicas: int) -> Table:
    """Time, memory, disk and money.

    Args:
        facts: what `Plan.to_dict` gives.
        title: on what hardware, and whether measured.
        replicas: that the recipe asks for.
    """
    rows = [(f"time, {part}", duration(seconds)) for part, seconds in facts["seconds"].items()]
    rows.append(("time in all", duration(facts["total_seconds"])))
    rows.append(("tokens harvested", f"{facts['harvested_tokens']:,}"))
    times = facts["read_rows"] / facts["rows"]
    rows.append(("rows trained on", f"{facts['read_rows']:,} of {facts['rows']:,} ({times:.2g} times each)"))
    rows.append(("memory", f"{facts['memory_bytes'] / 1e9:.2f} GB"))
    rows.append(("disk", f"{facts['disk_bytes'] / 1e9:.2f} GB"))
    if facts.get("address_bytes"):
        rows.append(("at the address", f"{facts['address_bytes'] / 1e9:.2f} GB"))
    if facts["price"] is not None:
        rows.append(("money", f"{facts['price']:.2f} dollars"))
    rows.append(("mesh", facts["mesh"]))
    if facts.get("traffic_bytes"):
        rows.append(("traffic", f"{facts['traffic_bytes'] / 1e9:.3f} GB a step"))
    rows.append(("what", f"{replicas + 1} parts of the documents, {replicas} replicas and {NULL_REPLICAS} of the null"))
    parts = tuple((f"time, {part}", PARTS[part]) for part in facts["seconds"])
    named = _legend(*(name for name, _ in rows if not name.startswith("time, ")), "replica", "null")
    return Table(title, ("part", "figure"), tuple(rows), parts + named)


def planted_table(facts: Facts, num_features: int, dim: int) -> Table:
    """Recovery of planted features beside that of random directions."""
    keys = ("frr_0.8", "frr_0.9", "monosemantic_0.9", "mcc")
    rows = [(name, str(v["n_vectors"]), *(f"{v[key]:.3f}" for key in keys)) for name, v in facts["recovery"].items()]
    estimate = "" if facts["n_features"] is None else f"; estimated {facts['n_features']}"
    between = " ({}–{})".format(*facts["interval"]) if facts.get("interval") else ""
    header = ("vectors", "count", "FRR 0.8", "FRR 0.9", "within 0.9", "MCC")
    title = f"{num_features} features in {dim} dimensions{estimate}{between}"
    return Table(title, header, tuple(rows), _legend("FRR", "within 0.9", "MCC"))


def compare_table(rows: Sequence[Facts], title: str) -> Table:
    """Dictionaries side by side; what is the same for all of them is said in the title.

    Args:
        rows: as a comparison has them; a figure that is missing is a dash.
        title: what they have in common.
    """
    sites = {row["site"] for row in rows if row.get("site")}
    words = {"run": "dictionary", **({"site": "site"} if len(sites) > 1 else {}), "mechanism": "mechanism"}
    header = (*words.values(), *COMPARED)
    each = [(*(str(row.get(key) or "–") for key in words), *compared_figures(row)) for row in rows]
    terms = ("L0", "FVU", "alive", "certified", "of variance", "by chance", "CE", "seconds")
    full = f"{title}: {next(iter(sites))}" if len(sites) == 1 else title
    return Table(full, header, tuple(each), _legend(*terms), words=tuple(range(len(words))))


def compared_figures(row: Facts) -> tuple[str, ...]:
    """The figures of one dictionary of a comparison, in the order of `COMPARED`."""
    shares = (percent(row.get(key)) for key in ("alive", "certified", "certified_explained", "null"))
    seconds = row.get("seconds")
    return (
        *(format_number(row.get(key)) for key in ("width", "l0", "fvu")),
        *shares,
        format_number(row.get("cross_entropy")),
        "–" if seconds is None else f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}",
    )


COMPARED = ("width", "L0", "FVU", "alive", "certified", "of variance", "by chance", "CE", "seconds")
"""Columns of figures of a comparison."""


def runs_table(rows: Sequence[Facts], title: str) -> Table:
    """Runs of a folder: what each is, how far it has come, and whose rows it learns from."""
    keys = ("name", "state", "model", "site", "mechanism", "width", "certified", "harvest")
    shown = [tuple(percent(row.get(key)) if key == "certified" else str(row.get(key) or "–") for key in keys) for row in rows]
    return Table(title, keys, tuple(shown), words=(0, 1, 2, 3, 4, 7))


def _legend(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, TERMS[name]) for name in names)
