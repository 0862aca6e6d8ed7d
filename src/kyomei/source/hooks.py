"""What one call of a module takes or gives, as one vector a token: looked at, and replaced."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from kyomei.errors import ModelError
from kyomei.source.hook_names import is_hook_name, place_of
from kyomei.source.sites import Site, module_paths, require_sites

Side = Literal["output", "input"]
Act = Callable[[Tensor], "Tensor | None"]
"""Gets an activation [batch, context, dim], or as the module gives it, and returns one like it, or none."""


def located(model: nn.Module, name: str, side: Side = "output") -> tuple[Site, Side]:
    """The module, its call and the side that a site's name means in a model.

    Args:
        model: holds it.
        name: PATH or PATH#CALL; or a name of TransformerLens', such as blocks.3.hook_resid_pre, which says its own side.
        side: of a module that is named by its path.

    Raises:
        ModelError: it is no such name, or the model has no such place.
    """
    if not is_hook_name(name):
        return Site.parse(name), side
    if side == "input":
        do = "leave the side out, or give the path of a module"
        raise ModelError("a side for module paths only", f"'{name}', which says its own, with side=input", do)
    place = place_of(model, name)
    return Site(place.path), place.side


def require_located(model: nn.Module, sites: Sequence[str], name: str) -> None:
    """Raise ModelError, with near matches, unless a model of this name has every site, and it sees every token."""
    by_path = [site for site in sites if not is_hook_name(site)]
    for site in sites:
        located(model, site)
    require_sites(module_paths(model), by_path, name)


class Calls:
    """How often a module has run in the pass, in the thread that this is made in.

    A hook sits on the module itself, so passes of other threads come by as well: they are none of its business.

    Attributes:
        count: calls in the pass.
        elsewhere: calls in other threads, in all.
    """

    def __init__(self) -> None:
        self.count = self.elsewhere = 0
        self._thread = threading.get_ident()

    def here(self) -> bool:
        """Whether a call is one of this thread; it is counted."""
        if threading.get_ident() == self._thread:
            self.count += 1
            return True
        self.elsewhere += 1
        return False

    def renew(self) -> bool:
        """Begin a pass of this thread; whether it is one."""
        here = threading.get_ident() == self._thread
        self.count = 0 if here else self.count
        return here


class Laid(Protocol):
    """How a site's activation is laid out."""

    def by_token(self, value: Tensor, site: str) -> Tensor: ...

    def as_given(self, new: Tensor, given: Tensor) -> Tensor: ...


@contextlib.contextmanager
def acting(model: nn.Module, name: str, side: Side, layout: Laid, act: Act) -> Iterator[Calls]:
    """Call `act` with the activation at a site in passes of this thread; what it returns, if anything, takes its place.

    Args:
        model: holds the site.
        name: the site, see `located`.
        side: of a module's output, or of what goes in, the first floating-point tensor is the activation.
        layout: how the site lays tokens out.
        act: gets the activation [batch, context, dim], not a copy.

    Yields:
        The calls that the module has had.
    """
    (site, side), calls = located(model, name, side), Calls()

    def handle(value: Any) -> Any:
        """None, or `value` with another activation in it."""
        if not calls.here() or calls.count != site.call + 1:
            return None
        key, tensor = _first_floating(value)
        if tensor is None:
            expected = f"a floating-point tensor in the {side} of '{name}'"
            raise ModelError(expected, type(value).__name__, "choose another site, such as a layer's MLP")
        new = act(layout.by_token(tensor, name))
        return None if new is None else _put(value, key, layout.as_given(new, tensor))

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        if kwargs is None:  # removed by its own thread in the middle of this call of another
            return None
        names = [*range(len(args)), *kwargs]
        new = handle(dict(zip(names, (*args, *kwargs.values()), strict=True)))
        return None if new is None else (tuple(new[i] for i in range(len(args))), {key: new[key] for key in kwargs})

    module = model.get_submodule(site.path)
    if side == "input":
        hook = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        hook = module.register_forward_hook(lambda _, __, output: handle(output))
    try:
        yield calls
    finally:
        hook.remove()


@contextlib.contextmanager
def counting(model: nn.Module, name: str) -> Iterator[Calls]:
    """Count the calls of a site's module."""
    calls = Calls()

    def count(*_: Any) -> None:
        calls.here()

    hook = model.get_submodule(located(model, name)[0].path).register_forward_hook(count)
    try:
        yield calls
    finally:
        hook.remove()


