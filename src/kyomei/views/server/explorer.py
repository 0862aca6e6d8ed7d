"""What the server shows, and how: plain descriptions that a stage fills in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.source.hooks import Side
from kyomei.source.model import LanguageModel
from kyomei.source.rows import Rows
from kyomei.source.text import Tokens
from kyomei.views.addresses import is_loopback


@dataclass(frozen=True, eq=False)
class Explored:
    """A dictionary and its index.

    Attributes:
        name: under which requests ask for it, such as "replicas-0".
        title: as pages call it.
        index: folder of its index, whether it is there or not.
        sae: folder of the dictionary itself.
        digest: SHA-256 of its file; labels are of this dictionary only.
        load: reads it.
        verdict: whether features can be read off it, as `Verdict.to_dict` gives it; none: nobody has said.
    """

    name: str
    title: str
    index: Path
    sae: Path
    digest: str
    load: Callable[[], SparseAutoencoder]
    verdict: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Explorer:
    """A run, or a dictionary without one, as it is explored.

    Attributes:
        name: of the run.
        dictionaries: by name, the one that is shown first first.
        site: in the language model.
        side: of the site's module.
        replicas: how many dictionaries say which features are found again.
        facts: what the overview says beside the index, as JSON can hold it: premises, certificates, frontier, cost.
        load_model: loads the language model; none: there is none.
        tokens: reads the text that the indices are of; none: it is not there.
        rows: opens activations of the site, on which dictionaries are compared; none: there are none.
        labels: file of the labels.
        is_running: whether another process is at work in the run's folder, such as on an index.
        force_bos, max_norm: as `Live` takes them.
        revision: of the language model.
        watched: what is known of every stream that is watched with this run's dictionary, see `views.watch.streams`.
        goals: what the run knows of its goals, by name, as goals.json has them.
        redaction: digest of what is to be masked in every text; an index made otherwise is not shown. None: nothing is.
    """

    name: str
    dictionaries: Mapping[str, Explored]
    site: str
    labels: Path
    side: Side = "output"
    replicas: int = 1
    facts: Mapping[str, Any] = field(default_factory=dict)
    load_model: Callable[[], LanguageModel] | None = None
    tokens: Callable[[], Tokens] | None = None
    rows: Callable[[], Rows] | None = None
    is_running: Callable[[], bool] = lambda: False
    force_bos: bool = False
    max_norm: float = float("inf")
    revision: str | None = None
    redaction: str | None = None
    watched: Callable[[], list[dict[str, Any]]] = list
    goals: Callable[[], Mapping[str, Mapping[str, Any]]] = dict


@dataclass(frozen=True)
class Options:
    """How it is served.

    Attributes:
        host: address that is listened on.
        port: of that address.
        token: what has to be entered once before anything is shown; none: nothing, which is for loopback only.
        read_only: labels cannot be written, and the model is not run.
        language: that pages begin with.
        hosts: further names that a browser may know this server by.
    """

    host: str = "127.0.0.1"
    port: int = 8321
    token: str | None = None
    read_only: bool = False
    language: str = "en"
    hosts: tuple[str, ...] = ()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)
