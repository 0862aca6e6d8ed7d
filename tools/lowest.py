"""Print the lowest version of every dependency that pyproject.toml allows, as pip's requirements; torch is left out.

python tools/lowest.py [EXTRA ...] > pins.txt
"""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest(lines: list[str]) -> list[str]:
    """Each requirement at its lower bound.

    Args:
        lines: requirements; each says `>=`.
    """
    pins = []
    for requirement in map(Requirement, lines):
        bounds = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        if not bounds:
            raise SystemExit(f"Expected a lower bound. Found {requirement}. Say what was tested.")
        if requirement.name != "torch":
            pins.append(f"{requirement.name}=={bounds[0]}" + (f" ; {requirement.marker}" if requirement.marker else ""))
    return pins


def main() -> None:
    """Print the core's pins, and those of the extras that are named."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in sys.argv[1:]:
        lines += project["optional-dependencies"][extra]
    print("\n".join(lowest(lines)))


if __name__ == "__main__":
    main()
