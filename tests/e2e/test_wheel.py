"""The wheel works where there is no checkout: typed, with its data, importable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="the build backend comes with the dev extra")

CHECKOUT = Path(__file__).parents[2]
PACKAGE = CHECKOUT / "src" / "kyomei"
SCRIPT = """
import importlib, pathlib, sys
import kyomei
home = pathlib.Path(kyomei.__file__).parent
assert home == pathlib.Path(sys.argv[1]) / "kyomei", home
for name in kyomei.__all__:
    assert getattr(kyomei, name) is not None, name
x, h = kyomei.Planted(n_features=16, dim=8, active=2).sample(100, seed=0)
assert x.shape == (100, 8)
from kyomei.__main__ import main
"""


def run(*command: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def data_files() -> list[str]:
    """What the package holds beside its Python sources, relative to the folder that holds the package."""
    found = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    return sorted(path.relative_to(PACKAGE.parent).as_posix() for path in found)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(CHECKOUT)]
    run(*build, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_the_notice_names_every_licence_of_what_is_vendored() -> None:
    notice = (CHECKOUT / "NOTICE").read_text(encoding="utf-8")
    listed = json.loads((PACKAGE / "views" / "web" / "vendor.json").read_text(encoding="utf-8"))["libraries"]
    for library in listed:
        assert library["name"].split()[0].lower() in notice.lower(), library["name"]
    for folder in ("src/kyomei/views/web/vendor", "tests/browser/vendor"):
        assert f"in {folder}" in notice.replace("\n", " ")
        for licence in (CHECKOUT / folder).glob("*.LICENSE"):
            assert licence.stem.lower() in notice.lower(), licence
    assert "src/kyomei/source/embedded" in notice and "Python Software Foundation" in notice


@pytest.mark.slow
def test_everything_in_the_package_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*.py")}
    assert sources <= names
    assert set(data_files()) <= names
    assert "kyomei/py.typed" in names
    licences = {name.partition(".dist-info/licenses/")[2] for name in names if ".dist-info/licenses/" in name}
    assert {"LICENSE", "NOTICE"} <= licences
    assert {path.name for path in PACKAGE.rglob("*.LICENSE")} <= {Path(name).name for name in licences}
    assert not any(name.startswith(("tests/", "tools/", "src/")) or "__pycache__" in name for name in names)


@pytest.mark.slow
def test_the_embedded_model_is_in_the_wheel(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    embedded = [name for name in archive.namelist() if name.startswith("kyomei/source/embedded/")]
    files = {name.removeprefix("kyomei/source/embedded/") for name in embedded}
    assert {"held_out.json", "model/config.json", "model/model.safetensors", "model/tokenizer.json"} <= files
    assert sum(archive.getinfo(name).file_size for name in embedded) < 13e6


@pytest.mark.slow
def test_it_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    run(*pip, "--target", str(target), str(wheel), cwd=tmp_path)
    code = f"import sys; sys.path.insert(0, sys.argv[1])\n{SCRIPT}"
    run(sys.executable, "-c", code, str(target), cwd=tmp_path)
    entry_points = next(target.glob("kyomei-*.dist-info")) / "entry_points.txt"
    assert "kyomei = kyomei.__main__:main" in entry_points.read_text()


@pytest.mark.sweep
def test_sdist_and_wheel_are_installed_into_a_clean_environment_and_work(tmp_path: Path) -> None:
    """Fetches what the core needs from the package index: minutes, and the only test that needs one."""
    built, environment = tmp_path / "built", tmp_path / "venv"
    # Without --wheel, the wheel is built out of the sdist: what the sdist lacks is missed here.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(built), str(CHECKOUT), cwd=tmp_path)
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "NOTICE", "LICENSE", "README.md", "Makefile", "tests/conftest.py", "docs/results.md"} <= inside
    run(sys.executable, "-m", "venv", str(environment), cwd=tmp_path)
    pip = [
        str(environment / "bin" / "pip"),
        "--disable-pip-version-check",
        "install",
        "-q",
        "-c",
        str(CHECKOUT / "constraints.txt"),
    ]
    run(*pip, "torch", cwd=tmp_path)
    run(*pip, str(wheel), cwd=tmp_path)
    kyomei = str(environment / "bin" / "kyomei")
    packages = {check["name"]: check for check in json.loads(run(kyomei, "doctor", "--json", cwd=tmp_path))["checks"]}
    assert not [check for check in packages.values() if check["state"] == "fails"]
    assert packages["kyomei[explore]"]["state"] == packages["kyomei[figures]"]["state"] == "note"
    assert str(environment) in packages["kyomei"]["found"]
    planted = run(
        kyomei, "planted", "--features", "16", "--dim", "12", "--active", "2", "--rows", "4000", "--json", cwd=tmp_path
    )
    assert json.loads(planted)
    small = ["--tokens", "20000", "--set", "dictionary.width=64", "--set", "train.steps=20"]
    small += ["--set", "resonance.neurons=64", "--set", "resonance.rounds=1", "--set", "resonance.steps=3"]
    run(kyomei, "train", "runs/first", *small, cwd=tmp_path)
    for verb in ("certify", "measure", "report"):
        run(kyomei, verb, "runs/first", cwd=tmp_path)
    assert (tmp_path / "runs" / "first" / "report.html").stat().st_size > 10_000
    refused = subprocess.run([kyomei, "explore", "runs/first"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "pip install 'kyomei[explore]'" in refused.stderr
