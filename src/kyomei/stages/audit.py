"""Are the files of a run as they were written, and does one lead to the other, from the report back to the text?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from kyomei.config import Recipe
from kyomei.errors import KyomeiError, RunError
from kyomei.locks import refuse_if_locked
from kyomei.runs import CHANGED, MANIFEST, RECIPE
from kyomei.sealing import UNFINISHED, beside, digest_line, digest_of, files_of, seal_of, uncovered, vouched_for
from kyomei.source.text import Tokens
from kyomei.stages.harvested import NAMED
from kyomei.stages.journal import FILE as JOURNAL
from kyomei.stages.named import NAMES
from kyomei.stages.progress import Reporter
from kyomei.stages.tombstones import Tombstones
from kyomei.stores import Store, store_at

State = Literal["whole", "broken", "expired"]
_MADE = {"report": ("report", "report.html"), "measure": ("evidence", "evidence.json"), "check": ("premises", "premises.json")}
"""Stages whose file has another name: link and file."""
_ORDER = (
    "report", "index", "certificate", "evidence", "premises",
    "dictionary", "directions", "activations", "tokens", "text", "model",
)  # fmt: skip
_SPEAKING = ("certificate.json", "evidence.json", "premises.json", "config.json")
"""Files that say themselves what they are of."""
_EARLIER = "earlier/"
"""What smaller pilots of a run came to: of dictionaries and rows that are gone, so no links of its chain."""


@dataclass(frozen=True)
class Broken:
    """A file that is not as it was written.

    Attributes:
        file: where it is, from the folder that was asked for.
        what: "changed", "missing", or what else is wrong, in words.
        expected, found: SHA-256, where both are known.
    """

    file: str
    what: str
    expected: str | None = None
    found: str | None = None


@dataclass(frozen=True)
class Link:
    """One step of the way from the report back to the text.

    Attributes:
        name: of the step.
        file: that it is about.
        sha256: of the file as it is.
        state: "whole", "broken", or "expired" where a document was forgotten of what it rests on.
        said: why it is not whole; empty where it is.
    """

    name: str
    file: str
    sha256: str | None
    state: State = "whole"
    said: str = ""


@dataclass
class _Folder:
    """One run's folder: its files, and what its manifest says of them.

    Attributes:
        path: of the folder.
        called: how findings name it.
        broken: what is not as it was written.
        unverified: files that nothing vouches for.
        uncovered: files that nothing can vouch for, with why.
    """

    path: Path
    called: str
    broken: list[Broken] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)
    uncovered: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def name(self, file: str) -> str:
        return file if self.called == "." else f"{self.called}/{file}"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the manifest says; nothing where it cannot be read."""
        try:
            content = (self.path / MANIFEST).read_bytes()
            manifest = json.loads(content)
            if not isinstance(manifest, dict) or not isinstance(manifest.get("outputs"), dict):
                raise ValueError("no list of outputs")
        except (OSError, ValueError) as error:
            self.broken.append(Broken(self.name(MANIFEST), f"unreadable: {error}"))
            return {"outputs": {}}
        state = seal_of(content)
        if state == "none":
            older = "without the digest of its own bytes: changed, or written by an older Kyomei"
            self.broken.append(Broken(self.name(MANIFEST), older))
        if state == "broken" or CHANGED in manifest:
            since = f", found on {manifest[CHANGED]}" if CHANGED in manifest else ""
            self.broken.append(Broken(self.name(MANIFEST), f"changed by others{since}"))
        return manifest

    @cached_property
    def store(self) -> Store:
        """Where rows and tokens are, as the recipe says; in the folder, where it says nothing that can be read."""
        try:
            address = Recipe.read(self.path / RECIPE).source.store
        except KyomeiError:
            address = None
        return store_at(self.path if address is None or NAMED in self.manifest else address)

    @cached_property
    def _elsewhere(self) -> frozenset[str]:
        """Files at an address; it has to answer, or nothing can be said of the run."""
        if self.store.is_here:
            return frozenset()
        return frozenset([*self.store.names("activations/*/*/*"), *self.store.names("tokens/*/*")])

    def check(self, reporter: Reporter) -> None:
        """Compare every file with the digest that vouches for it."""
        outputs, files = self.manifest["outputs"], {*files_of(self.path, MANIFEST), *self._elsewhere}
        self.broken += [Broken(self.name(name), "missing", outputs[name]) for name in sorted(set(outputs) - set(files))]
        self.uncovered = {self.name(name): why for name, why in uncovered(self.path, MANIFEST).items()}
        with reporter.progress(f"audit {self.called}") as progress:
            for number, name in enumerate(sorted(files), 1):
                self._check_file(name, outputs.get(name))
                progress(number, len(files))
        if (self.path / UNFINISHED).exists() or (self.path / JOURNAL).exists():
            do = "forgetting a document has not ended: run `kyomei forget` again"
            self.broken.append(Broken(self.name(JOURNAL), do))

    def _check_file(self, name: str, expected: str | None) -> None:
        path = self.path / name
        found = self.digests[name] = digest_of(path) if name not in self._elsewhere else self.store.sha256(name)
        if beside(path).exists():
            if beside(path).read_bytes() != digest_line(path):
                self.broken.append(Broken(self.name(name), f"changed: not what {beside(path).name} says", None, found))
        elif expected is not None:
            if expected != found:
                self.broken.append(Broken(self.name(name), "changed", expected, found))
        elif not vouched_for(path):
            self.unverified.append(self.name(name))

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object of the run; nothing where there is none."""
        try:
            values = json.loads(self.store.read(name) if name in self._elsewhere else (self.path / name).read_bytes())
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}


def audit(folder: Path, reporter: Reporter) -> dict[str, Any]:
    """Verify every file of a run, of the runs in it, and of the harvest that it names, and the chain between them.

    Args:
        folder: of a run, a family or a harvest; nothing is written.
        reporter: shows progress.

    Returns:
        "whole" (whether nothing is broken), "broken", "unverified" (files that nothing vouches for), "uncovered"
        (files that do not stay, with why), "unnamed" (artefacts that
        do not say what they are of), "chains" (links by run), "names" (what the run is of) and "forgotten" (tombstones).

    Raises:
        RunError: no run is there, or a process is at work in it.
        AddressError: its rows are at an address that does not answer.
    """
    if not (folder / MANIFEST).is_file():
        raise RunError("the folder of a run", f"no {MANIFEST} in {folder}", "check the path")
    held = {path: _Folder(path, called) for path, called in _folders(folder)}
    for one in held.values():
        refuse_if_locked(one.path)
        one.check(reporter)
    hosts = {path: _host(one, held) for path, one in held.items()}
    chains = {one.called: _Chain(one, hosts[path]).links() for path, one in held.items()}
    links = [link for chain in chains.values() for link in chain]
    broken = [finding for one in held.values() for finding in one.broken]
    broken += [Broken(link.file, link.said, found=link.sha256) for link in links if link.state == "broken"]
    return {
        "run": str(folder),
        "whole": not broken,
        "files": sum(len(one.digests) for one in held.values()),
        "broken": [asdict(finding) for finding in broken],
        "unverified": [name for one in held.values() for name in one.unverified],
        "uncovered": {name: why for one in held.values() for name, why in one.uncovered.items()},
        "unnamed": [name for one in held.values() for name in _unnamed(one)],
        "chains": {called: [asdict(link) for link in chain] for called, chain in chains.items() if chain},
        "names": held[folder].manifest.get(NAMES),
        "forgotten": [entry for one in held.values() for entry in Tombstones.read(one.path).told(one.called)],
    }


def _folders(folder: Path) -> list[tuple[Path, str]]:
    """A run, the runs in it, and the harvests that they name: folder, and how it is called."""
    found = {folder.resolve(): (folder, ".")}
    for path in sorted(folder.rglob(MANIFEST)):
        found.setdefault(path.parent.resolve(), (path.parent, path.parent.relative_to(folder).as_posix()))
    for path, _ in list(found.values()):
        try:
            named = json.loads((path / MANIFEST).read_bytes()).get(NAMED)
            host = (path.resolve() / named["path"]).resolve()
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
        if (host / MANIFEST).is_file() and host not in found:
            found[host] = host, f"harvest {host.name}"
    return list(found.values())


def _host(one: _Folder, held: Mapping[Path, _Folder]) -> _Folder:
    """The folder that holds a run's rows; itself where that is gone, which the chain then says."""
    named = one.manifest.get(NAMED)
    if not isinstance(named, dict):
        return one
    place = (one.path.resolve() / str(named.get("path"))).resolve()
    found = next((other for path, other in held.items() if path.resolve() == place), None)
    if found is None:
        one.broken.append(Broken(one.name(MANIFEST), f"the harvest that it names is not at {named.get('path')}"))
    return found or one


