"""Answers that are read off the index, the labels and the run; nothing here changes anything."""

from __future__ import annotations

from typing import Annotated, Any, Literal, final

from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse, Response

from kyomei import __version__
from kyomei.errors import KyomeiError, RunError
from kyomei.views import strings
from kyomei.views.goals import shown_goals
from kyomei.views.labels import Label, Labels
from kyomei.views.queries import MOST_ROWS
from kyomei.views.server.answers import Missing, plain_numbers
from kyomei.views.server.explorer import Explored, Explorer, Options
from kyomei.views.server.shelf import Gate, LiveModels, Shelf
from kyomei.views.server.standing import can_write, notes
from kyomei.views.words import STATUSES, origin_words, why

Dictionary = Annotated[str | None, Query(max_length=200)]
Text = Annotated[str, Query(max_length=500)]
Names = Annotated[list[str] | None, Query(max_length=10)]
Number = Annotated[int, Query(ge=0, le=2**31 - 1)]
Share = Annotated[float | None, Query(ge=0, le=1)]


@final
class Reading:
    """What is read of an explorer: the routes' answers, and what an export writes down.

    Args:
        explorer: what is shown.
        options: how it is served.
        shelf: its indices.
        models: its live model.
    """

    def __init__(self, explorer: Explorer, options: Options, shelf: Shelf, models: LiveModels) -> None:
        self.explorer, self.options, self.shelf, self.models = explorer, options, shelf, models
        self.labels = Labels(explorer.labels)

    def state(self, dictionary: str | None = None) -> dict[str, Any]:
        """What is there and what is missing, with the keys of the sentences that say so."""
        chosen = self.shelf.dictionary(dictionary) if self.explorer.dictionaries else None
        states, model = self.shelf.states(), self.models.state()
        mine = next((each for each in states if chosen is not None and each["name"] == chosen.name), None)
        writable = can_write(self.explorer.labels)
        return {
            "version": __version__,
            "run": self.explorer.name,
            "site": self.explorer.site,
            "side": self.explorer.side,
            "replicas": self.explorer.replicas,
            "dictionaries": states,
            "dictionary": None if chosen is None else chosen.name,
            "model": model,
            "languages": list(strings.LANGUAGES),
            "language": self.options.language,
            "read_only": self.options.read_only,
            "labels": {"writable": writable and not self.options.read_only},
            "redaction": None if mine is None else mine["redaction"],
            "notes": notes(
                mine,
                model,
                replicas=self.explorer.replicas,
                live=self._live_latents(chosen),
                writable=writable,
                read_only=self.options.read_only,
                stale_labels=self._stale(chosen),
            ),
        }

    def overview(self, dictionary: str | None) -> dict[str, Any]:
        """The index of a dictionary as a whole, its "verdict", and "run": what the run says of itself."""
        whole, verdict = self.shelf.index(dictionary).overview(), self.shelf.dictionary(dictionary).verdict
        return {**whole, "verdict": verdict, "run": plain_numbers(dict(self.explorer.facts))}

    def watched(self) -> dict[str, Any]:
        """Every stream that is watched, as it stands now."""
        found: dict[str, Any] = plain_numbers({"streams": self.explorer.watched()})
        return found

    def goals(self, dictionary: str | None) -> dict[str, Any]:
        """The "goals" of a dictionary, their features with what a list says of them; "others" are of another dictionary."""
        chosen, known = self.shelf.dictionary(dictionary), self.explorer.goals()
        shown: list[dict[str, Any]] = plain_numbers(shown_goals(known, chosen.digest))
        briefly = self._briefly(chosen.name, [each["latent"] for goal in shown for each in goal["features"]])
        rows = {row["latent"]: row for row in labelled(list(briefly.values()), self.labels_of(chosen))}
        for goal in shown:
            goal["features"] = [{**rows.get(each["latent"], {}), **each} for each in goal["features"]]
        own = {goal["name"] for goal in shown}
        return {"goals": shown, "others": [name for name in known if name not in own]}

    def _goals_with(self, dictionary: Explored, latent: int) -> list[dict[str, Any]]:
        """The goals whose detector reads a latent, with its "weight"; none where they cannot be read, as their page says."""
        try:
            shown: list[dict[str, Any]] = plain_numbers(shown_goals(self.explorer.goals(), dictionary.digest))
        except KyomeiError:
            return []
        weights = {goal["name"]: {each["latent"]: each["weight"] for each in goal["features"]} for goal in shown}
        return [{**goal, "weight": weights[goal["name"]][latent]} for goal in shown if latent in weights[goal["name"]]]

    def feature(self, dictionary: str | None, latent: int) -> dict[str, Any]:
        """Everything known of a latent, "why" it has its status and "origin_words" in sentences, its "labels" and "goals"."""
        chosen, index = self.shelf.dictionary(dictionary), self.shelf.index(dictionary)
        found = index.feature(latent)
        if found is None:
            raise Missing(f"a latent from 0 to {index.facts['width'] - 1}", str(latent), "choose one of the list")
        entry, rule = found["certificate"], (index.facts.get("certificate") or {}).get("rule")
        words = {"why": STATUSES.get(found["status"], ""), "origin_words": ""}
        if entry is not None and rule is not None:
            words = {"why": why(entry, rule), "origin_words": origin_words(entry)}
        null = (index.facts.get("certificate") or {}).get("null")
        labels = [entry.to_dict() for entry in self.labels.of(chosen.name, chosen.digest, latent)]
        return {**found, **words, "rule": rule, "null": null, "labels": labels, "goals": self._goals_with(chosen, latent)}

    def features(self, dictionary: str | None, **asked: Any) -> dict[str, Any]:
        """A page of the list, with the label of each latent that has one."""
        chosen, q = self.shelf.dictionary(dictionary), asked.get("q", "")
        named = self.labels.found(chosen.name, chosen.digest, q)
        page = self.shelf.index(dictionary).features(**asked, named=named)
        return {**page, "rows": labelled(page["rows"], self.labels_of(chosen))}

    def comparison(self, a: str, b: str, kind: str | None, page: tuple[int, int]) -> dict[str, Any]:
        """A page of the latents of one dictionary in another, with what a list says of both sides."""
        whole = self.shelf.comparison(a, b)
        rows = [row for row in whole["rows"] if kind in (None, row["kind"])]
        number, size = page
        shown = rows[(number - 1) * size : number * size]
        left = self._briefly(a, [row["latent"] for row in shown])
        right = self._briefly(b, [partner["latent"] for row in shown for partner in row["partners"]])
        described = [
            {**left.get(row["latent"], {}), **row, "partners": [{**right.get(p["latent"], {}), **p} for p in row["partners"]]}
            for row in shown
        ]
        facts = {"counts": whole["counts"], "dead": whole["dead"], "total": len(rows), "page": number, "size": size}
        return {"a": a, "b": b, "rows": described, **facts}

    def _briefly(self, dictionary: str, latents: list[int]) -> dict[int, dict[str, Any]]:
        """What a list says of some latents."""
        found: dict[int, dict[str, Any]] = {}
        wanted = sorted(set(latents))
        for first in range(0, len(wanted), MOST_ROWS):
            part = wanted[first : first + MOST_ROWS]
            page = self.shelf.index(dictionary).features(latents=part, page=(1, MOST_ROWS))
            found |= {row["latent"]: row for row in page["rows"]}
        return found

    def labels_of(self, dictionary: Explored) -> dict[int, Label]:
        """The label that a list shows of each latent: the newest by hand, else the newest automatic one."""
        shown: dict[int, Label] = {}
        for entry in self.labels.of(dictionary.name, dictionary.digest):
            if entry.label:
                shown.setdefault(entry.latent, entry)
        return shown

    def all_labels(self, dictionary: str | None, latent: int | None = None) -> dict[str, Any]:
        """What holds of a dictionary's labels."""
        chosen = self.shelf.dictionary(dictionary)
        entries = self.labels.of(chosen.name, chosen.digest, latent)
        return {"dictionary": chosen.name, "labels": [entry.to_dict() for entry in entries], "stale": self._stale(chosen)}

    def _stale(self, dictionary: Explored | None) -> int:
        try:
            return 0 if dictionary is None else self.labels.stale(dictionary.name, dictionary.digest)
        except RunError:  # said where labels are asked for
            return 0

    def _live_latents(self, dictionary: Explored | None) -> int | None:
        """How many latents are ever active; none: there is no index that says."""
        try:
            return None if dictionary is None else int((self.shelf.ordinary(dictionary.name).frequency > 0).sum())
        except KyomeiError:
            return None


