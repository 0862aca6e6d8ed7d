"""The explorer's indices of a run: one of each dictionary, made where it is missing or made from other things than now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kyomei.atomic import sha256_of
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import RecipeError, RunError
from kyomei.evidence.certificate import Certificate
from kyomei.runs import Run
from kyomei.source.text import Tokens
from kyomei.stages.arms import Pair, trained_pairs
from kyomei.stages.certify import certificate_path, standing
from kyomei.stages.harvest import load_model
from kyomei.stages.harvested import activations, harvest_of, site_of, tokens_of
from kyomei.stages.named import FOLDER, NAMES, names_of, note_names
from kyomei.stages.progress import Reporter
from kyomei.views.index import IndexState, Subject, build, state_of
from kyomei.views.index.redaction import FILE as REDACTION
from kyomei.views.index.redaction import Redaction

OWN = "replicas-0"
"""Name of the dictionary of a run that it trained itself, and that ships."""


@dataclass(frozen=True)
class Indexed:
    """A dictionary of a run and its index.

    Attributes:
        name: of the dictionary and of the index's folder, such as "replicas-0".
        path: of the dictionary in the run, such as "replicas/0".
        title: of its mechanism, as tables call it.
        folder: of the index.
        state: what is there.
    """

    name: str
    path: str
    title: str
    folder: Path
    state: IndexState

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        facts = {key: self.state.facts.get(key) for key in ("width", "rows", "documents")}
        return {"folder": str(self.folder), "condition": self.state.condition, "reason": self.state.reason, **facts}


@dataclass(frozen=True)
class _Dictionary:
    """One trained dictionary: replica `number` of a pair's arm."""

    pair: Pair
    number: int

    @property
    def path(self) -> str:
        return f"{self.pair.arm.folder}/{self.number}"

    @property
    def name(self) -> str:
        return self.path.replace("/", "-")

    @property
    def title(self) -> str:
        return f"{self.pair.title}, replica {self.number}" if self.number else self.pair.title


def dictionaries(run: Run) -> list[str]:
    """Names of a run's dictionaries that can be explored: first the ones that ship, what the run is about before all, then the
    other replicas of each."""
    return [d.name for d in _dictionaries(run)]


def opened(run: Run, name: str | None = None) -> tuple[str, SparseAutoencoder, Certificate | None]:
    """Title of a dictionary of a run, the dictionary, and its certificate if one holds.

    Args:
        run: trained.
        name: see `dictionaries`; none: the run's own.

    Raises:
        RunError: no such dictionary.
    """
    (chosen,) = _chosen(run, [name or OWN])
    certificate = None if chosen.number else standing(run, chosen.pair)
    return chosen.title, chosen.pair.arm.dictionary(run, chosen.number), certificate


def index_states(run: Run, *, thorough: bool = False) -> list[Indexed]:
    """What there is of the index of each dictionary; nothing is made."""
    found = []
    for dictionary in _dictionaries(run):
        folder = run.path(f"{FOLDER}/{dictionary.name}")
        found.append(
            Indexed(
                dictionary.name,
                dictionary.path,
                dictionary.title,
                folder,
                state_of(folder, _made_from(run, dictionary), thorough=thorough),
            )
        )
    return found


def index_run(run: Run, reporter: Reporter, names: Sequence[str] | None = None, *, rebuild: bool = False) -> list[Indexed]:
    """Make the indices that are missing, unfinished, damaged, or made from other things than there are now.

    Args:
        run: trained; this process holds its lock, unless all are ready.
        reporter: shows progress, and names what was wrong with an index that is made anew.
        names: of dictionaries (see `dictionaries`); none: the ones that ship, the run's own and its baselines'.
        rebuild: make them anew in any case.

    Raises:
        RunError: no such dictionary.
    """
    made = [_index(run, dictionary, reporter, rebuild) for dictionary in _chosen(run, names)]
    if run.writable:
        note_names(run)  # what is masked may have changed
    return made


def indexed(run: Run, names: Sequence[str] | None = None) -> bool:
    """Whether `index_run` would make nothing."""
    chosen = {dictionary.name for dictionary in _chosen(run, names)}
    return all(one.state.is_ready for one in index_states(run) if one.name in chosen)


def _chosen(run: Run, names: Sequence[str] | None) -> list[_Dictionary]:
    known = {dictionary.name: dictionary for dictionary in _dictionaries(run)}
    wanted = [name for name, d in known.items() if d.number == 0] if names is None else list(names)
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        found = f"'{unknown[0]}'" if unknown else f"none in {run.folder}"
        raise RunError(f"a trained dictionary of the run: {', '.join(known)}", found, "choose one, or run `kyomei train` first")
    return [known[name] for name in wanted]


