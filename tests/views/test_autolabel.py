"""Automatic labels: what is sent, that it is paced and resumed, that a score means something. The endpoint is a stand-in."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.bench_scripts import bench_script
from tests.views.explorer_samples import NAME, make_explorer

from kyomei.errors import DataError, RecipeError, RunError
from kyomei.views.autolabel import AutomaticLabels
from kyomei.views.console import estimate_words
from kyomei.views.endpoint import Client, Endpoint
from kyomei.views.labels import Labels
from kyomei.views.queries import Index
from kyomei.views.server import Explorer


class StandIn:
    """Names a feature after a token that is marked in every excerpt, and picks the texts that hold the quoted token."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.failures: list[tuple[int, dict[str, str]]] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand_in.headers.append(dict(self.headers))
                if stand_in.failures:
                    status, headers = stand_in.failures.pop(0)
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    return
                stand_in.requests.append({**body, "path": self.path})
                text = stand_in.answer(body["messages"])
                usage = {"prompt_tokens": 7, "completion_tokens": 2}
                held = json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(held)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def answer(self, messages: list[dict[str, str]]) -> str:
        system, user = (message["content"] for message in messages)
        if "name what a feature" in system:
            marked = [{token.strip() for token in re.findall("«(.+?)»", part, re.S)} for part in user.split("\n---\n")]
            return f'"the token {max(set.intersection(*marked) or set.union(*marked), key=len)} here"\n'
        token = re.search("the token (.*?) here", system)
        assert token is not None
        numbers = [n for n, text in re.findall(r"^\[(\d+)\] (.*)$", user, re.M) if token[1] in text]
        return ", ".join(numbers) or "none"


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    stand_in = StandIn()
    yield stand_in
    stand_in.server.shutdown()


@pytest.fixture(scope="module")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> Explorer:
    return make_explorer(tmp_path_factory.mktemp("run"))


@pytest.fixture
def work(explorer: Explorer, tmp_path: Path) -> AutomaticLabels:
    index = Index(explorer.dictionaries[NAME].index)
    latents = [row["latent"] for row in index.features(order=("frequency", False), frequency=(0.02, None), page=(1, 6))["rows"]]
    return AutomaticLabels(index, Labels(tmp_path / "labels.sqlite"), NAME, "ab", latents, "stand-in at 127.0.0.1")


def client(stand_in: StandIn, **more: Any) -> Client:
    return Client(Endpoint(stand_in.url, "stand-in", "a key"), **{"requests_per_minute": 1e6, **more})


def test_labels_are_written_scored_beside_a_null_and_marked(work: AutomaticLabels, stand_in: StandIn) -> None:
    estimate = work.estimate()
    steps: list[tuple[int, int]] = []
    asking = client(stand_in)
    found = work.run(asking, lambda done, total: steps.append((done, total)))
    assert len(found) == len(work.material) == 6 and steps[-1] == (12, 12)
    assert all(entry.kind == "automatic" and entry.author == "kyomei" and "the token" in entry.label for entry in found)
    assert all(entry.score is not None and entry.null_score is not None for entry in found)
    assert sum(entry.score or 0 for entry in found) > sum(entry.null_score or 0 for entry in found)
    assert len(stand_in.requests) == estimate.requests == 18
    assert asking.tokens == {"prompt_tokens": 18 * 7, "completion_tokens": 18 * 2}
    sent = sum(len(m["content"]) for request in stand_in.requests for m in request["messages"]) / 3.5
    assert estimate.tokens_in == pytest.approx(sent, rel=0.2)
    assert {request["path"] for request in stand_in.requests} == {"/v1/chat/completions"}
    assert {request["model"] for request in stand_in.requests} == {"stand-in"}


def test_a_label_is_tested_on_what_it_was_not_written_from(work: AutomaticLabels) -> None:
    for material in work.material:
        shown = {re.sub("[«»]", "", text) for text in material.shown}
        assert material.shown and material.tested and all("«" in text for text in material.shown)
        assert not set(material.tested) & set(material.others)
        assert len(set(material.tested) - shown) >= len(material.tested) - 1  # texts may repeat; rows do not