def labelled(rows: list[dict[str, Any]], labels: dict[int, Label]) -> list[dict[str, Any]]:
    """Rows of a list with "label" and "label_kind", none where there is no label."""
    found = [labels.get(row["latent"]) for row in rows]
    said = [{"label": e.label if e else None, "label_kind": e.kind if e else None} for e in found]
    return [{**row, **words} for row, words in zip(rows, said, strict=True)]


def ordered(sort: str) -> tuple[str, bool]:
    """A key of the list's order, and whether it descends: "-frequency" does."""
    return sort.removeprefix("-"), sort.startswith("-")


def routes(reading: Reading, gate: Gate) -> APIRouter:
    """GET requests below /api/."""
    router = APIRouter(prefix="/api")
    _add_whole(router, reading)
    _add_features(router, reading)
    _add_comparison(router, reading, gate)
    _add_labels(router, reading)
    return router


def _add_whole(router: APIRouter, reading: Reading) -> None:
    """What is of a run, or of a whole dictionary."""

    @router.get("/state")
    def state(dictionary: Dictionary = None) -> dict[str, Any]:
        return reading.state(dictionary)

    @router.get("/strings")
    def words(lang: Annotated[str, Query(max_length=10)] = "en") -> dict[str, str]:
        return strings.catalogue(lang)

    @router.get("/overview")
    def overview(dictionary: Dictionary = None) -> dict[str, Any]:
        return reading.overview(dictionary)

    @router.get("/watch")
    def watched() -> dict[str, Any]:
        return reading.watched()

    @router.get("/goals")
    def goals(dictionary: Dictionary = None) -> dict[str, Any]:
        return reading.goals(dictionary)

    @router.get("/map")
    def places(dictionary: Dictionary = None) -> Response:
        return Response(reading.shelf.index(dictionary).map_json, media_type="application/json")


