"""Would Kyomei install and start on every supported Python? A resolver's dry run for each; where an interpreter is there, more.

    python tools/pythons.py WHEEL [--tests] [VERSION ...]

The resolver takes wheels only, of this kind of machine. An interpreter that is found compiles every source, and shows help and the
recipe from an environment that holds what these need and no torch: the whole suite runs on the Python of `make test`. With --tests
it gets everything, torch included (on Linux gigabytes for each version), and runs a part of the tests on the installed wheel.
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
WITH_TORCH = ("explore", "gguf", "figures")
TESTS = (
    *("tests/test_*.py", "tests/dictionary", "tests/source/test_rows.py", "tests/source/test_model.py"),
    *("tests/evidence/test_certificate.py", "tests/views/test_report.py", "tests/views/test_server.py"),
)
"""These meet every room of the package; `make lowest` runs more."""
FOR_TESTS = (
    *("pytest", "hypothesis", "psutil", "packaging", "hatchling", "build", "httpx"),
    *("tomli ; python_version < '3.11'", "httpx2 ; python_version >= '3.11'"),
)


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

    Args:
        python: path of the interpreter.
        wheel: Kyomei's.

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


def tested(python: str, wheel: Path) -> str:
    """Run a part of the tests, of the checkout that this is called in, with an interpreter on the installed wheel.

    Args:
        python: path of the interpreter.
        wheel: Kyomei's.

    Returns:
        pytest's last line.

    Raises:
        SystemExit: a test fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        own = str(Path(folder) / "bin" / "python")
        whole = f"kyomei[{','.join(WITH_TORCH)}] @ {wheel.resolve().as_uri()}"
        subprocess.run([own, "-m", "pip", "--disable-pip-version-check", "install", "-q", whole, *FOR_TESTS], check=True)
        tests = [path for pattern in TESTS for path in sorted(glob.glob(pattern))]
        chosen = ["-m", "not slow and not sweep and not real and not peers", "-p", "no:cacheprovider", *tests]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [own, "-m", "pytest", "-q", *chosen], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"{python}: {done.stdout[-3000:]}{done.stderr[-1000:]}")
        return done.stdout.strip().splitlines()[-1]


def main() -> None:
    """Try every version, and print a line for each."""
    given = [word for word in sys.argv[1:] if word != "--tests"]
    wheel, versions = Path(given[0]), given[1:] or VERSIONS
    for version in versions:
        python, state = interpreter(version), "not there"
        if python is not None:
            starts(python, wheel)
            state = "compiles and starts"
            if "--tests" in sys.argv:
                state += f"; {tested(python, wheel)}"
        print(f"Python {version}: {state}; {resolved(wheel, version)} packages with every extra", flush=True)


if __name__ == "__main__":
    main()
