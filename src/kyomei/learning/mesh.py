"""A mesh of ranks, data × features, on torch.distributed: who holds which rows and latents, and what they tell each other.

Rank r holds data part r // features of every batch and feature part r % features of the latents. Each step needs one
all-reduce of the reconstruction (rows × dim) over the ranks that hold other latents of the same rows, and one of the gradients
over those that hold other rows of the same latents; thresholds, counts and rows of the dictionary stay where they are. A mesh
of one rank talks to nobody.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from kyomei import errors
from kyomei.errors import KyomeiError, RecipeError, RunError
from kyomei.provenance import processes

TIMEOUT_SECONDS = 600
"""A rank that says nothing for so long is lost; one that dies is noticed at once."""
PATIENCE = timedelta(days=7)
"""How long ranks wait where one of them reads a whole corpus, or has a slower device: only a dead rank is lost there."""

T = TypeVar("T")


@contextlib.contextmanager
def _loss_named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        do = "look at the first message of the rank that ended first; then give the same command again, with --resume"
        raise RunError("all ranks of the mesh", f"a lost rank ({first})", do) from error


@dataclass(frozen=True)
class Mesh:
    """Ranks that train one dictionary together; see the module. It is also the mechanisms' `Reduce`.

    Attributes:
        data: parts of every batch.
        features: parts of the latents.
        rank: this process, from 0.
        device: where collectives run.
    """

    data: int = 1
    features: int = 1
    rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _groups: tuple[Any, Any] = (None, None)

    @classmethod
    def join(cls, data: int, features: int, device: torch.device | str = "cpu") -> Mesh:
        """The mesh of the processes that torchrun started; all of them must call this.

        Raises:
            RecipeError: if data × features is not the number of processes.
        """
        size = processes()
        if data * features != size:
            found = f"{data} × {features} on {size} process(es)"
            raise RecipeError(
                "mesh.data × mesh.features processes", found, f"start it with torchrun --nproc-per-node {data * features}"
            )
        device = torch.device(device)
        if size == 1:
            return cls(device=device)
        _meet(size, device, timedelta(seconds=TIMEOUT_SECONDS))
        rank = dist.get_rank()
        # Every rank has to make every group, in one order.
        rows = [dist.new_group([d * features + f for d in range(data)]) for f in range(features)]
        latents = [dist.new_group([d * features + f for f in range(features)]) for d in range(data)]
        return cls(data, features, rank, device, (rows[rank % features], latents[rank // features]))

    @classmethod
    def side_by_side(cls, device: torch.device | str = "cpu") -> Mesh:
        """The same for work that ranks share out and do each by itself: they exchange words, and wait however long it takes.

        Args:
            device: where each works; of several GPUs of a machine each process takes its own.
        """
        size = processes()
        if size == 1:
            return cls()
        _choose_gpu(torch.device(device))
        _meet(size, torch.device("cpu"), PATIENCE)
        return cls(size, 1, dist.get_rank(), torch.device("cpu"))

    def leave(self) -> None:
        """Part from the other ranks, once all is done."""
        if self.size > 1:
            self.wait()
            dist.destroy_process_group()

    @property
    def size(self) -> int:
        return self.data * self.features

    @property
    def leads(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        return self.rank // self.features

    @property
    def feature_rank(self) -> int:
        return self.rank % self.features

    def latents(self, width: int) -> slice:
        """This rank's latents.

        Raises:
            RecipeError: if the width is not a multiple of the feature parts.
        """
        return _part(width, self.features, self.feature_rank, "dictionary.width", "mesh.features")

    def rows(self, batch_rows: int) -> slice:
        """This rank's rows of a batch.

        Raises:
            RecipeError: if the batch is not a multiple of the data parts.
        """
        return _part(batch_rows, self.data, self.data_rank, "train.batch_rows", "mesh.data")

    # Reduce

    def sum_over_rows(self, x: Tensor) -> Tensor:
        return x if self.data == 1 else self._reduced(x, dist.ReduceOp.SUM, self._groups[0])

    def max_over_rows(self, x: Tensor) -> Tensor:
        return x if self.data == 1 else self._reduced(x, dist.ReduceOp.MAX, self._groups[0])

    def sum_over_latents(self, x: Tensor) -> Tensor:
        """Differentiable: every rank's part has the gradient of the sum."""
        if self.features == 1:
            return x
        summed: Tensor = _Sum.apply(x, lambda part: self._reduced(part, dist.ReduceOp.SUM, self._groups[1]))  # type: ignore[no-untyped-call]
        return summed

    def gather_latents(self, x: Float[Tensor, "rows best"]) -> Float[Tensor, "rows all_best"]:
        return x if self.features == 1 else torch.cat(self._gathered(x, self._groups[1], self.features), dim=1)

    def gather_all(self, x: Float[Tensor, " best"]) -> Float[Tensor, " all_best"]:
        return x if self.size == 1 else torch.cat(self._gathered(x, None, self.size))

    # What training and resonance need beside that

    def sum_over_all(self, x: Tensor) -> Tensor:
        """Elementwise sum over all ranks."""
        return x if self.size == 1 else self._reduced(x, dist.ReduceOp.SUM, None)

    def whole(self, x: Float[Tensor, "part ..."]) -> Float[Tensor, "width ..."]:
        """The latents of all feature parts, one under the other, on every rank; parts may differ in length."""
        return x if self.features == 1 else self._stacked(x, self._groups[1], self.features)

    def share(self, total: int) -> slice:
        """This rank's part of what all ranks share out, in order and as evenly as it goes."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def joined(self, x: Float[Tensor, "own ..."]) -> Float[Tensor, "total ..."]:
        """The shares of all ranks, one under the other, on every rank."""
        return x if self.size == 1 else self._stacked(x, None, self.size)

    def in_parts(self, run: Callable[[Tensor], tuple[Tensor, ...]], w: Float[Tensor, "neurons dim"]) -> tuple[Tensor, ...]:
        """What a function makes of rows that do not depend on one another, each rank doing its share."""
        if self.size == 1:
            return run(w)
        own = run(w.tensor_split(self.size)[self.rank])
        return tuple(self._stacked(part, None, self.size) for part in own)

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            with _loss_named():
                dist.barrier()

    def tell(self, value: Any) -> list[Any]:
        """A small plain value of every rank, in order of ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _loss_named():
            dist.all_gather_object(values, value)
        return values

    def first(self, work: Callable[[], T]) -> T | None:
        """What the leading rank's work gives, none on the others, which wait for it.

        Raises:
            KyomeiError: the leading rank was refused; the others say the same, as each may have a log of its own.
        """
        if self.size == 1:
            return work()
        found, refusal = None, None
        if self.leads:
            try:
                found = work()
            except KyomeiError as error:
                refusal = error
        said = None if refusal is None else (type(refusal).__name__, refusal.expected, refusal.found, refusal.do)
        said = self.tell(said)[0]
        if refusal is not None:
            raise refusal
        if said is not None:
            raise getattr(errors, said[0])(*said[1:])
        return found

    def exchange(self, parts: Sequence[Float[Tensor, "_ dim"]], lengths: Sequence[int]) -> list[Float[Tensor, "_ dim"]]:
        """What every rank has for this one: part i goes to rank i, and `lengths` says how many rows come from each."""
        if self.size == 1:
            return list(parts)
        sent = torch.cat(list(parts)).to(self.device).contiguous()
        came = sent.new_empty((sum(lengths), *sent.shape[1:]))
        with _loss_named():
            dist.all_to_all_single(came, sent, list(lengths), [len(part) for part in parts])
        return list(torch.split(came.to(parts[0].device), list(lengths)))

    def from_rank(self, source: int, x: Tensor) -> Tensor:
        """What one rank has, on all; the others give a tensor of its shape and dtype."""
        if self.size == 1:
            return x
        moved = x.detach().to(self.device).contiguous()
        with _loss_named():
            dist.broadcast(moved, source)
        return moved.to(x.device)

    def _reduced(self, x: Tensor, operation: Any, group: Any) -> Tensor:
        moved = x.detach().to(self.device, copy=True).contiguous()
        with _loss_named():
            dist.all_reduce(moved, op=operation, group=group)
        return moved.to(x.device)

    def _gathered(self, x: Tensor, group: Any, count: int) -> list[Tensor]:
        own = x.detach().to(self.device).contiguous()
        parts = [torch.empty_like(own) for _ in range(count)]
        with _loss_named():
            dist.all_gather(parts, own, group=group)
        return [part.to(x.device) for part in parts]

    def _stacked(self, x: Tensor, group: Any, count: int) -> Tensor:
        flat = x.to(torch.uint8) if x.dtype == torch.bool else x
        lengths = [int(part) for part in self._gathered(torch.tensor([len(flat)]), group, count)]
        longest = flat.new_zeros((max(lengths), *flat.shape[1:]))
        longest[: len(flat)] = flat.detach()
        parts = self._gathered(longest, group, count)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)]).to(x.dtype)


