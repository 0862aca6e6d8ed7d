"""Which certified share more tokens would give, and how many a wished one takes, going by runs that have been certified.

One run is projected by how often its latents fire; four or more on different numbers of tokens are measured points of a line
(`kyomei.evidence.rows_law`). A pilot says so of its full run, and each stage of a roll-out is held to what the stage before it
foretold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kyomei.config import Recipe
from kyomei.errors import EvidenceError, KyomeiError, RecipeError
from kyomei.evidence.certificate import Certificate
from kyomei.evidence.rows_law import REACH, FiringsLaw, Foretold, RowsLaw
from kyomei.runs import MANIFEST, Run
from kyomei.stages.arms import own_pair
from kyomei.stages.certify import standing
from kyomei.stages.full import ROLLOUT, pilot_above
from kyomei.stages.harvested import activations

STAGE = "pilot"
"""Name of a roll-out's first stage."""
_SAME = ("model", "site", "mechanism", "width")
"""What the certificates of several runs have in common."""
_KEPT = ("source.model", "source.sites", "source.side", "source.replicas", "mechanism", "dictionary")
"""Parts of a recipe with which the law holds as the runs had them; the first named here is the first that is complained of."""


@dataclass(frozen=True)
class Foretelling:
    """A law, in tokens.

    Attributes:
        law: in rows of a replica.
        rows_per_token: of a replica, for every token harvested.
        runs: by folder, "tokens" and "share" of what it rests on, the fewest tokens first.
        width: latents of the dictionary.
        recipe: of the run with most tokens.
    """

    law: RowsLaw | FiringsLaw
    rows_per_token: float
    runs: dict[str, dict[str, Any]]
    width: int
    recipe: Recipe

    @property
    def most_tokens(self) -> int:
        """As far as it reaches."""
        return int(REACH * self.recipe.source.num_tokens)

    def share(self, tokens: int) -> Foretold:
        """The certified share with so many tokens; errors as those of the law."""
        return self.law.share(tokens * self.rows_per_token)

    def tokens_for(self, share: float) -> Foretold:
        """The tokens that a wished share takes; errors as those of the law."""
        return self.law.rows_for(share).times(1 / self.rows_per_token)

    def facts(self, tokens: int, wished: float | None = None, needed: Foretold | None = None) -> dict[str, Any]:
        """Plain values: what it rests on, and the share that so many tokens give.

        Args:
            tokens: how many.
            wished: share that was asked for; none: none was.
            needed: the tokens that it takes.
        """
        return {
            "by": "firings" if isinstance(self.law, FiringsLaw) else "rows",
            "runs": self.runs,
            "width": self.width,
            "even_firings": self.law.even if isinstance(self.law, FiringsLaw) else None,
            "most_tokens": self.most_tokens,
            "wished": wished,
            "needed": None if needed is None else asdict(needed),
            "tokens": tokens,
            "share": asdict(self.share(tokens)),
        }


def foretelling(runs: Sequence[Run]) -> Foretelling:
    """The law of one certified run, or of four and more that differ in their tokens.

    Args:
        runs: trained and certified.

    Raises:
        EvidenceError: a run has no certificate that holds, the runs are not of one kind, or they make no law.
    """
    known = sorted(((run, _certificate(run), _rows(run)) for run in runs), key=lambda one: one[2])
    *_, (run, own, rows) = known
    for other, certificate, _ in known:
        for name in _SAME:
            if (found := getattr(certificate, name)) != (expected := getattr(own, name)):
                do = "name runs that differ in their tokens alone"
                raise EvidenceError(f"runs of one {name}, such as {expected} of {run.folder}", f"{found} of {other.folder}", do)
    law: RowsLaw | FiringsLaw
    if len(known) == 1:
        law = FiringsLaw.of(own.to_dict(), rows, run.recipe.seed)
    else:
        law = RowsLaw.fit([rows for *_, rows in known], [_share(certificate) for _, certificate, _ in known])
    points = {str(one.folder): {"tokens": one.recipe.source.num_tokens, "share": _share(c)} for one, c, _ in known}
    return Foretelling(law, rows / run.recipe.source.num_tokens, points, own.width, run.recipe)


