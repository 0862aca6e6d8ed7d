"""Names of sites: which modules a model has, which call of one is meant, and what a wrong name may have meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from kyomei.errors import ModelError

# Where transformers' architectures keep the last linear map, or the whole, of a layer's MLP; a mixer is all that Mamba has.
_MLP_NAMES = "mlp output.dense feed_forward fc2 ffn_output ffn ff block_sparse_moe layer.1.DenseReluDense mixer"
MLP_PATHS = tuple(_MLP_NAMES.split())
ATTENTION_PATHS = ("self_attn", "attn", "attention", "self_attention", "rel_attn", "layer.0.SelfAttention")
# Lazy, so that the layer is the outermost: T5's `encoder.block.1.layer.0` is inside block 1.
_LAYER = re.compile(r"^(?P<stack>(?:.*?\.)?(?:layers|layer|h|blocks|block|albert_layers))\.(?P<number>\d+)\.(?P<inner>.+)$")
_NOT_LANGUAGE = ("vision", "visual", "audio", "image", "perceiver", "qformer")
_EXPERT = re.compile(r"^(?P<block>.+?)\.experts\.")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Site:
    """A module and which of its calls in a forward pass is meant.

    Args:
        path: the module's path.
        call: how often it has run before in the pass: 0 is the first call.
    """

    path: str
    call: int = 0

    @classmethod
    def parse(cls, name: str) -> Site:
        """Read `path` or `path#call`.

        Raises:
            ModelError: what stands behind # is no number from 0 on.
        """
        path, mark, call = name.partition("#")
        if mark and not (call.isascii() and call.isdigit()):
            do = "number the calls of a module in a pass from 0, as in 'encoder.layer#3'"
            raise ModelError("a site as PATH or PATH#CALL", f"'{name}'", do)
        return cls(path, int(call or 0))


def module_paths(model: nn.Module) -> list[str]:
    """Paths of the modules that run: lists of modules do not."""
    containers = (nn.ModuleList, nn.ModuleDict)
    return [path for path, module in model.named_modules() if path and not isinstance(module, containers)]


def in_layers(paths: Iterable[str], inner: Sequence[str]) -> dict[int, str]:
    """Module path by layer number, for the first of some names inside a layer that the longest stack has."""
    paths = [path for path in paths if not any(word in path for word in _NOT_LANGUAGE)]
    for wanted in inner:
        stacks: dict[str, dict[int, str]] = {}
        for path in paths:
            match = _LAYER.match(path)
            if match and match["inner"] == wanted:
                stacks.setdefault(match["stack"], {})[int(match["number"])] = path
        if stacks:
            return max(stacks.values(), key=len)
    return {}


def layer_of(path: str) -> str:
    """Path of the layer that a module is in: what it gives is the residual stream."""
    return _LAYER.sub(r"\g<stack>.\g<number>", path)


def default_site(model: nn.Module, name: str) -> str:
    """The MLP of the middle layer; of an encoder-decoder, of its encoder.

    Raises:
        ModelError: no module is recognised as a layer's MLP.
    """
    layers = in_layers(module_paths(model), MLP_PATHS)
    if not layers:
        found = f"none recognised in {name}"
        raise ModelError("a model whose layers have an MLP", found, "name a site in source.sites")
    middle = layers[sorted(layers)[len(layers) // 2]]
    config: Any = getattr(model, "config", None)
    groups = getattr(config, "num_hidden_groups", None)
    # ALBERT's layer runs as often as the model has layers.
    return f"{middle}#{config.num_hidden_layers // groups // 2}" if groups and len(layers) == 1 else middle


def require_sites(paths: Sequence[str], sites: Sequence[str], name: str) -> None:
    """Raise ModelError unless every site is a module path that sees every token.

    Args:
        paths: the model's modules.
        sites: what was asked for.
        name: the model's.
    """
    for site in sites:
        path = Site.parse(site).path
        if path not in paths:
            do = f"use a near one: {', '.join(_near(path, paths))}"
            raise ModelError("a module path of the model", f"'{site}', which {name} does not have", do)
        expert = _EXPERT.match(path)
        if expert:
            found = f"'{site}', which belongs to experts, and each sees the tokens routed to it only"
            raise ModelError("a site that sees every token", found, f"take the whole block: {expert['block']}")


def _near(site: str, known: Sequence[str]) -> list[str]:
    """What may have been meant: similar paths, same layer number first."""
    numbers = _NUMBER.findall(site)
    same_layer = [path for path in known if _NUMBER.findall(path) == numbers]
    for among in (same_layer, known):
        near = difflib.get_close_matches(site, among, n=5, cutoff=0.5)
        if near:
            return near
    return list(known[:5])
