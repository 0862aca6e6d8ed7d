"""Would Kyomei install and start on every supported Python? A resolver's dry run for each; where an interpreter is there, more.

    python tools/pythons.py WHEEL [VERSION ...]

The resolver takes wheels only, of this kind of machine. An interpreter that is found compiles every source, and shows help and the
recipe from an environment that holds what these need and no torch: the whole suite runs on the Python of `make test`.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
WITHOUT_TORCH = ("pydantic", "PyYAML", "typer", "rich")
"""What `kyomei --help` and `kyomei recipe` import."""


def resolved(wheel: Path, version: str) -> int:
    """Number of packages that pip would install with every extra on a version of Python.

    Args:
        wheel: Kyomei's.
        version: such as 3.12.

    Raises:
        SystemExit: there is no such set of packages.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        wanted = ["--dry-run", "--ignore-installed", "--python-version", version, "--only-binary", ":all:", "--target", folder]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        command = [*pip, "install", "-q", *wanted, "--report", str(report), f"kyomei[all] @ {wheel.resolve().as_uri()}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"Python {version}: {done.stderr[-1000:]}")
        return len(json.loads(report.read_text(encoding="utf-8"))["install"])


def interpreter(version: str) -> str | None:
    """Path of an interpreter of a version on this machine; none: there is none."""
    places = [shutil.which(f"python{version}"), *glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/python"))]
    for place in filter(None, places):
        said = subprocess.run(
            [place, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True
        )
        if said.stdout.strip() == version:
            return place
    return None


def starts(python: str, wheel: Path) -> None:
    """Compile every source with an interpreter, and show help and the recipe without torch.

    Raises:
        CalledProcessError: it does not.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "venv"
        subprocess.run([python, "-m", "venv", str(environment)], check=True)
        own = str(environment / "bin" / "python")
        pip = [own, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        subprocess.run([*pip, *WITHOUT_TORCH], check=True)
        subprocess.run([*pip, "--no-deps", str(wheel)], check=True)
        package = next((environment / "lib").glob("python*/site-packages/kyomei"))
        subprocess.run([own, "-W", "error", "-m", "compileall", "-q", "-f", str(package)], check=True)
        for verb in (["--help"], ["recipe", "--mechanism", "topk"]):
            subprocess.run([own, "-m", "kyomei", *verb], check=True, stdout=subprocess.DEVNULL, cwd=folder)


def main() -> None:
    """Try every version, and print a line for each."""
    wheel, versions = Path(sys.argv[1]), sys.argv[2:] or VERSIONS
    for version in versions:
        python = interpreter(version)
        if python is not None:
            starts(python, wheel)
        state = "not there" if python is None else "compiles and starts"
        print(f"Python {version}: {state}; {resolved(wheel, version)} packages with every extra", flush=True)


if __name__ == "__main__":
    main()