def planned_for(runs: Sequence[Run], recipe: Recipe, wished: float | None) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of as many tokens as a wished certified share takes, and what is foretold of it.

    Args:
        runs: as `foretelling` takes them.
        recipe: of the run that is planned, theirs but for what does not change what is certified.
        wished: certified share; none: the recipe's tokens are taken as they are.

    Raises:
        RecipeError: the recipe is of another site, model, mechanism or dictionary than the runs.
        EvidenceError: as of `foretelling`, or the wish, or the recipe's tokens, lie beyond what the law speaks of.
    """
    law = foretelling(runs)
    before, now = law.recipe.model_dump(), recipe.model_dump()
    for key in _KEPT:
        section, _, name = key.partition(".")
        had, has = (values[section][name] if name else values[section] for values in (before, now))
        if had != has:
            do = "plan it without --run, or leave that as the run has it"
            raise RecipeError(f"the {key} of the run, which the law holds for", "another one", do)
    if wished is None:
        return recipe, law.facts(recipe.source.num_tokens)
    needed = law.tokens_for(wished)
    tokens = round(needed.estimate)
    source = recipe.source.model_copy(update={"num_tokens": tokens})
    return recipe.model_copy(update={"source": source}), law.facts(tokens, wished, needed)


def foretold(run: Run, tokens: int) -> dict[str, Any] | None:
    """What a pilot says of a run of so many tokens, or of as many as it can speak of: facts, or why there are none.

    Args:
        run: certified.
        tokens: of the full run.

    Returns:
        As `Foretelling.facts`, and "wanted", `tokens`; or "wanted" and "refused", what was expected and found; none: the full
        run has no more tokens.
    """
    if tokens <= run.recipe.source.num_tokens:
        return None
    try:
        law = foretelling([run])
        return {"wanted": tokens, **law.facts(min(tokens, law.most_tokens))}
    except KyomeiError as error:
        return {"wanted": tokens, "refused": _said(error)}


def held_to(run: Run) -> dict[str, Any] | None:
    """Whether the certified share of a roll-out's stage lies in the interval that the stage before foretold.

    Args:
        run: a stage's, certified.

    Returns:
        "stage" (the one before), "tokens", "share" with its interval, "found" and "holds"; or "stage" and "refused", what was
        expected and found; none: no stage with fewer tokens came before.
    """
    above, own = pilot_above(run.folder), standing(run, own_pair(run))
    if above is None or own is None:
        return None
    tokens = run.recipe.source.num_tokens
    folders = [above, *sorted((above / Path(ROLLOUT).stem).iterdir())]
    before = [Run.open(folder) for folder in folders if (folder / MANIFEST).exists()]
    smaller = [one for one in before if one.recipe.source.num_tokens < tokens]
    if not smaller:
        return None
    nearest = max(smaller, key=lambda one: one.recipe.source.num_tokens)
    stage = STAGE if nearest is before[0] else nearest.folder.name
    try:
        law = foretelling([nearest])
        if law.width != own.width:
            raise EvidenceError(f"a dictionary of {law.width:,} latents", f"{own.width:,}", "plan both with one --width")
        told, found = law.share(tokens), _share(own)
    except KyomeiError as error:
        return {"stage": stage, "refused": _said(error)}
    return {"stage": stage, "tokens": tokens, "share": asdict(told), "found": found, "holds": told.holds(found)}


def _said(error: KyomeiError) -> dict[str, str]:
    return {"expected": error.expected, "found": error.found}


def _certificate(run: Run) -> Certificate:
    """A run's own certificate."""
    found = standing(run, own_pair(run))
    if found is None:
        do = f"certify it: `kyomei certify {run.folder}`"
        raise EvidenceError("a run with a certificate that holds", f"none in {run.folder}", do)
    return found


def _share(certificate: Certificate) -> float:
    return len(certificate.certified) / len(certificate.features)


def _rows(run: Run) -> int:
    """Rows that a replica learnt from."""
    if run.recipe.source.streamed_tokens:
        do = "name a run without source.streamed_tokens"
        raise EvidenceError("a run whose rows are all stored", f"a stream in {run.folder}", do)
    return activations(run, "replica-0", verify=False).num_rows
