"""Importing Kyomei is quick and needs no torch."""

from __future__ import annotations

import importlib
import statistics
import subprocess
import sys
import time

import pytest

import kyomei

WITHOUT_TORCH = ["kyomei", "kyomei.errors", "kyomei.config", "kyomei.runs", "kyomei.signals", "kyomei.sinks", "kyomei.cli"]


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_torch_is_not_imported(module: str) -> None:
    heavy = "{'torch', 'transformers', 'scipy', 'pyarrow', 'matplotlib'}"
    loaded = run_python(f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))")
    assert loaded.strip() == "[]"


def test_importing_takes_a_moment() -> None:
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        run_python("pass")
        bare = time.perf_counter() - began
        began = time.perf_counter()
        run_python("import kyomei")
        seconds.append(time.perf_counter() - began - bare)
    print(f"import kyomei: {statistics.median(seconds):.3f} s")
    assert statistics.median(seconds) < 1.5


@pytest.mark.parametrize("name", kyomei.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(kyomei, name)
    assert value is not None
    assert name in dir(kyomei)
    if name != "__version__":
        home = importlib.import_module(value.__module__)
        assert getattr(home, name) is value


def test_a_name_is_loaded_once() -> None:
    assert "Planted" not in run_python("import kyomei; print(vars(kyomei).keys())")
    assert run_python("import kyomei; kyomei.Planted; print('Planted' in vars(kyomei))").strip() == "True"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'kyomei' has no attribute 'Plantde'"):
        _ = kyomei.Plantde
