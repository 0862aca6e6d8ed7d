"""A language model up to its deepest site alone: where it may end, and which model it is although the rest is not in memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from kyomei.errors import ModelError
from kyomei.source.hooks import located, require_located
from kyomei.source.sites import default_site

_SAMPLED = 64
"""Numbers of a weight that go into a digest."""


def fingerprint(weights: Iterable[tuple[str, Sequence[int], Tensor]]) -> str:
    """Digest of weights, each by its name, its shape and its `sampled` numbers."""
    digest = hashlib.sha256()
    for name, shape, sample in weights:
        digest.update(f"{name} {list(shape)}".encode() + sample.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def sampled(weight: Tensor) -> Tensor:
    """Some numbers of a weight, spread over all of it."""
    flat = weight.detach().flatten()
    return flat[:: max(1, len(flat) // _SAMPLED)]


class Absent(nn.Module):
    """Stands where a layer was not loaded; a pass that gets this far fails."""

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        found = "one that was loaded up to its deepest site alone"
        raise ModelError("a whole language model", found, "load it without naming sites")


@dataclass(frozen=True)
class Depth:
    """Up to where a model is loaded.

    What stands in place of the other layers fails when it runs, so a pass that ends before it is that of the whole model.

    Attributes:
        stack: path of the list of layers that has the sites.
        loaded: how many of them there are, from the first on.
        outline: all modules of the whole model, without numbers in them.
        sites: that it is loaded for.
    """

    stack: str
    loaded: int
    outline: nn.Module
    sites: tuple[str, ...]

    @classmethod
    def of(cls, outline: nn.Module, sites: Sequence[str], name: str) -> Depth | None:
        """The least that has all sites; none: they are not in one list of layers, or all of it is needed.

        Args:
            outline: the whole model, on any device.
            sites: as `LanguageModel.capture` takes them; none: the default.
            name: the model's.

        Raises:
            ModelError: it has no such site.
        """
        sites = tuple(sites) or (default_site(outline, name),)
        require_located(outline, sites, name)
        places = [located(outline, site)[0] for site in sites]
        found = [_layer_with(outline, place.path) for place in places]
        if None in found or any(place.call for place in places):
            return None
        stacks, numbers = zip(*(layer for layer in found if layer is not None), strict=True)
        loaded, blocks = max(numbers) + 1, outline.get_submodule(stacks[0])
        whole = len(set(stacks)) > 1 or not isinstance(blocks, nn.ModuleList) or loaded == len(blocks)
        return None if whole else cls(stacks[0], loaded, outline, sites)

    def __str__(self) -> str:
        return f"the first {self.loaded} of {self.num_layers} layers"

    @property
    def num_layers(self) -> int:
        """Of the whole model, in the list that has the sites."""
        return len(self.outline.get_submodule(self.stack))  # type: ignore[arg-type]

    def lacks(self, path: str) -> bool:
        """Whether a module or a weight is in a layer that is not loaded."""
        number = path.removeprefix(f"{self.stack}.").split(".")[0]
        return path.startswith(f"{self.stack}.") and int(number) >= self.loaded

    def require(self, sites: Sequence[str]) -> None:
        """Raise ModelError unless sites are in what is loaded."""
        for site in sites:
            if self.lacks(located(self.outline, site)[0].path):
                found = f"'{site}', below layer {self.loaded} of {self.num_layers}, the last that was loaded"
                raise ModelError(f"a site up to {', '.join(self.sites)}", found, "name it when the model is loaded")

    def shortened(self, family: type[nn.Module]) -> Any:
        """A class of transformers whose models lack the other layers from the beginning: no weights are read for them."""

        def build(model: Any, *arguments: Any, **named: Any) -> None:
            family.__init__(model, *arguments, **named)
            blocks = model.get_submodule(self.stack)
            for number in range(self.loaded, len(blocks)):
                blocks[number] = Absent()

        inside = self.stack.removeprefix(f"{getattr(family, 'base_model_prefix', '')}.")
        numbers = "|".join(map(str, range(self.loaded, self.num_layers)))
        others = rf"(^|\.){re.escape(inside)}\.({numbers})\."
        ignored = [*(getattr(family, "_keys_to_ignore_on_load_unexpected", None) or ()), others]
        own = {"__init__": build, "__module__": family.__module__, "_keys_to_ignore_on_load_unexpected": ignored}
        return type(family.__name__, (family,), own)

    def fingerprint(self, model: nn.Module, files: Sequence[Path]) -> str | None:
        """That of the whole model, what is not loaded read from its files here and there; none: it cannot be told.

        It can be told where every weight that is not loaded lies in a file under its own name, and those of the layers that are
        loaded show that weights of that kind are taken as they are.

        Args:
            model: loaded so far.
            files: safetensors that the whole model consists of.
        """
        weights = dict(model.named_parameters())
        names = [(name, weight.shape) for name, weight in self.outline.named_parameters()]
        if [name for name, _ in names if not self.lacks(name)] != list(weights):
            return None
        asked = {name: shape for name, shape in names if name.startswith(f"{self.stack}.")}
        stored = dict(_samples(files, asked, getattr(self.outline, "base_model_prefix", "")))
        kinds = {self._kind(name) for name in asked if not self.lacks(name)}
        for name in asked:
            if name not in stored or self._kind(name) not in kinds:
                return None
            if name in weights and not torch.equal(sampled(weights[name]).cpu(), stored[name].to(weights[name].dtype)):
                return None
        dtypes = {self._kind(name): weights[name].dtype for name in asked if name in weights}
        samples = (
            (name, shape, stored[name].to(dtypes[self._kind(name)]) if self.lacks(name) else sampled(weights[name]))
            for name, shape in names
        )
        return fingerprint(samples)

    def _kind(self, name: str) -> str:
        """A weight's name inside its layer."""
        return name.removeprefix(f"{self.stack}.").partition(".")[2]


@dataclass(frozen=True)
class Part:
    """What is known of a model that is not there as a whole.

    Attributes:
        depth: up to where it is loaded.
        weights: `fingerprint` of the whole model.
    """

    depth: Depth
    weights: str


def _layer_with(model: nn.Module, path: str) -> tuple[str, int] | None:
    """The outermost list of modules that a site is inside of, and the number of its element there."""
    parts = path.split(".")
    for depth in range(1, len(parts)):
        outer = ".".join(parts[:depth])
        if isinstance(model.get_submodule(outer), nn.ModuleList):
            return outer, int(parts[depth])
    return None


def _samples(files: Sequence[Path], shapes: dict[str, torch.Size], base: str) -> Iterator[tuple[str, Tensor]]:
    """`sampled` of stored weights that have these names, with or without the prefix of the base model, and shapes."""
    from safetensors import safe_open

    own = {name.removeprefix(f"{base}."): name for name in shapes}
    for file in files:
        with safe_open(file, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118  # it is no mapping
                name = own.get(key.removeprefix(f"{base}."))
                if name is not None and stored.get_slice(key).get_shape() == list(shapes[name]):
                    # The tensor is mapped: only pages that are asked for are read.
                    yield name, sampled(stored.get_tensor(key)).clone()
