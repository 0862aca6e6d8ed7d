"""How much a package installs beside torch: number of packages and megabytes, as pip's records have it.

    python tools/install_size.py NAME [SITE-PACKAGES]

NAME and everything that it asks for, in an environment where it is installed; the bytes of every file that pip wrote, compiled
ones included. Said twice: without torch, and without torch and what torch itself asks for.
"""

from __future__ import annotations

import sys
import sysconfig
from importlib.metadata import Distribution, distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(root: str, there: dict[str, Distribution]) -> set[str]:
    """Names of the distributions that one needs, its own included."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(canonicalize_name(root), frozenset[str]())]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen or name not in there:
            continue
        seen.add((name, extras))
        for requirement in map(Requirement, there[name].requires or []):
            asked = requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras})
            if asked:
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in seen}


def megabytes(names: set[str], there: dict[str, Distribution]) -> float:
    """What their files take."""
    files = (there[name].locate_file(file) for name in names for file in there[name].files or [])
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6  # type: ignore[attr-defined]


def main() -> None:
    """Count and print."""
    place = sys.argv[2] if len(sys.argv) > 2 else sysconfig.get_paths()["purelib"]
    there = {canonicalize_name(found.metadata["Name"]): found for found in distributions(path=[place])}
    root, torch = canonicalize_name(sys.argv[1]), closure("torch", there)
    if root not in there:
        raise SystemExit(f"Expected {sys.argv[1]} in {place}. Found no such package. Install it there.")
    for words, names in (("without torch", {"torch"}), ("without torch and what it asks for", torch)):
        rest = closure(root, there) - names
        print(f"{root} {there[root].version} {words}: {len(rest)} packages, {megabytes(rest, there):.0f} MB")


if __name__ == "__main__":
    main()