def test_what_is_done_is_not_asked_again(work: AutomaticLabels, stand_in: StandIn) -> None:
    class Stops(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done == 8:
            raise Stops

    with pytest.raises(Stops):
        work.run(client(stand_in), stop)
    asked = len(stand_in.requests)
    assert work.estimate().requests == 18 - asked
    work.run(client(stand_in))
    assert len(stand_in.requests) == 18
    assert work.estimate().requests == 0
    work.run(client(stand_in))
    assert len(stand_in.requests) == 18


def test_a_busy_endpoint_is_waited_for_and_a_refusing_one_is_named(work: AutomaticLabels, stand_in: StandIn) -> None:
    waited: list[float] = []
    stand_in.failures = [(429, {"Retry-After": "7"}), (503, {}), (429, {"Retry-After": "9999"}), (429, {"Retry-After": "soon"})]
    assert client(stand_in, sleep=waited.append).ask([{"role": "system", "content": "name what a feature"}, _user("«a»")], 5)
    assert waited == [7.0, 2.0, 60.0, 8.0]
    for status in (401, 404):
        stand_in.failures = [(status, {})]
        with pytest.raises(RunError, match=f"status {status}") as refused:
            client(stand_in, sleep=waited.append).ask([], 5)
        assert "a key" not in str(refused.value)
    stand_in.failures = [(500, {})] * 5
    with pytest.raises(RunError, match="status 500"):
        client(stand_in, sleep=waited.append).ask([], 5)
    with pytest.raises(RunError, match="goes on where it stopped"):
        Client(Endpoint("http://127.0.0.1:9/v1", "m"), sleep=waited.append).ask([], 5)


def test_requests_are_paced(stand_in: StandIn) -> None:
    waited: list[float] = []
    asking = client(stand_in, requests_per_minute=60, sleep=waited.append)
    for _ in range(4):
        asking.ask([{"role": "system", "content": "name what a feature"}, _user("«a»")], 5)
    assert len(waited) == 3 and waited == sorted(waited) and 0.5 < waited[0] <= 1.0 and 2 < waited[2] <= 3


def test_key_and_text_go_nowhere_else(stand_in: StandIn) -> None:
    other = StandIn()
    stand_in.failures = [(302, {"Location": f"{other.url}/chat/completions"}), (307, {"Location": f"{other.url}/x"})]
    for _ in range(2):
        with pytest.raises(RunError, match="status 30"):
            client(stand_in).ask([], 5)
    assert other.headers == [] and all(headers["Authorization"] == "Bearer a key" for headers in stand_in.headers)
    other.server.shutdown()
    assert "a key" not in repr(Endpoint(stand_in.url, "m", "a key"))


@pytest.mark.parametrize(
    "url, key",
    [
        ("localhost:1/v1", None),
        ("ftp://localhost/v1", None),
        ("file:///etc/passwd", None),
        ("https://user:secret@example.org/v1", None),
        ("https://example.org/v1?key=secret", None),
        ("http://example.org/v1", "secret"),
    ],
)
def test_an_address_that_would_give_a_key_away_is_refused(url: str, key: str | None) -> None:
    with pytest.raises(RecipeError) as refused:
        Endpoint(url, "m", key)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("answer", ["", "\n \n", '""'])
def test_an_empty_label_is_no_label(
    work: AutomaticLabels, stand_in: StandIn, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand_in, "answer", lambda _: answer)
    with pytest.raises(DataError, match="empty"):
        work.run(client(stand_in))


def test_it_is_said_before_what_is_sent_where(work: AutomaticLabels, stand_in: StandIn) -> None:
    lines = "\n".join(estimate_words(work.estimate(), f"{stand_in.url}/chat/completions", (2.0, 8.0)))
    assert stand_in.url in lines and "18 requests" in lines and "at the prices given" in lines
    assert work.material[0].shown[0].splitlines()[0] in lines
    assert stand_in.requests == []


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_certified_latents_are_judged_beside_others_like_them(
    explorer: Explorer, stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bench/detection.py: the pairs that a language model judges, and what it says of them."""
    bench, index = bench_script("detection"), Index(explorer.dictionaries[NAME].index)
    listed = index.features

    def certified(**asked: Any) -> dict[str, Any]:
        """The sample has no certificate, and most of it is dense."""
        found = listed(**{**asked, "frequency": (1e-12, None)})
        for row in found["rows"]:
            row |= {"status": "certified" if row["latent"] % 2 else "unstable", "frequency": row["frequency"] / 10}
        return found

    monkeypatch.setattr(index, "features", certified)
    monkeypatch.setattr(bench, "MOST_ROWS", 20)  # several pages
    rows = {row["latent"]: row for row in certified(page=(1, 500))["rows"]}
    pairs = bench.pairs_of(index, 4)
    assert len(pairs) == 4 and len({latent for pair in pairs for latent in pair}) == 8
    for one, other in pairs:
        assert rows[one]["status"] == "certified" != rows[other]["status"]
        assert 1 / 1.25 <= rows[one]["frequency"] / rows[other]["frequency"] <= 1.25
    wanted = [latent for pair in pairs for latent in pair]
    work = AutomaticLabels(index, Labels(tmp_path / "labels.sqlite"), NAME, "ab", wanted, "stand-in at 127.0.0.1")
    labels = work.run(client(stand_in))
    own, null = bench.compared(pairs, [label.to_dict() for label in labels])
    scores = {label.latent: label.score for label in labels}
    known = [(scores[a], scores[b]) for a, b in pairs if scores.get(a) is not None and scores.get(b) is not None]
    assert own["pairs"] == null["pairs"] == len(known) > 0
    assert own["certified"] == pytest.approx(sum(a for a, _ in known) / len(known)) and null["certified"] < own["certified"]
