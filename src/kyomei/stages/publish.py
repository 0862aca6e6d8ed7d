"""A dictionary for others: its files, its certificate, and a card filled from the run; then onto the hub, if asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kyomei.atomic import write_atomic
from kyomei.dictionary import hub
from kyomei.dictionary.card import card, shown_model
from kyomei.dictionary.formats import read, tensors_path
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import RunError
from kyomei.evidence.certificate import Certificate
from kyomei.evidence.intervals import as_percent
from kyomei.runs import MANIFEST, Run
from kyomei.stages.arms import own_pair
from kyomei.stages.certify import FILE as CERTIFICATE
from kyomei.stages.certify import certificate_beside, certificates_of, verdict_of
from kyomei.stages.convert import said_by
from kyomei.stages.exports import note_export
from kyomei.stages.family import refuse_family
from kyomei.stages.index import OWN, opened
from kyomei.stages.measure import measured
from kyomei.views.tables import certificate_table, evidence_table

EVIDENCE, EXAMPLES = "evidence.json", "examples.json"
_OF_THIS_MACHINE = ("run",)
"""What provenance says of places here."""


@dataclass(frozen=True)
class Wanted:
    """What is published, and how.

    Attributes:
        dictionary: of a run, such as "replicas-1"; none: the one that ships.
        licence: as the hub writes it; none: the card says that nobody has said.
        examples: whether text goes along: examples of features, and the tokens in certificates.
        private: whether a new repository is closed to others.
        revision: branch to commit to; none: the main one.
    """

    dictionary: str | None = None
    licence: str | None = None
    examples: bool = False
    private: bool = True
    revision: str | None = None


def prepare(source: Path, folder: Path, wanted: Wanted, name: str | None = None) -> list[str]:
    """Write what would be published into a folder.

    Args:
        source: a run, or a dictionary of any format.
        folder: made if need be; holds no dictionary yet.
        wanted: what of it.
        name: of the repository, for the card.

    Returns:
        Names of the files, sorted.

    Raises:
        RunError: there is a dictionary in the folder, or none in the source.
    """
    if folder.is_dir() and (tensors_path(folder) is not None or (folder / MANIFEST).exists()):
        raise RunError("a folder without a dictionary", f"one in {folder}", "name another folder")
    if (source / MANIFEST).exists():
        run = Run.open(source)
        refuse_family(run)
        sae, sections = _of_run(run, folder, wanted)
    else:
        sae, sections = read(source).sae, []
        if (beside := certificate_beside(source)) is not None:
            told(Certificate.read(beside), wanted.examples).write(folder / CERTIFICATE)
    sae.provenance = _for_others(sae.provenance)
    sae.save_pretrained(folder, card=card(sae, name, licence=wanted.licence, sections=sections))
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def write_local(source: Path, folder: Path, wanted: Wanted) -> dict[str, Any]:
    """Prepare, and upload nothing; as `publish`, "folder" and "files"."""
    files = prepare(source, folder, wanted)
    _noted(source, "dictionary as it would be published", folder, wanted)
    return {"folder": str(folder), "files": files}


def publish(source: Path, name: str, wanted: Wanted) -> dict[str, Any]:
    """Prepare and upload.

    Args:
        source: as `prepare`.
        name: of the repository, OWNER/NAME.
        wanted: what of it, and how.

    Returns:
        "repository", "commit" (its address) and "files".
    """
    with TemporaryDirectory() as place:
        folder = Path(place) / "files"
        files = prepare(source, folder, wanted, name)
        commit = hub.publish(folder, name, private=wanted.private, revision=wanted.revision, message="Kyomei dictionary")
    _noted(source, "dictionary on the hub", name, wanted)
    return {"repository": name, "commit": commit, "files": files}


def _noted(source: Path, what: str, where: Path | str, wanted: Wanted) -> None:
    if (source / MANIFEST).exists():
        note_export(Run.open(source), what, where, text=wanted.examples)


def _of_run(run: Run, folder: Path, wanted: Wanted) -> tuple[SparseAutoencoder, list[str]]:
    """A run's dictionary and its sections of the card; its certificate and what else goes along is written."""
    _, sae, certificate = opened(run, wanted.dictionary)
    sae = said_by(run, sae)
    own = wanted.dictionary in (None, OWN)
    sections = []
    if own:
        verdict = verdict_of(run, pair=own_pair(run))
        reasons = "\n".join(f"- {reason.name}: {reason.figure}; {reason.meaning}" for reason in verdict.reasons)
        sections.append(f"## Can it be trusted?\n\n{verdict.headline}\n\n{reasons}")
    if certificate is not None:
        told(certificate, wanted.examples).write(folder / CERTIFICATE)
        named = {name: c.to_dict() for name, c in certificates_of(run).items()} if own else {}
        shown = named or {"dictionary": certificate.to_dict()}
        sections.append(f"## Certificate\n\n{certificate_table(shown, _rule(certificate)).markdown()}".rstrip())
    if own and measured(run) and run.path(EVIDENCE).exists():
        title = "Measured on documents that no training saw; the null is the same on rows without features."
        sections.append(f"## Figures\n\n{evidence_table(run.read_json(EVIDENCE), title).markdown()}".rstrip())
    if wanted.examples and own and run.path(EXAMPLES).exists():
        write_atomic(folder / EXAMPLES, run.path(EXAMPLES).read_bytes())
    return sae, sections


def _rule(certificate: Certificate) -> str:
    null = certificate.to_dict()["null"]
    passed = as_percent(null["false_positive_rate"], 1)
    return f"Of the null ({null['name']}), which has no features, the same rule certifies {passed}."


def told(certificate: Certificate, examples: bool) -> Certificate:
    """A certificate for others: without tokens of the text unless they were asked for, and without paths."""
    features = certificate.features
    if not examples:
        features = [{**feature, "tokens": []} if "tokens" in feature else feature for feature in features]
    return replace(certificate, model=shown_model(certificate.model) or certificate.model, features=features)


def _for_others(provenance: dict[str, Any]) -> dict[str, Any]:
    """Provenance without places of this machine."""
    kept = {key: value for key, value in provenance.items() if key not in _OF_THIS_MACHINE}
    if "model" in kept:
        kept["model"] = shown_model(kept["model"])
    return kept