def _choose_gpu(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def _meet(size: int, device: torch.device, patience: timedelta) -> None:
    """Let all processes find each other."""
    if dist.is_initialized():
        return
    _choose_gpu(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    met = timedelta(seconds=TIMEOUT_SECONDS)
    with _loss_named():
        dist.init_process_group(backend, store=_store(met), rank=int(os.environ["RANK"]), world_size=size, timeout=patience)


def _store(timeout: timedelta) -> Any:
    """Where ranks find each other. torchrun keeps it over restarts: without a name of its own for each, ranks that were started
    again would call at the addresses of the dead."""
    env = os.environ
    kept_by_torchrun = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    stores: Any = dist
    store = stores.TCPStore(
        env["MASTER_ADDR"],
        int(env["MASTER_PORT"]),
        int(env["WORLD_SIZE"]),
        not kept_by_torchrun and env["RANK"] == "0",
        timeout,
        wait_for_workers=False,
    )
    start = f"{env.get('TORCHELASTIC_RUN_ID', '')}/{env.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return stores.PrefixStore(f"kyomei/{start}", store)


class _Sum(torch.autograd.Function):
    """A sum over ranks whose gradient reaches every part as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reduced: Callable[[Tensor], Tensor]) -> Tensor:
        return reduced(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _part(total: int, parts: int, number: int, name: str, by: str) -> slice:
    if total % parts:
        raise RecipeError(f"{name} a multiple of {by} ({parts})", f"{total}", f"change {name} or {by}")
    size = total // parts
    return slice(number * size, (number + 1) * size)
