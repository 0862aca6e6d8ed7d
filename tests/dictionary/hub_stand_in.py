"""A stand-in for the hub of Hugging Face: repositories in memory, behind the few answers that huggingface_hub asks for."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse


class Hub(ThreadingHTTPServer):
    """Repositories by name, each with branches of files; what was asked is kept."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub() -> Iterator[Hub]:
    """One that runs for a while."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self._answer(b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _answer(self, body: bytes) -> None:
        path = unquote(urlparse(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path in ("/api/validate-yaml", "/"):
            self._json({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit|revision|tree)/([^/]+)(/.*)?", path):
            self._api(found[1], found[2], found[3], body)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*found.groups())
        else:
            self._refuse(404, "EntryNotFound")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if self.headers.get("Authorization") != "Bearer hf_write":
            self._refuse(401, "")
            return
        if name in self.server.repositories:
            self._json({"url": f"{self.server.address}/{name}"}, 409)
            return
        self.server.repositories[name] = {"main": {}}
        self.server.private[name] = bool(asked.get("private") or asked.get("visibility") == "private")
        self._json({"url": f"{self.server.address}/{name}", "id": name})

    def _api(self, name: str, verb: str, revision: str, body: bytes) -> None:
        branches = self.server.repositories.get(name)
        if branches is None:
            self._refuse(404, "RepoNotFound")
        elif verb == "branch":
            branches.setdefault(revision, dict(branches["main"]))
            self._json({})
        elif (files := self._files(branches, revision)) is None:
            self._refuse(404, "RevisionNotFound")
        elif verb == "preupload":
            asked = json.loads(body)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        elif verb == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            oid = commit_of(files)
            self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.server.address}/{name}/commit/{oid}"})
        elif verb == "tree":
            self._json([{"type": "file", "path": path, "size": len(b), "oid": _etag(b)} for path, b in files.items()])
        else:
            siblings = [{"rfilename": path} for path in files]
            self._json(
                {"id": name, "modelId": name, "sha": commit_of(files), "siblings": siblings, "tags": [], "private": True}
            )

    def _files(self, branches: dict[str, dict[str, bytes]], revision: str) -> dict[str, bytes] | None:
        return branches.get(revision) or next(
            (f for f in branches.values() if commit_of(f) == revision), branches.get(revision)
        )

    def _file(self, name: str, revision: str, path: str) -> None:
        files = self._files(self.server.repositories.get(name, {}), revision)
        if files is None or path not in files:
            self._refuse(404, "EntryNotFound")
            return
        self._send(files[path], {"ETag": f'"{_etag(files[path])}"', "X-Repo-Commit": commit_of(files)})

    def _json(self, answer: Any, status: int = 200) -> None:
        self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"}, status)

    def _refuse(self, status: int, code: str) -> None:
        self._send(b"{}", {"X-Error-Code": code} if code else {}, status)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
