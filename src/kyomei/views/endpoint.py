"""A language model of the user's own choice behind an OpenAI-compatible endpoint: paced, patient, and sent nowhere else."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from typing import IO, final
from urllib.parse import urlsplit

from kyomei.errors import DataError, RecipeError, RunError
from kyomei.views.addresses import is_loopback

TRIES = 5
LONGEST_WAIT = 60.0
"""Seconds between two tries, whatever the endpoint asks for."""
MOST_BYTES = 1_000_000
"""Of an answer."""


@dataclass(frozen=True)
class Endpoint:
    """Where a language model answers.

    Args:
        url: base address, such as http://localhost:11434/v1; `/chat/completions` is added.
        model: its name there.
        key: sent as a bearer token; none: nothing is. It is never printed.

    Raises:
        RecipeError: the address is none, holds a key, or would carry one unencrypted beyond this machine.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
            do = "give an address such as http://localhost:11434/v1, and a key by the environment"
            raise RecipeError("the base address of an endpoint, without a key in it", self.url.split("?")[0].split("@")[-1], do)
        if self.key is not None and parts.scheme == "http" and not is_loopback(parts.hostname):
            raise RecipeError("https for an endpoint that takes a key", self.url, "use https, or an endpoint on this machine")

    @property
    def address(self) -> str:
        return f"{self.url.rstrip('/')}/chat/completions"

    @property
    def source(self) -> str:
        """What a label says of where it comes from."""
        return f"{self.model} at {urlsplit(self.url).hostname}"


class _Stays(urllib.request.HTTPRedirectHandler):
    """A redirect would take key and text to where the user did not send them."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


@final
class Client:
    """Asks an endpoint, no faster than it may.

    Args:
        endpoint: where.
        requests_per_minute: at most.
        timeout: seconds for one answer.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        requests_per_minute: float = 60.0,
        timeout: float = 120.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.endpoint, self._interval, self._timeout = endpoint, 60.0 / requests_per_minute, timeout
        self._sleep, self._next = sleep, 0.0
        self._open = urllib.request.build_opener(_Stays).open
        self.tokens = {"prompt_tokens": 0, "completion_tokens": 0}

    def ask(self, messages: Sequence[Mapping[str, str]], most_tokens: int) -> str:
        """What the model answers.

        Raises:
            RunError: the endpoint cannot be reached, refuses, or keeps failing.
            DataError: its answer is not of the form that OpenAI's API has.
        """
        body = {"model": self.endpoint.model, "messages": list(messages), "max_tokens": most_tokens, "temperature": 0}
        raw = self._send(json.dumps(body).encode())
        try:
            answer = json.loads(raw)
            text = answer["choices"][0]["message"]["content"]
            used = answer.get("usage") or {}
            for name in self.tokens:
                self.tokens[name] += int(used.get(name) or 0)
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            found = f"something else from {self.endpoint.url}"
            raise DataError("a chat completion as OpenAI's API has it", found, "check endpoint and model") from error
        return text

    def _send(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.endpoint.key is not None:
            headers["Authorization"] = f"Bearer {self.endpoint.key}"
        said = ""
        for number in range(TRIES):
            self._pace()
            request = urllib.request.Request(self.endpoint.address, data=body, headers=headers, method="POST")
            try:
                with self._open(request, timeout=self._timeout) as response:
                    held: bytes = response.read(MOST_BYTES + 1)
                if len(held) > MOST_BYTES:
                    raise DataError(f"an answer of at most {MOST_BYTES:,} bytes", "a longer one", "check the endpoint")
                return held
            except urllib.error.HTTPError as error:
                said = f"status {error.code}"
                if error.code not in (408, 409, 429) and error.code < 500:
                    break
                wait = _seconds(error.headers.get("Retry-After"), 2.0**number)
            except OSError as error:
                said = str(getattr(error, "reason", error))
                wait = 2.0**number
            if number < TRIES - 1:
                self._sleep(wait)
        do = "check address, model and key; the same command goes on where it stopped"
        raise RunError(f"an answer of {self.endpoint.url}", said, do)

    def _pace(self) -> None:
        now = time.monotonic()
        if now < self._next:
            self._sleep(self._next - now)
        self._next = max(now, self._next) + self._interval


def _seconds(asked: str | None, otherwise: float) -> float:
    """How long to wait: as asked for in seconds, within bounds."""
    try:
        return min(LONGEST_WAIT, max(0.0, float(asked))) if asked else otherwise
    except ValueError:
        return otherwise
