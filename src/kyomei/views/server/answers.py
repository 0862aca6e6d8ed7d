"""JSON answers, and errors that say what was expected, what was found and what to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from kyomei.errors import DataError, KyomeiError, ModelError, RunError

_log = logging.getLogger("kyomei")


class Missing(DataError):
    """What is asked for is not there."""


class NotReady(RunError):
    """What is asked for is not there yet, or switched off."""


class Busy(KyomeiError):
    """Too much is asked at once."""


STATUS = (
    (Missing, 404),
    (Busy, 503),
    (NotReady, 409),
    (DataError, 400),
    (ModelError, 409),
    (RunError, 409),
    (KyomeiError, 400),
)


def refusal(status: int, expected: str, found: str, do: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as every error is told."""
    return JSONResponse({"expected": expected, "found": found, "do": do}, status, dict(headers or {}))


def told(error: KyomeiError) -> JSONResponse:
    """A user error as an answer; one that a moment's wait helps against says so."""
    status = next(status for kind, status in STATUS if isinstance(error, kind))
    return refusal(status, error.expected, error.found, error.do, {"retry-after": "2"} if status == 503 else None)


def reason_of(error: BaseException) -> dict[str, str]:
    """What is said of an error that keeps a model from being used."""
    if isinstance(error, KyomeiError):
        return {"expected": error.expected, "found": error.found, "do": error.do}
    found = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".rstrip(": ")
    return {"expected": "a model that loads", "found": found, "do": "see the terminal in which Kyomei runs"}


def explain_errors(app: FastAPI) -> None:
    """Let every error of an application be told in JSON, and none with what is inside."""

    async def kyomei(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, KyomeiError)
        return told(error)

    async def malformed(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return refusal(400, "a request as the pages make it", f"{place}: {first['msg']}"[:300], "correct the request")

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException | StarletteHTTPException)
        if error.status_code == 405:
            return refusal(405, "a method that this address takes", "another one", "see the documentation")
        return refusal(error.status_code, "an address that there is", "another one", "go to the first page")

    async def anything(request: Request, error: Exception) -> JSONResponse:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return refusal(500, "an answer", "an error of Kyomei's own", "see the terminal in which Kyomei runs")

    app.add_exception_handler(KyomeiError, kyomei)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(StarletteHTTPException, http)
    app.add_exception_handler(Exception, anything)


def plain_numbers(values: Any) -> Any:
    """Values with NaN and infinity as None: JSON has neither."""
    from kyomei.runs import plain

    return plain(values)