def _add_features(router: APIRouter, reading: Reading) -> None:
    """The list, one latent, and the text that it is active on."""
    shelf = reading.shelf

    @router.get("/features")
    def features(
        dictionary: Dictionary = None,
        q: Text = "",
        status: Names = None,
        origin: Names = None,
        min_frequency: Share = None,
        max_frequency: Share = None,
        sort: Annotated[str, Query(max_length=50)] = "status",
        page: Annotated[int, Query(ge=1, le=10**6)] = 1,
        size: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 50,
    ) -> dict[str, Any]:
        return reading.features(
            dictionary,
            q=q,
            status=status or (),
            origin=origin or (),
            frequency=(min_frequency, max_frequency),
            order=ordered(sort),
            page=(page, size),
        )

    @router.get("/features/{latent}")
    def feature(latent: int, dictionary: Dictionary = None) -> dict[str, Any]:
        return reading.feature(dictionary, _in_range(latent))

    @router.get("/features/{latent}/examples")
    def examples(
        latent: int,
        dictionary: Dictionary = None,
        kind: Annotated[str | None, Query(pattern="^(top|decile)$")] = None,
        decile: Annotated[int | None, Query(ge=0, le=9)] = None,
    ) -> dict[str, Any]:
        return {"latent": latent, "examples": shelf.index(dictionary).examples(_in_range(latent), kind, decile)}

    @router.get("/documents/{document}")
    def document(
        document: int, dictionary: Dictionary = None, around: Number = 0, size: Annotated[int, Query(ge=1, le=20_000)] = 2000
    ) -> dict[str, Any]:
        return _there(shelf.index(dictionary).document(_in_range(document), around, size))


def _add_comparison(router: APIRouter, reading: Reading, gate: Gate) -> None:

    @router.get("/compare")
    async def compare(
        a: Annotated[str, Query(max_length=200)],
        b: Annotated[str, Query(max_length=200)],
        kind: Annotated[Literal["shared", "split", "merged", "only"] | None, Query()] = None,
        page: Annotated[int, Query(ge=1, le=10**6)] = 1,
        size: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 50,
    ) -> dict[str, Any]:
        return await gate.do(lambda: reading.comparison(a, b, kind, (page, size)))


def _add_labels(router: APIRouter, reading: Reading) -> None:

    @router.get("/labels")
    def labels(
        dictionary: Dictionary = None, latent: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None
    ) -> dict[str, Any]:
        return reading.all_labels(dictionary, latent)

    @router.get("/labels/export")
    def export() -> PlainTextResponse:
        lines = "".join(f"{line}\n" for line in reading.labels.exported())
        named = {"content-disposition": 'attachment; filename="labels.jsonl"'}
        return PlainTextResponse(lines, media_type="application/x-ndjson", headers=named)


def _in_range(number: int) -> int:
    """A number as DuckDB's columns hold it."""
    if not 0 <= number < 2**31:
        raise Missing("a number of the index", "another one", "choose one that the pages show")
    return number


def _there(found: dict[str, Any] | None) -> dict[str, Any]:
    if found is None:
        raise Missing("something of the index", "nothing of that number", "choose one that the pages show")
    return found
