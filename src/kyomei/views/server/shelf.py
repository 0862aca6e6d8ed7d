"""The indices and the live model behind the answers: opened once, and again when they have changed."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, final

import numpy as np
from starlette.concurrency import run_in_threadpool

from kyomei.errors import DataError
from kyomei.source.chat import has_template
from kyomei.source.model import LanguageModel
from kyomei.source.text import Tokens
from kyomei.views.comparison import compare
from kyomei.views.index import state_of
from kyomei.views.index.schema import INDEX
from kyomei.views.live import Live, Ordinary
from kyomei.views.queries import Index
from kyomei.views.server.answers import Busy, Missing, NotReady, reason_of
from kyomei.views.server.explorer import Explored, Explorer

MOST_LIVE = 4
"""Dictionaries that are held in memory beside the model."""
MOST_COMPARED = 8
"""Pairs of dictionaries whose comparison is held."""
_MASKED_OTHERWISE = "one whose texts are masked otherwise"
_log = logging.getLogger("kyomei")
T = TypeVar("T")


@final
class Shelf:
    """The indices of an explorer, for any number of threads."""

    def __init__(self, explorer: Explorer) -> None:
        self._explorer = explorer
        self._held: dict[str, tuple[int, Index]] = {}
        self._ordinary: dict[str, tuple[int, Ordinary]] = {}
        self._compared: dict[tuple[str, str], dict[str, Any]] = {}
        self._lock = threading.Lock()

    def dictionary(self, name: str | None) -> Explored:
        """A dictionary by its name; the first one without a name.

        Raises:
            Missing: there is no such dictionary.
        """
        known = self._explorer.dictionaries
        found = known.get(name) if name else next(iter(known.values()), None)
        if found is None:
            raise Missing(f"a dictionary among {', '.join(known) or 'none'}", "another name", "choose one of them")
        return found

    def index(self, name: str | None) -> Index:
        """The index of a dictionary, as it lies on the disk now.

        Raises:
            NotReady: it is missing, being made, unfinished or damaged.
        """
        dictionary = self.dictionary(name)
        version = self._version(dictionary)
        with self._lock:
            held = self._held.get(dictionary.name)
            if held is not None and held[0] == version:
                return held[1]
            try:
                index = Index(dictionary.index)
            except DataError as error:
                raise NotReady(error.expected, error.found, error.do) from error
            if not self._is_masked_as_asked(index.facts):
                index.close()
                raise NotReady("an index with texts masked as asked", _MASKED_OTHERWISE, "make it anew with `kyomei index`")
            # Who still reads the one before keeps it open until he is done.
            self._held[dictionary.name] = (version, index)
            return index

    def ordinary(self, name: str | None) -> Ordinary:
        """What the latents of a dictionary do on the rows of its index."""
        dictionary, index = self.dictionary(name), self.index(name)
        version = self._version(dictionary)
        held = self._ordinary.get(dictionary.name)
        if held is None or held[0] != version:
            columns = index.activity()
            frequency, mean = (np.array(columns[key], dtype=np.float64) for key in ("frequency", "mean_activation"))
            held = self._ordinary[dictionary.name] = (version, Ordinary(frequency, mean, int(index.facts["rows"])))
        return held[1]

    def comparison(self, a: str, b: str) -> dict[str, Any]:
        """Every live latent of one dictionary in another, computed once.

        Raises:
            NotReady: there are no rows to compare on.
        """
        first, second = self.dictionary(a), self.dictionary(b)
        pair = (first.name, second.name)
        if pair not in self._compared:
            if self._explorer.rows is None:
                raise NotReady("activations to compare dictionaries on", "none", "compare them where the run is")
            found = compare(first.load(), second.load(), self._explorer.rows())
            self._compared[pair] = found
            while len(self._compared) > MOST_COMPARED:
                self._compared.pop(next(iter(self._compared)))
        return self._compared[pair]

    def states(self) -> list[dict[str, Any]]:
        """What there is of each dictionary's index."""
        found = []
        for dictionary in self._explorer.dictionaries.values():
            state = state_of(dictionary.index)
            if state.is_ready and not self._is_masked_as_asked(state.facts):
                state = replace(state, condition="stale", reason=_MASKED_OTHERWISE)
            running = not state.is_ready and self._explorer.is_running()
            kept = {
                key: state.facts.get(key)
                for key in ("width", "rows", "documents", "has_text", "certificate_state", "redaction")
            }
            condition = "running" if running else state.condition
            found.append(
                {"name": dictionary.name, "title": dictionary.title, "condition": condition, "reason": state.reason, **kept}
            )
        return found

    def _is_masked_as_asked(self, facts: Mapping[str, Any]) -> bool:
        made_from = facts.get("made_from") or {}
        return bool(made_from.get("redaction") == self._explorer.redaction)

    def _version(self, dictionary: Explored) -> int:
        try:
            return os.stat(dictionary.index / INDEX).st_mtime_ns
        except OSError:
            return -1


