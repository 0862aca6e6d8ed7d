"""The interpreter's own library as a corpus, and which of its files the embedded model never saw."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from pathlib import Path

from kyomei.source.text import EMBEDDED, Document

_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}


def stdlib_files() -> list[tuple[str, Path]]:
    """(name relative to the library's folder, path) of every standard-library source used, in name order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if _SKIPPED_FOLDERS.isdisjoint(parts) and not parts[-1].startswith("_sysconfigdata"):
            found.append(("/".join(parts), path))
    return sorted(found)


def is_held_out(name: str) -> bool:
    """Whether the embedded model is trained without this standard-library file: one in five, by the hash of its name."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 5 == 0


def stdlib_documents() -> list[Document]:
    """Every file as a document, in name order; held out are those that the model saw under no name."""
    listed = EMBEDDED / "held_out.json"
    held_out = set(json.loads(listed.read_text(encoding="utf-8"))) if listed.exists() else None
    documents = []
    for name, path in stdlib_files():
        held = is_held_out(name) if held_out is None else name in held_out
        documents.append(Document(name, path.read_text(encoding="utf-8", errors="replace"), held))
    seen = {d.text for d in documents if not d.held_out}
    return [Document(d.name, d.text, d.held_out and d.text not in seen) for d in documents]
