"""A mixed text for trials on real language models: prose, reference, a dictionary, documentation and source code.

Debian's packages are downloaded and unpacked beside the text, without root; nothing is installed. The text is made of

    python-doc    the sources of Python's documentation (pythonX.Y-doc)
    handbook      The Debian Administrator's Handbook, in English (debian-handbook)
    wordnet       WordNet's glosses, a page of consecutive lemmas at a time (wordnet-base)
    bible         the King James Bible, a chapter at a time (bible-kjv-text, read by the program of bible-kjv)
    stdlib        the interpreter's own library

cut at blank lines into documents of at most 6,000 characters and mixed by the hash of their names, so that any beginning of
the file is a sample of all of it. Documents of one origin share their `group`.

    python tools/real_text.py .real/text
"""

from __future__ import annotations

import argparse
import hashlib
import html.parser
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from kyomei.source.stdlib import stdlib_files

LONGEST = 6000
PACKAGES = ("debian-handbook", "wordnet-base", "bible-kjv-text", "bible-kjv")

Document = tuple[str, str]
"""Name, and text."""


class _Prose(html.parser.HTMLParser):
    """What a page says, a blank line between blocks."""

    _blocks = frozenset(("p", "div", "h1", "h2", "h3", "h4", "li", "dt", "dd", "pre", "tr", "table", "br"))
    _silent = frozenset(("head", "script", "style"))

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._muted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._muted += tag in self._silent
        if tag in self._blocks:
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self._muted -= tag in self._silent
        if tag in self._blocks:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self._muted:
            self.parts.append(data)


def prose(page: str) -> str:
    parser = _Prose()
    parser.feed(page)
    blocks = (re.sub(r"\s+", " ", block).strip() for block in "".join(parser.parts).split("\n\n"))
    return "\n\n".join(block for block in blocks if block)


def download(folder: Path) -> Path:
    """Debian's packages, unpacked into a folder."""
    root = folder / "unpacked"
    if root.exists():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    depends = subprocess.run(["apt-cache", "depends", "python3-doc"], check=True, capture_output=True, text=True).stdout
    documentation = re.search(r"Depends: (python3\.\d+-doc)", depends)
    if documentation is None:
        raise SystemExit("Expected Debian's package python3-doc. Found none in apt's lists. Run `apt-get update` first.")
    subprocess.run(["apt-get", "-q", "download", documentation[1], *PACKAGES], check=True, cwd=folder)
    unfinished = folder / "unfinished"
    for package in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg", "-x", package, unfinished], check=True)
    unfinished.rename(root)
    return root


def python_doc(root: Path) -> Iterator[Document]:
    for path in sorted(root.glob("usr/share/doc/python3*/html/_sources/**/*.rst.txt")):
        yield path.name.removesuffix(".rst.txt"), path.read_text(encoding="utf-8")


def handbook(root: Path) -> Iterator[Document]:
    for path in sorted(root.glob("usr/share/doc/debian-handbook/html/en-US/*.html")):
        yield path.stem, prose(path.read_text(encoding="utf-8"))


def wordnet(root: Path) -> Iterator[Document]:
    """Pages of a dictionary: all synonyms of a meaning, what they are and their gloss, in alphabetical order."""
    kinds = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
    entries = []
    for path in sorted(root.glob("usr/share/wordnet/data.*")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):
                facts, gloss = line.split(" | ", 1)
                fields = facts.split()
                lemmas = [re.sub(r"\(.*\)", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
                entries.append(f"{', '.join(lemmas)} ({kinds[fields[2]]}): {gloss.strip()}")
    entries.sort(key=str.lower)
    for at in range(0, len(entries), 40):
        yield f"page {at // 40}", "\n\n".join(entries[at : at + 40])


def bible(root: Path) -> Iterator[Document]:
    command = [root / "usr/bin/bible", "-p", root / "usr/lib", "-l100000", "gen1:1-rev22:21"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for chapter in re.split(r"\n\n(?=\S)", text.strip()):
        title, *verses = (line.strip() for line in chapter.splitlines() if line.strip())
        yield title, "\n".join([title, "", *(re.sub(r"^\d+ ", "", verse) for verse in verses)])


def stdlib(_: Path) -> Iterator[Document]:
    for name, path in stdlib_files():
        yield name, path.read_text(encoding="utf-8", errors="replace")


def cut(text: str) -> Iterator[str]:
    """Pieces of at most LONGEST characters, cut at blank lines where there are any."""
    piece = ""
    for block in text.split("\n\n"):
        while len(block) > LONGEST:
            yield block[:LONGEST]
            block = block[LONGEST:]
        if piece and len(piece) + len(block) + 2 > LONGEST:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{block}" if piece else block
    if piece.strip():
        yield piece


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    root = download(out.with_name("debian"))
    records = []
    for origin, read in (
        ("python-doc", python_doc),
        ("handbook", handbook),
        ("wordnet", wordnet),
        ("bible", bible),
        ("stdlib", stdlib),
    ):
        before = sum(len(record["text"]) for record in records)
        for name, text in read(root):
            pieces = enumerate(cut(text))
            records += [{"id": f"{origin}/{name}#{n}", "group": f"{origin}/{name}", "text": piece} for n, piece in pieces]
        print(f"{origin}: {(sum(len(record['text']) for record in records) - before) / 1e6:.1f} million characters")
    records.sort(key=lambda record: hashlib.sha256(record["id"].encode()).hexdigest())
    out.mkdir(parents=True, exist_ok=True)
    unfinished = out / ".mixed.tmp"
    with unfinished.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    unfinished.rename(out / "mixed.jsonl")
    print(f"{len(records)} documents in {out / 'mixed.jsonl'}")


if __name__ == "__main__":
    main()
