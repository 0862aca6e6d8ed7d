"""Answers that run the model, and changes: POST requests below /api/, with JSON in and out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from kyomei.dictionary.edits import Edit
from kyomei.errors import DataError
from kyomei.views.interventions import MOST_EDITS, MOST_NEW_TOKENS, as_python, intervene
from kyomei.views.labels import LONGEST, Label
from kyomei.views.live import Live, Window
from kyomei.views.server.answers import Missing, NotReady, refusal
from kyomei.views.server.guard import MOST_BYTES, Sessions
from kyomei.views.server.reading import Reading, labelled
from kyomei.views.server.shelf import Gate

MOST_CHARACTERS = 20_000
"""Of a text that is tried; far more than the tokens that are read."""
Text = Annotated[str, StringConstraints(max_length=MOST_CHARACTERS)]
Latent = Annotated[int, Field(ge=0, lt=2**31)]


class Asked(BaseModel):
    """A request's body: keys that are not known are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Token(Asked):
    token: Annotated[str, StringConstraints(max_length=500)]


class Message(Asked):
    role: Annotated[str, StringConstraints(max_length=50)]
    content: Text


class Search(Asked):
    text: Text
    dictionary: str | None = None
    most: Annotated[int, Field(ge=1, le=200)] = 50


class Change(Asked):
    latent: Latent
    kind: Literal["scale", "clamp", "ablate", "steer"]
    value: Annotated[float, Field(strict=False, allow_inf_nan=False)] = 0.0


class Try(Asked):
    """A text or a conversation, and what is done to latents while the model reads it.

    Without edits only activations are told, unless `predict` asks for predictions too.
    """

    text: Text | None = None
    messages: Annotated[list[Message] | None, Field(max_length=100)] = None
    edits: Annotated[list[Change], Field(max_length=MOST_EDITS)] = Field(default_factory=list)
    predict: bool = False
    new_tokens: Annotated[int, Field(ge=0, le=MOST_NEW_TOKENS)] = 20
    seed: Annotated[int | None, Field(ge=0, lt=2**63)] = None
    dictionary: str | None = None


class Needs(Asked):
    """An example of the index by its number, or a token of a text."""

    latent: Latent
    example: Annotated[int | None, Field(ge=0, lt=2**63)] = None
    text: Text | None = None
    position: Annotated[int | None, Field(ge=0, lt=2**31)] = None
    dictionary: str | None = None


class NewLabel(Asked):
    latent: Latent
    label: Annotated[str, StringConstraints(max_length=LONGEST["label"])] = ""
    note: Annotated[str, StringConstraints(max_length=LONGEST["note"])] = ""
    author: Annotated[str, StringConstraints(max_length=LONGEST["author"])] = ""
    dictionary: str | None = None


class Merge(Asked):
    """What /api/labels/export gave elsewhere."""

    lines: Annotated[str, StringConstraints(max_length=MOST_BYTES)]


def routes(reading: Reading, sessions: Sessions, gate: Gate) -> APIRouter:
    """POST requests below /api/."""
    router = APIRouter(prefix="/api")
    _add_login(router, reading, sessions)
    _add_labels(router, reading)
    shelf, models = reading.shelf, reading.models

    @router.post("/search")
    async def search(asked: Search) -> dict[str, Any]:
        def found() -> dict[str, Any]:
            dictionary = shelf.dictionary(asked.dictionary)
            live = models.live(dictionary)
            window = live.window(asked.text)
            best = live.search(window, shelf.ordinary(asked.dictionary), asked.most)
            return {"tokens": window.shown(), "rows": _described(reading, asked.dictionary, best)}

        return await gate.do(found)

    @router.post("/try")
    async def tried(asked: Try) -> dict[str, Any]:
        def found() -> dict[str, Any]:
            dictionary = shelf.dictionary(asked.dictionary)
            live = models.live(dictionary)
            window = _window(live, asked)
            answer = live.activations(window)
            if asked.edits or asked.predict:
                edits = [Edit(change.latent, change.kind, change.value) for change in asked.edits]
                changed = intervene(live, window, edits, new_tokens=asked.new_tokens, seed=asked.seed)
                revision = reading.explorer.revision
                lines = as_python(live, str(dictionary.sae), window, edits, revision=revision)
                answer |= {"intervention": changed, "python": lines}
            return answer

        return await gate.do(found)

    @router.post("/needs")
    async def needs(asked: Needs) -> dict[str, Any]:
        return await gate.do(lambda: _needs(reading, asked))

    return router


def _add_login(router: APIRouter, reading: Reading, sessions: Sessions) -> None:
    @router.post("/login")
    def login(asked: Token) -> Response:
        name = sessions.begin(asked.token)
        if name is None:
            return refusal(403, "the token that the terminal shows", "another one", "copy it from the terminal")
        answer = Response(status_code=204)
        answer.set_cookie(sessions.cookie, name, httponly=True, samesite="strict", path="/")
        return answer


def _add_labels(router: APIRouter, reading: Reading) -> None:
    def require_writable() -> None:
        if reading.options.read_only:
            raise NotReady("labels that can be written", "an explorer with --read-only", "start it without --read-only")

    @router.post("/labels")
    def label(asked: NewLabel) -> dict[str, Any]:
        require_writable()
        dictionary = reading.shelf.dictionary(asked.dictionary)
        width = reading.shelf.index(dictionary.name).facts["width"]
        if asked.latent >= width:
            raise Missing(f"a latent from 0 to {width - 1}", str(asked.latent), "choose one of the list")
        said = {"latent": asked.latent, "label": asked.label, "note": asked.note, "author": asked.author}
        return reading.labels.add(Label.new(dictionary=dictionary.name, digest=dictionary.digest, **said)).to_dict()

    @router.post("/labels/merge")
    def merge(asked: Merge) -> dict[str, int]:
        require_writable()
        return reading.labels.merge(asked.lines.splitlines())


def _window(live: Live, asked: Try) -> Window:
    if (asked.text is None) == (asked.messages is None):
        raise DataError("either text or messages", "both" if asked.text is not None else "neither", "send one of them")
    if asked.messages is not None:
        return live.chat([message.model_dump() for message in asked.messages])
    return live.window(asked.text or "")


def _needs(reading: Reading, asked: Needs) -> dict[str, Any]:
    dictionary = reading.shelf.dictionary(asked.dictionary)
    live = reading.models.live(dictionary)
    if asked.example is None:
        if asked.text is None or asked.position is None:
            raise DataError("an example, or a text and a position in it", "neither", "send one of them")
        return live.needs(live.window(asked.text), asked.latent, asked.position)
    example = reading.shelf.index(asked.dictionary).example(asked.latent, asked.example)
    if example is None:
        raise Missing("an example of this latent", "none of that number", "choose one that the pages show")
    window = live.harvested(reading.models.tokens(), example["window"])
    return live.needs(window, asked.latent, example["position"])


def _described(reading: Reading, dictionary: str | None, best: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Latents that were found with what a list says of each."""
    latents = [row["latent"] for row in best]
    page = reading.shelf.index(dictionary).features(latents=latents, page=(1, max(1, len(latents))))
    labels = reading.labels_of(reading.shelf.dictionary(dictionary))
    known = {row["latent"]: row for row in labelled(page["rows"], labels)}
    return [{**known.get(row["latent"], {}), **row} for row in best]