def _index(run: Run, dictionary: _Dictionary, reporter: Reporter, rebuild: bool) -> Indexed:
    folder, made_from = run.path(f"{FOLDER}/{dictionary.name}"), _made_from(run, dictionary)
    state = state_of(folder, made_from, thorough=True)
    if rebuild or not state.is_ready:
        if state.condition not in ("ready", "missing"):
            reporter.note(f"the index of {dictionary.name} is made anew: {state.reason}")
        build(_subject(run, dictionary, made_from), folder, lambda step: reporter.progress(f"{dictionary.name}: {step}"))
        state = state_of(folder, made_from)
    return Indexed(dictionary.name, dictionary.path, dictionary.title, folder, state)


def _dictionaries(run: Run) -> list[_Dictionary]:
    pairs = trained_pairs(run)
    found = [_Dictionary(pair, number) for pair in pairs for number in range(pair.arm.replicas)]
    found.sort(key=lambda dictionary: dictionary.number > 0)
    return [d for d in found if run.path(f"{d.path}/sae.safetensors").exists()]


def _made_from(run: Run, dictionary: _Dictionary) -> Mapping[str, str]:
    """Digests of what an index rests on."""
    host, site = harvest_of(run), site_of(run)
    digests = host.digests([f"activations/evidence/{site}/index.json", "tokens/evidence/index.json"])
    digests |= run.digests(f"{place}/sae.safetensors" for place in dictionary.pair.places)
    path = certificate_path(run, dictionary.pair)
    if dictionary.number == 0 and path.exists():
        digests[path.relative_to(run.folder).as_posix()] = sha256_of(path)
    redaction = redaction_of(run)
    return digests if redaction is None else {**digests, "redaction": redaction.sha256}


def redaction_of(run: Run) -> Redaction | None:
    """What is masked in every text of a run's indices; none: nothing is.

    Raises:
        RunError: what was asked for cannot be read.
    """
    return Redaction.kept(run.path(FOLDER))


def redact(folder: Path, wanted: bool | None, patterns: Path | None = None) -> None:
    """Let every index in a folder be made with some texts masked, or with none; those made otherwise are made anew.

    Args:
        folder: of indices, such as `explore` in a run.
        wanted: whether texts are masked; none: as it was said before, unless there are patterns.
        patterns: file of a user's own regular expressions, masked as well; none: no such.

    Raises:
        RecipeError: the file cannot be read, or a line is no regular expression, or nothing is to be masked by it.
    """
    if patterns is not None and wanted is False:
        raise RecipeError("patterns with --redact", "--no-redact", "choose one of them")
    if patterns is not None or wanted:
        (Redaction() if patterns is None else Redaction.read(patterns)).keep(folder)
    elif wanted is False:
        (folder / REDACTION).unlink(missing_ok=True)


def shown_tokens(run: Run) -> Tokens:
    """The tokens of the evidence rows as they may be shown."""
    tokens, redaction = tokens_of(run, "evidence"), redaction_of(run)
    return tokens if redaction is None else redaction.tokens(tokens)[0]


def _subject(run: Run, dictionary: _Dictionary, made_from: Mapping[str, str]) -> Subject:
    pair, first = dictionary.pair, dictionary.number == 0
    sae = pair.arm.dictionary(run, dictionary.number)
    certificate = standing(run, pair) if first else None
    expired = certificate is None and first and certificate_path(run, pair).exists()
    source = run.recipe.source
    facts = {
        "dictionary": dictionary.path,
        "title": pair.title,
        "mechanism": _mechanism(pair, sae),
        "model": source.model,
        "revision": source.revision,
        "site": site_of(run),
        "side": source.side,
        "text": source.address,
        "context": source.context,
        NAMES: names_of(run),
    }
    return Subject(
        name=dictionary.name,
        sae=sae,
        rows=activations(run, "evidence"),
        tokens=tokens_of(run, "evidence"),
        facts=facts,
        made_from=made_from,
        certificate=None if certificate is None else certificate.to_dict(),
        certificate_state="holds" if certificate else "expired" if expired else "none",
        seed=run.recipe.seed,
        redaction=redaction_of(run),
        others={} if certificate else _others(run, dictionary),
        open_model=lambda: load_model(run.recipe),
    )


def _others(run: Run, dictionary: _Dictionary) -> dict[str, SparseAutoencoder]:
    """What a dictionary is tested by, or its other replicas, by their place in the run."""
    pair = dictionary.pair
    return {place: sae for place, sae in zip(pair.places, pair.dictionaries(run), strict=True) if place != dictionary.path}


def _mechanism(pair: Pair, sae: SparseAutoencoder) -> str:
    """What makes a pair's code sparse."""
    if pair.arm.made_by == "train":
        return pair.arm.recipe.mechanism.name
    return str(sae.provenance.get("mechanism") or sae.activation)
