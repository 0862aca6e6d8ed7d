"""The application: routes below /api/, pages beside them, and the guard around both."""

from __future__ import annotations

import contextlib
import hashlib
import mimetypes
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI, Request
from fastapi.responses import Response

from kyomei.views.server import acting, reading
from kyomei.views.server.answers import Missing, explain_errors
from kyomei.views.server.explorer import Explorer, Options
from kyomei.views.server.guard import Guard, Sessions
from kyomei.views.server.reading import Reading
from kyomei.views.server.shelf import Gate, LiveModels, Shelf

WEB = Path(__file__).parents[1] / "web"
"""Where the pages are."""


class Page(NamedTuple):
    """A file of the pages, as it is sent."""

    content: bytes
    kind: str
    etag: str


def app_for(explorer: Explorer, options: Options) -> FastAPI:
    """The application that shows a run.

    Args:
        explorer: what is shown.
        options: how.

    Returns:
        An ASGI application; the model begins to load when it starts.
    """
    models = LiveModels(explorer, off=options.read_only)
    sessions = Sessions(options.token, options.port)

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        models.begin()
        yield

    app = FastAPI(title="Kyomei", docs_url=None, redoc_url=None, openapi_url=None, lifespan=life, redirect_slashes=False)
    explain_errors(app)
    shown = Reading(explorer, options, Shelf(explorer), models)
    app.include_router(reading.routes(shown, Gate(patience=120.0)))
    app.include_router(acting.routes(shown, sessions, Gate()))
    pages = read_pages()

    @app.get("/{name:path}")
    def page(name: str, request: Request) -> Response:
        # A name is looked up among those that there are; it never becomes a path.
        found = pages.get(name or "index.html")
        if found is None:
            raise Missing("an address that there is", "another one", "go to the first page")
        headers = {"etag": found.etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == found.etag:
            return Response(status_code=304, headers=headers)
        return Response(found.content, media_type=found.kind, headers=headers)

    app.add_middleware(Guard, options=options, sessions=sessions)
    return app


def read_pages() -> dict[str, Page]:
    """Every file of the pages by its address, read once."""
    return {name: _page(name, file.read_bytes()) for name, file in page_files().items()}


def page_files() -> dict[str, Path]:
    """The files of the pages by their address."""
    found = sorted(path for path in WEB.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(WEB).as_posix(): path for path in found}


def _page(name: str, content: bytes) -> Page:
    # What a system says of these endings differs from one to the next; browsers run a module as JavaScript only.
    known = {
        "js": "text/javascript",
        "mjs": "text/javascript",
        "css": "text/css",
        "html": "text/html",
        "json": "application/json",
    }
    kind = known.get(name.rpartition(".")[2]) or mimetypes.guess_type(name)[0] or "text/plain"
    return Page(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
