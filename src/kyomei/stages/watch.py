"""A deployed dictionary on new documents: counted one by one, tested at each, remembered in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, final

import numpy as np

from kyomei.dictionary.formats import load
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import Interrupted, KyomeiError, RunError
from kyomei.evidence.certificate import Certificate
from kyomei.evidence.documents import DocumentFigures
from kyomei.evidence.drift import (
    FEATURES,
    GOALS,
    LEARNT,
    SEEN,
    WINDOW_DOCUMENTS,
    WINDOW_TOKENS,
    Monitor,
    Statistic,
    least_share,
    seen_in_time,
)
from kyomei.evidence.goals.detector import Detector, detectors, standing_goals
from kyomei.evidence.validity import MAX_AGE_DAYS, Validity, validity
from kyomei.provenance import now
from kyomei.runs import Run
from kyomei.signals import Stop, saving
from kyomei.stages.arms import made_from, own_pair
from kyomei.stages.certify import certificate_path
from kyomei.stages.watch_sources import Source
from kyomei.stages.watch_state import Facts, Place, StateFolder, Sums
from kyomei.stages.watched import SHIPPED, Reference

LEADING = 5
"""Features that an event names: those with the most evidence."""
SAVE_EVERY = 10
"""Documents of a source that can be read again between two states; of one that cannot, each is saved."""
Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Asked:
    """How a watch is kept.

    Attributes:
        stop_at_alarm: end at the first alarm.
        max_age_days: age at which the certificate expires.
        on_event: called with every event.
        on_status: called with the status whenever it is written.
    """

    stop_at_alarm: bool = False
    max_age_days: float = MAX_AGE_DAYS
    on_event: Listener = lambda event: None
    on_status: Listener = lambda status: None


@final
class Watch:
    """A run's dictionary on a stream of documents, as far as it has come. The state folder is held by the caller.

    Args:
        run: trained.
        reference: what the stream is held to.
        state: where it is remembered; what is there is gone on with.
        weights: fingerprint of the language model in use; none: rows come from elsewhere.
        how: see `Asked`.

    Raises:
        RunError: the state is of another dictionary, reference or set of goals; or a goal is of another dictionary.
    """

    def __init__(self, run: Run, reference: Reference, state: StateFolder, weights: str | None, how: Asked) -> None:
        self.run, self.how, self._state, self._reference = run, how, state, reference
        self._detectors = _usable(run, reference.dictionary)
        self.monitor = Monitor(reference.scale, reference.ranked, self._detectors)
        self._certificate, self._changed, self._unchecked = _certified(run)
        harvested = (run.manifest.get("model") or {}).get("weights")
        self._same_model = None if None in (weights, harvested) else weights == harvested
        self._usual = _usual(reference, self.monitor, self._detectors)
        goals = hashlib.sha256(repr([each.to_dict() for each in self._detectors]).encode()).hexdigest()
        held = {"dictionary": reference.dictionary, "reference": reference.digest, "goals": goals}
        known = state.read(held)
        self.resumed = known is not None
        self._fired = {name: np.zeros(self.monitor.width, dtype=np.int64) for name in ("all", "window")}
        if known is None:
            self.facts = Facts(held=held, began=now())
        else:
            self.facts, arrays = known
            self.monitor.restore(arrays)
            self._fired = {name: arrays[f"fired.{name}"].copy() for name in self._fired}
        self._unsaved = 0

    def begin(self) -> None:
        """Say that the watch begins, or goes on.

        Raises:
            Interrupted: a signal came; the state is saved.
        """
        try:
            with saving(patient=False):
                self._begin()
        except Stop as stop:
            raise self._interrupted() from stop

    def _begin(self) -> None:
        ranked, scale = len(self._reference.ranked), len(self._reference.scale)
        reference = {"documents": ranked, "scale_documents": scale, "way": self._reference.way}
        power = {"least_share": least_share(ranked), "seen_in_time": seen_in_time(ranked), "measured": SEEN}
        self._tell("resume" if self.resumed else "start", reference=reference, **power)
        self._renew_certificate()
        self._save(status=True)

    def follow(self, source: Source) -> bool:
        """Take the documents of a source that were not counted yet.

        Returns:
            Whether to go on with the next source: an alarm may ask for an end.

        Raises:
            RunError: the source no longer holds what was counted before.
            Interrupted: a signal came; what was counted is saved.
        """
        place = self.facts.sources.setdefault(source.name, Place())
        skip = place.documents if source.replayed else 0
        place.ended, chain, every = False, "" if source.replayed else place.chain, SAVE_EVERY if source.replayed else 1
        number = 0
        try:
            for number, item in enumerate(source.items(), start=1):
                chain = hashlib.sha256(f"{chain}{item.digest}".encode()).hexdigest()
                if number <= skip:
                    if number == skip and chain != place.chain:
                        break
                    continue
                figures = item.figures()
                with saving(patient=False):
                    if self._take(source, figures, chain, every) and self.how.stop_at_alarm:
                        return False
        except Stop as stop:  # between two documents: each is counted as a whole, or not at all
            self._save(status=True)
            raise self._interrupted() from stop
        if number < skip or (number == skip and chain != place.chain):
            found = f"other documents among the first {skip} of {source.name}"
            do = "watch it as another stream with --state FOLDER, or begin anew with --overwrite"
            raise RunError("the documents that were counted before", found, do)
        place.ended = True
        return True

    def end(self) -> dict[str, Any]:
        """Say that the stream has ended, and give the status."""
        with saving(patient=False):
            self._renew_certificate()
            self._tell("end", alarms=list(self.facts.alarms))
            self._save(status=True)
        return self.status()

    def status(self) -> dict[str, Any]:
        """How the watch stands, as plain values."""
        facts = self.facts
        return {
            "run": self.run.folder.resolve().name,
            "state": str(self._state.folder),
            "began": facts.began,
            "last": facts.last,
            "documents": facts.all.documents,
            "tokens": facts.all.rows,
            "windows": facts.windows,
            "window_documents": facts.window.documents,
            "skipped": facts.skipped,
            "rate": self.monitor.rate,
            "unexplained": facts.all.unexplained,
            "reference": self._usual,
            "least_share": least_share(self.monitor.num_ranked),
            "evidence": [each.to_dict() for each in self.monitor.statistics()],
            "features": self._features("all", facts.all.rows, self.monitor.leading(LEADING)),
            "num_features": self.monitor.width,
            "changed_features": np.flatnonzero(self.monitor.changed_features()).tolist(),
            "goals": self._goals(facts.all),
            "alarms": facts.alarms,
            "certificate": self.validity().to_dict(),
        }

    def validity(self) -> Validity:
        """Whether the certificate still holds."""
        return validity(
            self._certificate,
            changed=self._changed,
            unchecked=self._unchecked,
            same_model=self._same_model,
            drift=bool(self.facts.alarms),
            max_age_days=self.how.max_age_days,
            now=datetime.now(timezone.utc),
        )

    def _take(self, source: Source, figures: DocumentFigures | None, chain: str, every: int) -> bool:
        """Count one document; returns whether there is an alarm, of now or of earlier."""
        facts, place = self.facts, self.facts.sources[source.name]
        place.documents, place.chain = place.documents + 1, chain
        told = 0
        if figures is None:
            facts.skipped += 1
        else:
            self.monitor.add(figures)
            goals = dict(zip((each.goal for each in self._detectors), self.monitor.goals_of(figures), strict=True))
            facts.all.add(figures, goals)
            facts.window.add(figures, goals)
            for fired in self._fired.values():
                fired[figures.latents] += figures.fired
            facts.last = now()
            told = self._alarms()
            if facts.window.documents >= WINDOW_DOCUMENTS and facts.window.rows >= WINDOW_TOKENS:
                told += self._close_window()
        self._unsaved += 1
        if told or self._unsaved >= every:
            self._save(status=bool(told))
        return bool(facts.alarms)

    def _alarms(self) -> int:
        """Tell of every kind that has just raised an alarm."""
        new = [kind for kind in self.monitor.alarmed if kind not in self.facts.alarms]
        for kind in new:
            facts = self.facts
            features = self._named(kind)
            latents = [each["latent"] for each in features if each["alarm"] or kind == LEARNT]
            where = {"document": facts.all.documents, "window": facts.windows + 1, "time": facts.last, "latents": latents}
            facts.alarms[kind] = where
            goals = [each.name for each in self.monitor.statistics() if each.kind == GOALS and each.alarmed]
            self._tell("alarm", kind=kind, **where, features=features, goals=goals if kind == GOALS else [])
        if new:
            self._renew_certificate()
        return len(new)

    def _close_window(self) -> int:
        facts = self.facts
        facts.windows += 1
        self._tell(
            "window",
            window=facts.windows,
            window_documents=facts.window.documents,
            window_tokens=facts.window.rows,
            unexplained=facts.window.unexplained,
            reference_unexplained=self._usual["unexplained"],
            evidence=[each.to_dict() for each in self.monitor.statistics()],
            features=self._features("window", facts.window.rows, self.monitor.leading(LEADING)),
            goals=self._goals(facts.window),
            alarms=list(facts.alarms),
        )
        self._renew_certificate()
        facts.window = Sums()
        self._fired["window"][:] = 0
        return 1

    def _named(self, kind: str) -> list[dict[str, Any]]:
        """The features that an alarm of this kind is about: those that changed, or that carry the learnt direction."""
        chosen = {FEATURES: self.monitor.leading, LEARNT: self.monitor.carriers}.get(kind)
        return [] if chosen is None else self._features("all", self.facts.all.rows, chosen(LEADING))

    def _features(self, of: str, rows: int, chosen: Sequence[Statistic]) -> list[dict[str, Any]]:
        """Features: their rates in the window that is open, or in all, beside the reference's."""
        usual, fired = self._reference.ranked.rates, self._fired[of] / max(1, rows)
        found = []
        for each in chosen:
            latent = int(each.name)
            known = None if self._certificate is None else self._certificate.feature(latent)
            figures = {name: value for name, value in each.to_dict().items() if name not in ("kind", "name")}
            rates = {"rate": float(fired[latent]), "reference_rate": float(usual[latent])}
            found.append({"latent": latent, **figures, **rates, "status": None if known is None else known["status"]})
        return found

    def _goals(self, sums: Sums) -> list[dict[str, Any]]:
        """Mean score of every goal over some documents, beside the reference's."""
        count = max(1, sums.documents)
        means = {each.goal: sums.goals.get(each.goal, 0.0) / count for each in self._detectors}
        return [{"goal": goal, "score": score, "reference_score": self._usual["goals"][goal]} for goal, score in means.items()]

    def _renew_certificate(self) -> None:
        """Tell of every new reason for which the certificate has expired."""
        found = self.validity()
        new = [reason for reason in found.reasons if reason not in self.facts.expired]
        if new:
            self.facts.expired += new
            self._tell("certificate", **found.to_dict())

    def _tell(self, name: str, **values: Any) -> None:
        facts = self.facts
        event = {"event": name, "time": now(), "documents": facts.all.documents, "tokens": facts.all.rows, **values}
        self._state.tell(event)
        self.how.on_event(event)

    def _save(self, *, status: bool) -> None:
        self._state.write(self.facts, {**self.monitor.arrays(), **{f"fired.{name}": of for name, of in self._fired.items()}})
        self._unsaved = 0
        if status:
            found = self.status()
            self._state.write_status(found)
            self.how.on_status(found)

    def _interrupted(self) -> Interrupted:
        count = self.facts.all.documents
        counted = f"{count:,} document{'' if count == 1 else 's'}"
        do = f"run the same command again: what is counted stays counted in {self._state.folder}"
        return Interrupted("the end of the stream", f"a signal to stop after {counted}", do)


