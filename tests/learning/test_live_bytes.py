"""No rank holds more than its share: tensors and arrays are counted where they are made, on one of four ranks and alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.bench_scripts import bench_script
from torch import Tensor

from kyomei.learning.mesh import Mesh
from kyomei.source.rows import Rows, open_rows

T = TypeVar("T")
WIDTH, NARROW, ROWS = 4096, 512, 256
WORK = ("placement", "comparison", "fit")
SHARES = {"placement": 0.29, "comparison": 0.25, "fit": 0.33}
"""What is measured at this width, and less than one matrix of all latents in place of a rank's quarter would bring it to."""
MOST = {"placement": 3_400_000, "comparison": 4_700_000, "fit": 2_800_000}
"""Bytes that a rank of four holds, and a little. A share alone would ask more of a rank whenever one process needs less."""


class OneOfFour:
    """The first rank of four whose others have nothing to say: what it is sent has the sizes of theirs."""

    rank, size, leads = 0, 4, True

    def share(self, total: int) -> slice:
        return slice(0, total // 4)

    def tell(self, value: T) -> list[T]:
        return [value] * 4

    def first(self, work: Callable[[], T]) -> T:
        return work()

    def joined(self, x: Tensor) -> Tensor:
        return torch.cat([x] * 4)

    def sum_over_all(self, x: Tensor) -> Tensor:
        return 4 * x

    def from_rank(self, source: int, x: Tensor) -> Tensor:
        return x.detach().clone() if source == 0 else torch.zeros_like(x)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """Most bytes at once of each piece of work, on one rank and on one of four."""
    bench, counted = bench_script("placement"), bench_script("live_bytes")
    folders = {width: tmp_path_factory.mktemp("made") for width in (WIDTH, NARROW)}
    for width, folder in folders.items():
        bench.make(folder, width, ROWS)

    def most(name: str, mesh: Any, width: int = WIDTH) -> int:
        rows: Rows = open_rows(folders[width] / "rows.npy")
        with counted.LiveBytes() as live:
            bench.WORK[name](folders[width], rows, mesh, width)
        return int(live.most)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("kyomei.learning.anchoring.anchored_decoders.__defaults__", (2,))  # sweeps are alike
        [most(name, OneOfFour(), NARROW) for name in WORK]  # what libraries take when they are first used
        return {name: (most(name, Mesh()), most(name, OneOfFour())) for name in WORK}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORK)
def test_a_rank_holds_its_share(name: str, held: dict[str, tuple[int, int]]) -> None:
    """Blocks cost the same on every rank and weigh more at this small width: bench/placement.py has the shares of wide ones."""
    alone, of_four = held[name]
    assert of_four <= min(MOST[name], SHARES[name] * alone), (alone, of_four)


def test_what_is_counted_is_what_lives() -> None:
    with bench_script("live_bytes").LiveBytes() as live:
        one = torch.zeros(1000, dtype=torch.float64)
        view, other = one[:10], one.numpy().copy()
        assert live.most >= 16_000
        del one, view, other
        torch.zeros(500)
    assert 16_000 <= live.most < 20_000


def test_what_a_file_is_mapped_to_is_not_counted(tmp_path: Path) -> None:
    save_file({"rows": torch.ones(1_000_000)}, tmp_path / "rows.safetensors")
    counted = bench_script("live_bytes")
    with counted.LiveBytes() as live, safe_open(tmp_path / "rows.safetensors", "pt") as file:
        mapped = file.get_tensor("rows")
        assert live.most < 2_000_000
        copied = mapped.clone()
        assert live.most >= 4_000_000
    assert torch.equal(mapped, copied)
