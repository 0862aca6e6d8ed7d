"""The explorer as files for any file server: pages that read, and do not ask; docs/explorer-pages.md lists the files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

from kyomei.atomic import write_atomic
from kyomei.errors import RunError
from kyomei.runs import plain
from kyomei.views.queries import MOST_CHARACTERS, MOST_ROWS, Index
from kyomei.views.server.app import page_files
from kyomei.views.server.explorer import Explorer, Options
from kyomei.views.server.reading import Reading
from kyomei.views.server.shelf import LiveModels, Shelf
from kyomei.views.strings import LANGUAGES, catalogue

Progress = Callable[[int, int], None]
_SERVED, _EXPORTED = 'name="kyomei-data" content="api"', 'name="kyomei-data" content="data"'
"""Where index.html says that data comes from."""
_MARK = "kyomei-export.json"
"""Tells a folder that may be written over from one that was not ours."""


def export_to(explorer: Explorer, folder: Path, language: str, progress: Progress | None = None) -> int:
    """Write every dictionary that has an index, and the pages that show them.

    Args:
        explorer: what is shown; nothing can be changed in an export, and the model does not run there.
        folder: a new one, or one that an export wrote, which is emptied first.
        language: that pages begin with.
        progress: called with (latents done, latents in all).

    Returns:
        How many files there are.

    Raises:
        RunError: the folder holds something else, or cannot be written.
    """
    _require_ours(folder)
    shutil.rmtree(folder, ignore_errors=True)
    options = Options(read_only=True, language=language)
    reading = Reading(explorer, options, Shelf(explorer), LiveModels(explorer, off=True))
    ready = [state["name"] for state in reading.shelf.states() if state["condition"] == "ready"]
    if not ready:
        raise RunError("an index to export", f"none of {explorer.name}", "run `kyomei index` first")
    writer = _Writer(folder)
    writer.add(_MARK, {"run": explorer.name, "dictionaries": ready})
    for name, path in page_files().items():
        content = path.read_bytes()
        writer.write(name, content.replace(_SERVED.encode(), _EXPORTED.encode()) if name == "index.html" else content)
    state = reading.state()
    shown = [each for each in state["dictionaries"] if each["name"] in ready]
    writer.add("data/state.json", {**state, "dictionaries": shown, "dictionary": ready[0]})
    for each in LANGUAGES:
        writer.add(f"data/strings-{each}.json", catalogue(each))
    writer.add("data/watch.json", reading.watched())
    writer.add("data/labels.json", {name: reading.all_labels(name)["labels"] for name in ready})
    total, done = sum(reading.shelf.index(name).facts["width"] for name in ready), 0
    for name in ready:
        _add_dictionary(reading, name, writer, lambda latents, done=done: progress and progress(done + latents, total))  # type: ignore[misc]
        done += reading.shelf.index(name).facts["width"]
    for a, b in permutations(ready, 2) if explorer.rows is not None else ():
        writer.add(f"data/compare/{a}~{b}.json", reading.comparison(a, b, None, (1, reading.shelf.index(a).facts["width"])))
    return writer.count


class _Writer:
    def __init__(self, folder: Path) -> None:
        self._folder, self.count = folder, 0

    def add(self, name: str, value: Any) -> None:
        """A JSON file; text in it cannot end a script or begin markup, whoever puts it into a page."""
        text = json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"))
        self.write(name, text.replace("<", "\\u003c").encode())

    def write(self, name: str, content: bytes) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.count += 1


def _add_dictionary(reading: Reading, name: str, writer: _Writer, progress: Callable[[int], Any]) -> None:
    index, folder = reading.shelf.index(name), f"data/{name}"
    writer.add(f"{folder}/overview.json", reading.overview(name))
    writer.add(f"{folder}/map.json", index.map())
    writer.add(f"{folder}/goals.json", reading.goals(name))
    writer.add(f"{folder}/list.json", _whole_list(reading, name))
    for latent, examples in index.examples_of_all():
        writer.add(f"{folder}/features/{latent}.json", {**reading.feature(name, latent), "examples": examples})
        progress(latent + 1)
    for document in range(index.facts["documents"]):
        found = _whole_document(index, document)
        if found is not None:
            writer.add(f"{folder}/documents/{document}.json", found)


def _whole_list(reading: Reading, name: str) -> dict[str, Any]:
    """The list on one page, each row with the text that a search looks in."""
    index = reading.shelf.index(name)
    texts, rows = index.searched_texts(), list[dict[str, Any]]()
    while len(rows) < index.facts["width"]:
        page = reading.features(name, order=("latent", False), page=(len(rows) // MOST_ROWS + 1, MOST_ROWS))["rows"]
        rows += [{**row, "token_text": texts[row["latent"]]} for row in page]
        if not page:
            break
    return {"rows": rows, "total": len(rows), "page": 1, "size": len(rows)}


def _whole_document(index: Index, document: int) -> dict[str, Any] | None:
    first = index.document(document, 0, MOST_CHARACTERS)
    if first is None or first["text"] is None:
        return first
    text = first["text"]
    while len(text) < first["length"]:
        part = index.document(document, len(text) + MOST_CHARACTERS // 2, MOST_CHARACTERS)
        if part is None or not part["text"]:
            break
        text += part["text"]
    return {**first, "text": text}


def _require_ours(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and ((folder / _MARK).is_file() or not any(folder.iterdir()))):
        raise RunError("a new folder for the export", f"{folder}, which holds something else", "choose another folder")
    write_atomic(folder / _MARK, b"{}")
