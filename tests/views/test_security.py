"""What reaches the server from elsewhere stays outside, and what is text stays text."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn
from fastapi.testclient import TestClient
from tests.views.explorer_samples import NAME, TURNING, client_of, make_explorer, with_own_labels
from tests.views.samples import HOSTILE

from kyomei.views.server import Explorer, Options, app_for
from kyomei.views.server.guard import MOST_BYTES, Rates, Sessions, allowed_hosts, host_name
from kyomei.views.server.serving import address_of, exposed, listening, new_token

DATA = ("state", "overview", "features", "features/1", "features/1/examples", "documents/0", "map", "labels", "labels/export")
CHANGES: dict[str, dict[str, Any]] = {
    "labels": {"latent": 1, "label": "x"},
    "labels/merge": {"lines": ""},
    "search": {"text": "a"},
    "try": {"text": "a"},
    "needs": {"latent": 1, "text": "a b", "position": 1},
}
TOKEN = "correct horse battery staple"


@pytest.fixture(scope="module")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> Explorer:
    return make_explorer(tmp_path_factory.mktemp("run"), load_model=None)


@pytest.fixture
def client(explorer: Explorer, tmp_path: Path) -> Iterator[TestClient]:
    yield from client_of(with_own_labels(explorer, tmp_path))


# ── Text ──


def test_text_that_tries_to_be_more_is_answered_as_json_text(client: TestClient) -> None:
    for payload in (
        HOSTILE,
        f"<svg onload=alert(1)>{TURNING}",
        "{{7*7}}${7*7}<%= 7*7 %>",
        "</script><script>alert(1)</script>",
    ):
        said = client.post("/api/labels", json={"latent": 3, "label": payload[:200], "note": payload, "author": payload[:100]})
        assert said.status_code == 200
    for route in (*DATA, "strings"):
        answer = client.get(f"/api/{route}")
        assert answer.status_code == 200
        kind = answer.headers["content-type"]
        assert kind.startswith(("application/json", "application/x-ndjson")), route
        assert answer.headers["x-content-type-options"] == "nosniff"
    document = client.get("/api/documents/1", params={"size": 20_000}).json()
    assert HOSTILE in document["text"] and HOSTILE in document["name"]  # as it was: a page puts it in as text
    assert "\u202e" not in client.get("/api/labels").text


def test_a_question_is_never_part_of_a_query(client: TestClient) -> None:
    everything = client.get("/api/features").json()["total"]
    for q in ("' OR 1=1 --", '"; DROP TABLE features; --', "%", "_", "'; ATTACH '/tmp/x' AS y; --", "read_text('/etc/passwd')"):
        answer = client.get("/api/features", params={"q": q, "status": q, "origin": q})
        assert answer.status_code == 200 and answer.json()["total"] == 0, q
    assert client.get("/api/features").json()["total"] == everything


def test_every_answer_carries_what_keeps_it_in_its_place(client: TestClient) -> None:
    for answer in (client.get("/"), client.get("/api/state"), client.get("/nothing"), client.post("/api/try", content=b"x")):
        policy = answer.headers["content-security-policy"]
        scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
        assert scripts == "script-src 'self'" and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in answer.headers
    assert client.get("/api/state").headers["cache-control"] == "no-store"


# ── Paths ──


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/..%2f..%2fpyproject.toml",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/....//....//etc/passwd",
        "/etc/passwd",
        "//etc/passwd",
        "/vendor/../../live.py",
        "/index.html%00.js",
        "/.hidden",
        "/api/../live.py",
        "/C:\\Windows\\win.ini",
    ],
)
def test_no_path_reaches_the_file_system(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404, path
    assert set(answer.json()) == {"expected", "found", "do"}


@pytest.mark.parametrize("name", ["../../etc", "/etc", "replicas-0/../..", "", "%2e%2e", NAME + "\x00"])
def test_no_name_of_a_dictionary_is_a_path(client: TestClient, name: str) -> None:
    answer = client.get("/api/features", params={"dictionary": name})
    assert answer.status_code == (200 if name == "" else 404)


# ── Host and Origin ──


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8321", "127.0.0.1.evil.example", "8.8.8.8", "", "a@127.0.0.1", "[::1"]
)
def test_another_host_is_refused(client: TestClient, host: str) -> None:
    answer = client.get("/api/state", headers={"host": host})
    assert answer.status_code == 421 and "expected" in answer.json()
    assert client.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "localhost:9999", "127.0.0.1:1", "[::1]:8321", "LOCALHOST"])
def test_this_machines_own_names_are_known(client: TestClient, host: str) -> None:
    assert client.get("/api/state", headers={"host": host}).status_code == 200


def test_beyond_loopback_addresses_and_named_hosts_are_known_and_no_other_names() -> None:
    names = allowed_hosts(Options(host="0.0.0.0", hosts=("Box.Lab",)))
    assert {"box.lab", "localhost", socket.gethostname().lower()} <= names and "evil.example" not in names
    assert host_name("[fe80::1]:80") == "fe80::1" and host_name("a b") == "a b" and host_name("x:port") in ("", "x")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://127.0.0.1:8321.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_change_from_another_page_is_refused(client: TestClient, headers: dict[str, str]) -> None:
    for route, body in CHANGES.items():
        assert client.post(f"/api/{route}", json=body, headers=headers).status_code == 403
    assert client.get("/api/labels").json()["labels"] == []


def test_a_change_from_an_own_page_is_taken(client: TestClient) -> None:
    headers = {"origin": "http://127.0.0.1:8321", "sec-fetch-site": "same-origin"}
    assert client.post("/api/labels", json=CHANGES["labels"], headers=headers).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_a_change_is_json_or_nothing(client: TestClient, kind: str) -> None:
    body = json.dumps(CHANGES["labels"])
    assert client.post("/api/labels", content=body, headers={"content-type": kind}).status_code == 415


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(client: TestClient, method: str) -> None:
    assert client.request(method, "/api/labels").status_code == 405
    assert client.post("/index.html", json={}).status_code == 405
    assert client.post("/api/state", json={}).status_code == 405
    assert client.get("/api/try").status_code == 404


# ── Token ──


def test_no_token_no_data(explorer: Explorer, tmp_path: Path) -> None:
    for client in client_of(with_own_labels(explorer, tmp_path), token=TOKEN):
        for route in DATA:
            for headers in ({}, {"cookie": "kyomei-8321=guess"}, {"authorization": f"Bearer {TOKEN}"}):
                assert client.get(f"/api/{route}", headers=headers).status_code == 401
            assert client.get(f"/api/{route}?token={TOKEN}").status_code == 401
        for route, body in CHANGES.items():
            assert client.post(f"/api/{route}", json=body).status_code == 401
        assert not (tmp_path / "labels.sqlite").exists()
        assert client.post("/api/login", json={"token": TOKEN + "x"}).status_code == 403
        answer = client.post("/api/login", json={"token": TOKEN})
        cookie = answer.headers["set-cookie"]
        assert answer.status_code == 204 and TOKEN not in cookie
        assert "httponly" in cookie.lower() and "samesite=strict" in cookie.lower() and "path=/" in cookie.lower()
        for route in DATA:
            assert client.get(f"/api/{route}").status_code == 200


def test_guessing_is_slowed_down(explorer: Explorer) -> None:
    for client in client_of(explorer, token=TOKEN):
        statuses = [client.post("/api/login", json={"token": f"guess {i}"}).status_code for i in range(12)]
        assert statuses[:5] == [403] * 5 and set(statuses[6:]) == {429}


def test_sessions_end_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(TOKEN, 1)
    name = sessions.begin(TOKEN)
    assert sessions.known(name) and not sessions.known("other") and not sessions.known(None) and sessions.begin("é") is None
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + 13 * 3600)
    assert not sessions.known(name)
    for _ in range(1100):
        sessions.begin(TOKEN)
    assert len(sessions._open) == 1000


def test_what_is_exposed_is_said_and_tokens_are_not_guessed() -> None:
    assert Options().is_loopback and Options(host="127.8.8.8").is_loopback and Options(host="::1").is_loopback
    open_to_all = Options(host="0.0.0.0", port=80)
    assert not open_to_all.is_loopback and not Options(host="example.org").is_loopback
    assert "labels" in exposed(open_to_all) and "write" not in exposed(replace(open_to_all, read_only=True))
    assert address_of(open_to_all) == "http://localhost:80/" and address_of(Options(host="::1", port=1)) == "http://[::1]:1/"
    assert len({new_token() for _ in range(50)}) == 50 and all(len(new_token()) >= 32 for _ in range(5))


# ── Bounds ──


def test_a_large_body_is_refused(client: TestClient) -> None:
    large = json.dumps({"lines": "x" * 10_000_000})
    assert client.post("/api/labels/merge", content=large, headers={"content-type": "application/json"}).status_code == 413

    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 100_000

    chunked = client.post("/api/labels/merge", content=parts(), headers={"content-type": "application/json"})
    assert chunked.status_code == 413
    for length in ("-1", "1e9", "9" * 400):
        headers = {"content-type": "application/json", "content-length": length}
        assert client.post("/api/labels/merge", content=b"{}", headers=headers).status_code == 413
    assert MOST_BYTES == 1_000_000


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a":' * 5000, b'"' + b"x" * 1000 + b'"', b"1" * 5000])
def test_what_is_no_request_is_refused_in_words(client: TestClient, body: bytes) -> None:
    answer = client.post("/api/labels", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and set(answer.json()) == {"expected", "found", "do"}, answer.text


def test_rates_are_of_one_client_and_one_kind_and_come_back() -> None:
    rates = Rates(most_clients=3)
    taken = [rates.allows("a", "/api/login", now=0.0) for _ in range(7)]
    assert taken == [True] * 5 + [False] * 2
    assert rates.allows("b", "/api/login", now=0.0) and rates.allows("a", "/api/try", now=0.0)
    assert rates.allows("a", "/api/login", now=5.1) and not rates.allows("a", "/api/login", now=5.2)
    for client in "cdefgh":
        rates.allows(client, "/api/try", now=6.0)
    assert len(rates._buckets) == 3


# ── Many readers ──


class Served:
    """A real server in a thread."""

    def __init__(self, explorer: Explorer, **options: Any) -> None:
        self.bound = listening("127.0.0.1", 0)
        self.port = self.bound.getsockname()[1]
        app = app_for(explorer, Options(port=self.port, **options))
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, ws="none", http="h11"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.bound]}, daemon=True)

    def __enter__(self) -> Served:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(10)


def test_ten_megabytes_are_refused_on_the_wire_and_the_server_lives_on(explorer: Explorer) -> None:
    with Served(explorer) as served:
        head = f"POST /api/labels HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Type: application/json\r\n"
        for length in ("Content-Length: 10000000\r\n", "Transfer-Encoding: chunked\r\n"):
            with socket.create_connection(("127.0.0.1", served.port), timeout=20) as wire:
                wire.sendall(f"{head}{length}\r\n".encode())
                chunk = b"186a0\r\n" + b"x" * 100_000 + b"\r\n"
                with contextlib.suppress(OSError):  # it may hang up
                    for _ in range(100):
                        wire.sendall(chunk)
                answer = b""
                with contextlib.suppress(OSError):
                    answer = wire.recv(400)
                assert not answer or re.match(rb"HTTP/1.1 413", answer), answer
        with urllib.request.urlopen(f"http://127.0.0.1:{served.port}/api/state", timeout=20) as answer:
            assert answer.status == 200


@pytest.mark.slow
@pytest.mark.parametrize("readers, seconds", [(200, 6.0), pytest.param(200, 60.0, marks=pytest.mark.sweep)])
def test_two_hundred_readers_at_once_get_their_answers(explorer: Explorer, readers: int, seconds: float) -> None:
    import http.client

    failures: list[str] = []
    times: list[float] = []

    def read(port: int, until: float, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        routes = ("features?sort=-frequency", "features/3", "features/5/examples?kind=top", "state", "map", "features?q=self")
        try:
            while time.monotonic() < until:
                began = time.monotonic()
                connection.request("GET", f"/api/{routes[number % len(routes)]}")
                answer = connection.getresponse()
                body = answer.read()
                times.append(time.monotonic() - began)
                if answer.status != 200 or not body:
                    failures.append(f"{answer.status} {body[:100]!r}")
                number += 1
        except OSError as error:
            failures.append(repr(error))
        finally:
            connection.close()

    with Served(explorer) as served:
        before = psutil.Process().memory_info().rss
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=read, args=(served.port, until, n)) for n in range(readers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        grown = psutil.Process().memory_info().rss - before
    times.sort()
    middle, rate = times[len(times) // 2], len(times) / seconds
    print(f"{readers} readers: {rate:.0f} answers a second, median {middle:.2f} s, +{grown >> 20} MiB")
    assert not failures, failures[:3]
    assert len(times) > readers
    assert grown < 400 << 20