@final
class LiveModels:
    """The language model, loaded once in a thread of its own, and dictionaries at their site in it.

    Args:
        explorer: says how the model is loaded.
        off: whether it is switched off.
    """

    def __init__(self, explorer: Explorer, *, off: bool) -> None:
        self._explorer = explorer
        self._model: LanguageModel | None = None
        self._held: dict[str, Live] = {}
        self._tokens: Tokens | None = None
        self._lock = threading.Lock()
        self._unspliceable = ""
        self.condition = "off" if off else "none" if explorer.load_model is None else "loading"
        self.reason: dict[str, str] | None = None

    def begin(self) -> None:
        """Load the model, unless that has begun."""
        if self.condition == "loading":
            # No daemon: a process that ends waits for it, for libraries do not like to be left in the middle.
            threading.Thread(target=self.load, name="model", daemon=False).start()

    def load(self) -> None:
        """Load the model, and the first dictionary at its site; what goes wrong becomes the state."""
        assert self._explorer.load_model is not None
        try:
            self._model = self._explorer.load_model()
            first = next(iter(self._explorer.dictionaries.values()), None)
            if first is not None:
                self._held[first.name] = self._at_site(first)
                self._unspliceable = self._held[first.name].unspliceable
            self.condition = "ready"
        except Exception as error:  # whatever keeps a model from loading is said on the page
            _log.warning("the language model does not load: %s", error)
            self._model, self.reason, self.condition = None, reason_of(error), "failed"

    def state(self) -> dict[str, Any]:
        """What there is, as plain values."""
        name, has_chat = (None, False) if self._model is None else (self._model.name, has_template(self._model.tokenizer))
        facts = {"condition": self.condition, "reason": self.reason, "name": name, "chat": has_chat}
        return {**facts, "no_predictions": self._unspliceable}

    def live(self, dictionary: Explored) -> Live:
        """A dictionary at its site.

        Raises:
            Busy: the model is being loaded.
            NotReady: there is none, it is switched off, or it does not load.
        """
        if self.condition == "loading":
            raise Busy("a model that is loaded", "one that is being loaded", "try again in a moment")
        if self.condition == "off":
            raise NotReady("a live model", "an explorer with --read-only", "start it without --read-only")
        if self.condition == "none":
            raise NotReady("a language model", "none", "explore the run where its model is")
        if self._model is None:
            raise NotReady(**(self.reason or reason_of(RuntimeError())))
        with self._lock:
            if dictionary.name not in self._held:
                self._held[dictionary.name] = self._at_site(dictionary)
                while len(self._held) > MOST_LIVE:
                    self._held.pop(next(iter(self._held)))
            return self._held[dictionary.name]

    def tokens(self) -> Tokens:
        """The text that the indices are of.

        Raises:
            NotReady: it is not there.
        """
        with self._lock:
            if self._tokens is None:
                if self._explorer.tokens is None:
                    raise NotReady("the text of the index", "none", "type the example by hand instead")
                self._tokens = self._explorer.tokens()
            return self._tokens

    def _at_site(self, dictionary: Explored) -> Live:
        assert self._model is not None
        explorer = self._explorer
        options: dict[str, Any] = {"force_bos": explorer.force_bos, "max_norm": explorer.max_norm}
        return Live(self._model, dictionary.load(), explorer.site, explorer.side, **options)


@final
class Gate:
    """So many pieces of work at a time, so many that wait, and no longer than they can wait.

    Args:
        running: at a time; the model takes all cores for one.
        waiting: behind them.
        patience: seconds.
    """

    def __init__(self, running: int = 1, waiting: int = 16, patience: float = 30.0) -> None:
        self._free, self._patience = asyncio.Semaphore(running), patience
        self._waiting, self._most = 0, waiting

    async def do(self, work: Callable[[], T]) -> T:
        """Do work in a thread.

        Raises:
            Busy: too many wait already, or it waited too long.
        """
        busy = Busy("a free moment of the model", "too many requests that wait for it", "try again in a moment")
        if self._waiting >= self._most:
            raise busy
        self._waiting += 1
        try:
            await asyncio.wait_for(self._free.acquire(), self._patience)
        except asyncio.TimeoutError as error:
            raise busy from error
        finally:
            self._waiting -= 1
        try:
            return await run_in_threadpool(work)
        finally:
            self._free.release()
