"""The notebooks run from their first cell to their last."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = "TOKENS, WIDTH, STEPS, NEURONS = 16_000, 64, 30, 64"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a smaller budget; a shell command that fails fails the test, which Jupyter itself would pass over."""
    nbclient = pytest.importorskip("nbclient", reason="notebooks are run by what the dev extra brings")
    nbformat = pytest.importorskip("nbformat")
    book = nbformat.read(path, as_version=4)
    (parameters,) = (cell for cell in book.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = SMALL
    shell = [cell for cell in book.cells if cell.cell_type == "code" and cell.source.startswith("!")]
    assert shell
    for cell in shell:
        cell.source += "\nassert _exit_code == 0, _exit_code"
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