_IDS = ("input_ids", "decoder_input_ids", "inputs_embeds", "decoder_inputs_embeds")


@contextlib.contextmanager
def passes(model: nn.Module, name: str, calls: Calls, begin: Callable[[tuple[int, ...] | None], None]) -> Iterator[None]:
    """Count a module's calls anew in every pass of this thread, and say that one begins.

    Args:
        model: a whole model. A pass begins where it is called, or a model inside it that the module is a part of: generation
            calls an encoder by itself, others call the model below its head.
        name: the site.
        calls: those of its module.
        begin: gets [batch, tokens] of what is read; none where that is not known.
    """

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if kwargs is not None and calls.renew():
            read = next((x for x in (*args[:1], *map(kwargs.get, _IDS)) if isinstance(x, Tensor) and x.ndim >= 2), None)
            begin(None if read is None else tuple(read.shape[:2]))

    parts = located(model, name)[0].path.split(".")
    above = (model.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts)))
    # transformers gives every model, and no layer, this name of what is below its head.
    starts = [model, *(module for module in above if hasattr(module, "base_model_prefix"))]
    hooks = [module.register_forward_pre_hook(note, with_kwargs=True, prepend=True) for module in starts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class AsGiven:
    """Any layout, one vector a token along the last dimension."""

    def by_token(self, value: Float[Tensor, "*tokens dim"], site: str) -> Float[Tensor, "*tokens dim"]:
        """The activation as the module gave it."""
        return value

    def as_given(self, new: Tensor, given: Tensor) -> Tensor:
        """An activation laid out as the module gave it."""
        return new.reshape(given.shape)


class Layout:
    """How a site's activation is laid out for windows of tokens [batch, context].

    A module gives [batch, context, dim], or [batch·context, dim] (OPT's MLP, experts), or [context, batch, dim] (XLNet).

    Args:
        shape: batch and context.
        context_first: whether a place stands before its window; where batch and context differ, the activation tells.
    """

    def __init__(self, shape: Sequence[int], context_first: bool = False) -> None:
        self.batch, self.context = shape
        self.context_first = context_first

    def by_token(self, value: Tensor, site: str) -> Float[Tensor, "batch context dim"]:
        """The activation with a token's window and place first.

        Raises:
            ModelError: it is not one vector a token.
        """
        if value.ndim == 2 and len(value) == self.batch * self.context:
            return value.reshape(self.batch, self.context, -1)
        if value.ndim == 3:
            if self.batch != self.context:
                self.context_first = value.shape[:2] == (self.context, self.batch)
            by_token = value.transpose(0, 1) if self.context_first else value
            if by_token.shape[:2] == (self.batch, self.context):
                return by_token
        expected = f"one vector a token, [{self.batch}, {self.context}, dim], at '{site}'"
        do = "choose another site, such as a layer's MLP"
        if value.ndim == 3 and len(value) == self.batch and value.shape[1] > self.context:
            do = f"set source.context to {value.shape[1]}, if the model fills windows up to that; else choose another site"
        raise ModelError(expected, f"shape {list(value.shape)}", do)

    def as_given(self, new: Float[Tensor, "batch context dim"], given: Tensor) -> Tensor:
        """An activation laid out as the module gave it."""
        return (new.transpose(0, 1) if self.context_first and given.ndim == 3 else new).reshape(given.shape)


def _first_floating(value: Any) -> tuple[Any, Tensor | None]:
    """The first floating-point tensor in what a module takes or gives, and its key there (none: it is the whole)."""
    if isinstance(value, Tensor):
        return None, value if value.is_floating_point() else None
    if isinstance(value, Mapping):
        items: Any = value.items()
    else:
        items = enumerate(value) if isinstance(value, tuple | list) else ()
    return next(((k, v) for k, v in items if isinstance(v, Tensor) and v.is_floating_point()), (None, None))


def _put(value: Any, key: Any, new: Tensor) -> Any:
    """`value` with `new` at `key`."""
    if key is None:
        return new
    if isinstance(value, tuple):
        parts = (*value[:key], new, *value[key + 1 :])
        return type(value)(*parts) if hasattr(value, "_fields") else parts
    # A list or a mapping, such as transformers' outputs, was made for this call.
    value[key] = new
    return value