def _unnamed(one: _Folder) -> Iterator[str]:
    """Artefacts that do not say what they are of."""
    if NAMES not in one.manifest:
        yield one.name(MANIFEST)
    for name in one.digests:
        if Path(name).name in _SPEAKING and "warm" not in name and not name.startswith("imported/"):
            values = one.json(name)
            if not (values.get(NAMES) or values.get("provenance", {}).get(NAMES)):
                yield one.name(name)


class _Chain:
    """The links of one run, in the order of the way back."""

    def __init__(self, own: _Folder, host: _Folder) -> None:
        self.own, self.host = own, host
        self._ids: dict[str, str | None] = {}
        self.tombstones = Tombstones.read(own.path).with_those_of(Tombstones.read(host.path))

    def links(self) -> list[Link]:
        own = self.own
        found = [self._made(stage, rests) for stage, rests in own.manifest.get("made_from", {}).items()]
        certificates = [name for name in own.digests if Path(name).name == "certificate.json" and not name.startswith(_EARLIER)]
        found += [self._certificate(name) for name in certificates]
        indices = [name for name in own.digests if name.startswith("explore/") and name.endswith("/index.json")]
        found += [self._rests("index", name, own.json(name).get("made_from", {})) for name in indices]
        directions = [name for name in own.digests if name.endswith("/directions.safetensors")]
        found += [Link("directions", own.name(name), own.digests[name]) for name in directions]
        if self.host is own:
            found += [*self._activations(), *self._tokens(), *self._origins()]
        return sorted(found, key=lambda link: (_place(link.name), link.file))

    def _made(self, stage: str, rests: Mapping[str, str]) -> Link:
        if stage.startswith(("train ", "import ")):
            return self._rests("dictionary", f"{stage.partition(' ')[2]}/sae.safetensors", rests)
        name, file = _MADE.get(stage, (stage, stage))
        return self._rests(name, file, rests)

    def _certificate(self, name: str) -> Link:
        values = self.own.json(name)
        link = self._rests("certificate", name, values.get("data", {}))
        if values.get("expired"):
            return Link(link.name, link.file, link.sha256, "expired", str(values["expired"].get("why")))
        return link

    def _rests(self, name: str, file: str, rests: Mapping[str, str]) -> Link:
        """A link to everything that a file was made from, by name in the run or in its harvest."""
        digest, shown = self.own.digests.get(file), self.own.name(file)
        changed: list[str] = []
        forgotten: list[str] = []
        for path, expected in rests.items():
            if path == "redaction":
                continue
            found = self.own.digests.get(path) or self.host.digests.get(path)
            if found == expected:
                continue
            date = None if found is None else self.tombstones.leads(expected, found)
            if date:
                forgotten.append(f"{path} ({date})")
            else:
                changed.append(f"{path} ({'gone' if found is None else 'another'})")
        if changed:
            return Link(name, shown, digest, "broken", f"made from others than there are now: {', '.join(changed)}")
        if forgotten:
            return Link(name, shown, digest, "expired", f"made before a document was forgotten: {', '.join(forgotten)}")
        return Link(name, shown, digest)

    def _activations(self) -> Iterator[Link]:
        for name in self._named("activations/", "/index.json"):
            index, folder = self.own.json(name), name.removesuffix("/index.json")
            wrong = self._differing(folder, {entry.get("file"): entry.get("sha256") for entry in index.get("shards", ())})
            ids = self._digest_of_ids(folder.split("/")[1])
            if ids and index.get("meta", {}).get("tokens") != ids:
                wrong.append("its tokens are others")
            yield self._told("activations", name, wrong)

    def _tokens(self) -> Iterator[Link]:
        for name in self._named("tokens/", "/index.json"):
            digests = self.own.json(name).get("sha256", {})
            yield self._told("tokens", name, self._differing(name.removesuffix("/index.json"), digests))

    def _origins(self) -> Iterator[Link]:
        """Text and model: what was read of them is known by their digests alone."""
        corpus, model = self.own.manifest.get("corpus"), self.own.manifest.get("model")
        if corpus:
            yield Link("text", f"{corpus.get('documents')} documents", corpus.get("sha256"))
        if model:
            weights = model.get("weights")
            other = [
                name
                for name in self._named("activations/", "/index.json")
                if self.own.json(name).get("meta", {}).get("weights") not in (None, weights)
            ]
            state: State = "broken" if other else "whole"
            yield Link("model", str(model.get("name")), weights, state, f"other weights in {', '.join(other)}" if other else "")

    def _named(self, first: str, last: str) -> Sequence[str]:
        return [name for name in self.own.digests if name.startswith(first) and name.endswith(last)]

    def _differing(self, folder: str, digests: Mapping[Any, Any]) -> list[str]:
        return [f"{name} is another" for name, digest in digests.items() if self.own.digests.get(f"{folder}/{name}") != digest]

    def _digest_of_ids(self, part: str) -> str | None:
        """Of a part's token ids; none where they cannot be read, which their own link says."""
        if part not in self._ids:
            try:
                self._ids[part] = Tokens.load(self.own.store / f"tokens/{part}").sha256()
            except (KyomeiError, OSError, ValueError):
                self._ids[part] = None
        return self._ids[part]

    def _told(self, name: str, file: str, wrong: Sequence[str]) -> Link:
        state: State = "broken" if wrong else "whole"
        return Link(name, self.own.name(file), self.own.digests[file], state, "; ".join(wrong))


def _place(name: str) -> int:
    return _ORDER.index(name) if name in _ORDER else _ORDER.index("premises")
