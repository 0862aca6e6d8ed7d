"""A browser, and an explorer over the embedded model that it looks at."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from tests.views.explorer_samples import NAME, found_goals, make_explorer, watched_stream

from kyomei.views.server import Explorer, Options, app_for

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

OTHER = "replicas-1"
AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text(encoding="utf-8")
VERDICT = {
    "level": "partly",
    "headline": "Trust this dictionary in part.",
    "reasons": [
        {"name": "certified", "side": "for", "figure": "10 of 100", "meaning": "every replica has them"},
        {"name": "premises", "side": "unknown", "figure": "not checked", "meaning": "run `kyomei check` on the run"},
    ],
}
FACTS = {
    "premises": {
        "verdict": "partly",
        "expected_frr": 0.5,
        "interval": [0.2, 0.8],
        "premises": [
            {
                "name": "balance",
                "status": "met",
                "estimate": 0.28,
                "meaning": "A feature's active scores vary by 28 % of their mean (10 %–40 % in eight features of ten).",
                "advice": "nothing to do",
            },
            {
                "name": "rows needed",
                "status": "unknown",
                "estimate": None,
                "meaning": "Nothing to measure it on: no sparse structure was found.",
                "advice": "harvest more tokens",
            },
        ],
    },
    "frontier": [{"label": "GBA", "l0": 8.5, "fvu": 0.3, "name": "", "certified": 0.4}],
    "history": [{"command": "kyomei train run", "began": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:01:00+00:00"}],
}


@dataclass
class Seen:
    """A page, with everything that its console has said."""

    page: Any
    address: str
    said: list[str] = field(default_factory=list)

    def open(self, query: str = "") -> Any:
        self.page.goto(f"{self.address}{query}")
        self.page.wait_for_selector("main h1")
        self.page.wait_for_load_state("networkidle")
        return self.page


@dataclass(frozen=True)
class Browsing:
    """Opens pages of one address."""

    browser: Any
    address: str

    def look(self, *, width: int = 1600, scheme: str = "light", language: str = "en", **more: Any) -> Seen:
        locale = {"en": "en-US", "ja": "ja-JP"}[language]
        size = {"width": width, "height": 900}
        context = self.browser.new_context(viewport=size, color_scheme=scheme, locale=locale, **more)
        context.set_default_timeout(15_000)
        seen = Seen(context.new_page(), self.address)
        seen.page.on("console", lambda message: seen.said.append(message.text) if message.type == "error" else None)
        seen.page.on("pageerror", lambda error: seen.said.append(str(error)))
        foreign = lambda request: not request.url.startswith((self.address, "blob:", "data:"))  # noqa: E731
        seen.page.on("request", lambda request: seen.said.append(f"asks {request.url}") if foreign(request) else None)
        return seen


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, the system's where there is one."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with playwright.sync_playwright() as started:
        try:
            opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium that starts: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> Explorer:
    shown = {"verdict": VERDICT, "facts": FACTS, "watched": lambda: [watched_stream()]}
    made = make_explorer(tmp_path_factory.mktemp("run"), names=(NAME, OTHER), **shown)
    return replace(made, goals=lambda: found_goals(made.dictionaries[NAME].digest))


@pytest.fixture(scope="session")
def served(explorer: Explorer, browser: Any) -> Iterator[Browsing]:
    """The explorer behind its server, once its model is loaded."""
    yield from serving(explorer, browser)


def serving(explorer: Explorer, browser: Any, **options: Any) -> Iterator[Browsing]:
    """Serve an explorer for as long as something looks at it."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
        app = app_for(explorer, Options(port=port, **options))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{port}/"
        wait_for(address, needs_model="token" not in options)
        yield Browsing(browser, address)
        server.should_exit = True
        thread.join(10)


def wait_for(address: str, *, needs_model: bool) -> None:
    """Wait until a server answers, and its model is loaded or cannot be."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{address}{'api/state' if needs_model else ''}") as answer:
                if b'"condition":"loading"' not in answer.read():
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{address} is not ready")


def filing(folder: Path, browser: Any) -> Iterator[Browsing]:
    """A file server that knows nothing of Kyomei."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Browsing(browser, f"http://127.0.0.1:{server.server_address[1]}/")
        server.shutdown()


def serious(page: Any) -> list[str]:
    """What axe-core finds on a page that keeps somebody out."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {node['target']} {node['failureSummary'][:300]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"][:3]
    ]
