"""The wheel works where there is no checkout: typed, with its data, importable."""

from __future__ import annotations

import os
import subprocess
import sys
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


@pytest.mark.slow
def test_everything_in_the_package_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*.py")}
    assert sources <= names
    assert set(data_files()) <= names
    assert "kyomei/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
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
