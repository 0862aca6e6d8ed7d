"""A device that is not there: its tensors compute as the CPU's do, and meeting one of the CPU is an error, as on a GPU.

torch calls it "meta". It finds what a machine without a GPU otherwise cannot: tensors made on the wrong device, and NumPy asked
for what lies elsewhere. What it does not have are kernels, streams and memory of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FAR = "meta"
_MOVES = {"_to_copy", "copy_", "to"}
_INDEXES = {"index", "index_put", "index_put_"}


class Far(Tensor):
    """A tensor that lies elsewhere."""

    @staticmethod
    def __new__(cls, here: Tensor) -> Far:
        layout: dict[str, Any] = {"layout": here.layout}
        if here.layout == torch.strided:
            layout = {"strides": here.stride(), "storage_offset": here.storage_offset()}
        made: Far = Tensor._make_wrapper_subclass(cls, here.shape, dtype=here.dtype, device=FAR, **layout)  # type: ignore[attr-defined]
        made.here = here
        return made

    here: Tensor
    is_meta = False

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Far({self.here!r})"

    def tolist(self) -> Any:
        return self.here.tolist()

    def numpy(self, *args: Any, **options: Any) -> Any:
        raise TypeError("can't convert a far tensor to numpy; use Tensor.cpu() first")

    def __array__(self, *args: Any, **options: Any) -> Any:
        return self.numpy()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Made(TorchFunctionMode):
    """Tensors of given numbers, which no operator makes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.new_tensor:
            func, args, kwargs = torch.tensor, args[1:], {"dtype": args[0].dtype, "device": args[0].device, **kwargs}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == FAR:
            return func(*args, **{**kwargs, "device": "cpu"}).to(FAR)
        return func(*args, **kwargs)


class FarDevice(TorchDispatchMode):
    """While it is entered, tensors can be made on and moved to the far device."""

    def __enter__(self) -> FarDevice:
        self.made = _Made()
        self.made.__enter__()
        entered: FarDevice = super().__enter__()
        return entered

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.made.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    far = [one for one in tensors if isinstance(one, Far)]
    # Numbers may lie anywhere, and so may what indexes a far tensor.
    near = [one for one in tensors if not isinstance(one, Far) and one.dim() > 0]
    indexed = name in _INDEXES and isinstance(args[0], Far)
    if far and near and name not in _MOVES and not indexed:
        raise RuntimeError(f"{func}: expected all tensors on one device")
    device = kwargs.get("device")
    here = tree_map(lambda one: one.here if isinstance(one, Far) else one, (args, kwargs))
    options = here[1] if device is None else {**here[1], "device": "cpu"}
    found = func(*here[0], **options)
    if "out" in kwargs:
        return kwargs["out"]
    if name.endswith("_") and not name.endswith("__"):
        return args[0]
    lies_far = bool(far) if device is None else torch.device(device).type == FAR
    return tree_map(lambda one: Far(one) if isinstance(one, Tensor) and lies_far else one, found)
