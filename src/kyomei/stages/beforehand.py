"""What measure and certify would refuse, asked before hours of training; and what training goes around, said and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kyomei.errors import DataError, KyomeiError
from kyomei.evidence.origin import require_documents
from kyomei.evidence.reproduction import require_replicas
from kyomei.learning.spaces import Normalisation, require_enough
from kyomei.runs import Run
from kyomei.stages.harvested import activations, part_names, site_of, tokens_of
from kyomei.stages.progress import Reporter

NEVER_VARY = "coordinates that never change, as in dead units, are left out: {count} of {dim} in {where}"


def require_measurable(run: Run, reporter: Reporter) -> dict[str, int]:
    """Ask of the rows of every replica, and of the evidence, what whitening and the figures will ask of them.

    What only a certificate asks for is said in one line: a run may be meant to be measured only.

    Args:
        run: harvested.
        reporter: says what certify would refuse, and how many coordinates never vary.

    Returns:
        Number of coordinates that never vary, by part; parts without any are left out.

    Raises:
        DataError: a part has no more rows than dimensions, or its rows are all equal; the part is named.
    """
    constant: dict[str, int] = {}
    for part in part_names(run.recipe):
        rows = activations(run, part, verify=False)
        try:
            require_enough(rows)
            varies = Normalisation.measure(rows).varies
        except DataError as error:
            raise DataError(error.expected, f"{error.found} in {part}", error.do) from error
        count = 0 if varies is None else int((~varies).sum())
        if count:
            constant[part] = count
    if constant:
        where = f"{', '.join(constant)} at {site_of(run)}"
        reporter.note(NEVER_VARY.format(count=max(constant.values()), dim=rows.dim, where=where))
    for refusal in _refusals(run):
        reporter.note(f"certify will refuse this run. {refusal}")
    return constant


def _refusals(run: Run) -> Iterator[KyomeiError]:
    """What certify alone would refuse."""
    asked: tuple[Callable[[], Any], ...] = (
        lambda: require_replicas(run.recipe.source.replicas),
        lambda: require_documents(_evidence_documents(run)),
    )
    for ask in asked:
        try:
            ask()
        except KyomeiError as error:
            yield error


def _evidence_documents(run: Run) -> np.ndarray:
    """Number of the document of each evidence row."""
    tokens = tokens_of(run, "evidence")
    documents: np.ndarray = tokens.document.flatten().numpy()[activations(run, "evidence", verify=False).row_tokens()]
    return documents
