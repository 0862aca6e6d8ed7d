"""What a caller has set in PyTorch for work of their own, put aside while ours is done."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_LOCK = threading.Lock()
_asides: list[torch.dtype] = []
"""The caller's default dtype, once for every call under way: the first puts it aside, the last puts it back."""


def undisturbed(work: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """The same function with gradients on, float32 the default and no autocast, whatever the caller has set.

    Modes belong to a thread. The default dtype belongs to the process, so two calls in two threads share one change of it.
    """

    @functools.wraps(work)
    def alone(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with torch.inference_mode(False), torch.enable_grad(), contextlib.ExitStack() as stack:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            stack.enter_context(_float32_by_default())
            return work(*args, **kwargs)

    return alone


@contextlib.contextmanager
def _float32_by_default() -> Iterator[None]:
    with _LOCK:
        _asides.append(_asides[0] if _asides else torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        with _LOCK:
            given = _asides.pop()
            if not _asides:
                torch.set_default_dtype(given)