def _usable(run: Run, dictionary: str) -> list[Detector]:
    """The detectors of a run's goals; those that have expired or are of another dictionary are refused.

    Raises:
        RunError: a goal was found for another dictionary, or with a document that is forgotten.
    """
    found = list(detectors(run.folder).values())
    standing = standing_goals(run.folder)
    if gone := [each.goal for each in found if each.goal not in standing]:
        raise RunError(f"goals that hold in {run.folder}", f"'{gone[0]}', which has expired", "run `kyomei goals` again")
    other = [each.goal for each in found if each.dictionary != dictionary]
    if other:
        raise RunError(
            f"goals of the dictionary in {run.folder}", f"'{other[0]}' of an earlier one", "run `kyomei goals` again"
        )
    return found


def _usual(reference: Reference, monitor: Monitor, goals: Sequence[Detector]) -> dict[str, Any]:
    """What the reference's documents are like, taken together."""
    ranked = reference.ranked
    scores = np.mean([monitor.goals_of(document) for document in ranked], axis=0)
    return {
        "documents": len(ranked),
        "tokens": int(ranked.num_rows.sum()),
        "way": reference.way,
        "unexplained": float(ranked.error.sum() / ranked.squares.sum()),
        "goals": dict(zip((each.goal for each in goals), scores.tolist(), strict=True)),
    }


def _certified(run: Run) -> tuple[Certificate | None, list[str], list[str]]:
    """The run's certificate, what has changed since, and what could not be compared."""
    pair = own_pair(run)
    path = certificate_path(run, pair)
    if not path.exists():
        return None, [], []
    certificate = Certificate.read(path)
    try:
        return certificate, certificate.changed(made_from(run, pair)), []
    except KyomeiError as error:  # a run that was moved without its harvest: what is there is compared
        there = run.digests([SHIPPED])
        changed = [name for name, digest in there.items() if certificate.data.get(name) != digest]
        return certificate, changed, [f"{error.expected}: {error.found}"]


def opened_dictionary(run: Run) -> SparseAutoencoder:
    """The dictionary that ships.

    Raises:
        RunError: there is none yet.
    """
    if not run.path(SHIPPED).exists():
        raise RunError("a trained run", f"no dictionary in {run.folder}", "run `kyomei train` first")
    return load(run.path(SHIPPED).parent)


def stream_folder(run: Run, state: Path | None) -> Path:
    """Where a stream is remembered; none asked for: in the run's folder."""
    return state or run.path("watch/stream")
