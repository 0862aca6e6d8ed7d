"""A language model at work: find a site, capture there, stop there, replace there."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import inspect
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from kyomei.errors import ModelError
from kyomei.source.loading import load

Side = Literal["output", "input"]

# Where transformers' architectures keep the last linear map, or the whole, of a layer's MLP: llama, gpt2, bert, opt, mpt.
_MLP_PATHS = ("mlp", "output.dense", "feed_forward", "ffn", "fc2", "ff")
_LAYER = re.compile(r"^(?P<stack>(?:.*\.)?(?:layers|layer|h|blocks|block))\.(?P<number>\d+)\.(?P<inner>.+)$")
_NOT_LANGUAGE = ("vision", "visual", "audio", "image")
_ATTENTION_PATHS = ("self_attn", "attn", "attention", "self_attention")
_NUMBER = re.compile(r"\d+")
# How TransformerLens names a place in a layer.
_HOOK = re.compile(r"^blocks\.(?P<number>\d+)\.(?P<name>(?:hook|mlp|attn)\S*)$")

_ONE_AT_A_TIME = threading.Lock()
"""Hooks sit on the module itself: two callers, such as a stream's thread and one that splices, must not meet in a pass."""


class Codec(Protocol):
    """What can stand in for a site: rows to codes and back."""

    def encode(self, x: Float[Tensor, "rows dim"], /) -> Any: ...

    def decode(self, z: Any, /) -> Float[Tensor, "rows dim"]: ...


class _AllCaptured(Exception):
    """Raised inside a forward pass to leave it: nothing after the deepest site needs to run."""


@final
class LanguageModel:
    """A language model whose inner activations can be captured and replaced.

    Args:
        model: a transformers model; it is put into evaluation mode.
        tokenizer: its tokenizer.
        name: what to call it in runs and reports.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, name: str) -> None:
        self.model, self.tokenizer, self.name = model.eval().requires_grad_(False), tokenizer, name
        accepted = inspect.signature(model.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in accepted else {}

    @classmethod
    def load(
        cls,
        name: str,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        random_weights_seed: int | None = None,
    ) -> LanguageModel:
        """Load weights in safetensors form; code from the hub is never run.

        Args:
            name: hub id or folder; "embedded" for the small model in the package; "package:NAME" for the one inside an
                installed Python package.
            revision: revision of a hub model.
            device: where the weights live.
            dtype: their precision.
            random_weights_seed: instead of the trained weights, draw random ones of the same architecture (a control).

        Raises:
            ModelError: it is missing, has no safetensors weights or no tokenizer, or needs code from the hub.
        """
        model, tokenizer, name = load(name, revision, dtype, random_weights_seed)
        return cls(model.to(device), tokenizer, name)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def is_causal(self) -> bool:
        """Whether the model predicts the next token, so that `logits` means something."""
        head = getattr(self.model, "get_output_embeddings", None)
        return callable(head) and head() is not None

    @property
    def special_ids(self) -> set[int]:
        """Ids of tokens that stand for no text: BOS, EOS, CLS, padding, chat markers."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return set(self.tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}

    def fingerprint(self) -> str:
        """Digest of a sample of every weight, to tell models of one name apart."""
        digest = hashlib.sha256()
        for name, weight in self.model.named_parameters():
            flat = weight.detach().flatten()
            sample = flat[:: max(1, len(flat) // 64)].float().cpu()
            digest.update(f"{name} {list(weight.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()

    def sites(self) -> list[str]:
        """Module paths that can be captured."""
        containers = (nn.ModuleList, nn.ModuleDict)
        return [path for path, module in self.model.named_modules() if path and not isinstance(module, containers)]

    def default_site(self) -> str:
        """The MLP of the middle layer.

        Raises:
            ModelError: no module is recognised as a layer's MLP.
        """
        layers = self._in_layers(_MLP_PATHS)
        if layers:
            return layers[sorted(layers)[len(layers) // 2]]
        raise ModelError("a model whose layers have an MLP", f"none recognised in {self.name}", "name a site in source.sites")

    def _in_layers(self, inner: Sequence[str]) -> dict[int, str]:
        """Module path by layer number, for the first of some names inside a layer that the longest stack has."""
        for wanted in inner:
            stacks: dict[str, dict[int, str]] = {}
            for path in self.sites():
                match = _LAYER.match(path)
                if match and match["inner"] == wanted and not any(word in path for word in _NOT_LANGUAGE):
                    stacks.setdefault(match["stack"], {})[int(match["number"])] = path
            if stacks:
                return max(stacks.values(), key=len)
        return {}

    def require_sites(self, sites: Sequence[str]) -> None:
        """Raise ModelError, with near matches, unless every site is a module path."""
        known = self.sites()
        for site in sites:
            if site not in known:
                found = f"'{site}', which {self.name} does not have"
                raise ModelError("a module path of the model", found, f"use a near one: {', '.join(self._near(site, known))}")

    def _near(self, site: str, known: list[str]) -> list[str]:
        """What may have been meant: the same place by TransformerLens' name, else similar paths, same layer number first."""
        hook = _HOOK.match(site)
        if hook:
            layers = self._in_layers(_ATTENTION_PATHS if "attn" in hook["name"] else _MLP_PATHS)
            number = int(hook["number"]) - ("resid_pre" in hook["name"])  # what enters a layer left the one before
            if layers:
                path = layers[min(layers, key=lambda layer: abs(layer - number))]
                return [_LAYER.sub(r"\g<stack>.\g<number>", path) if "resid" in hook["name"] else path]
        numbers = _NUMBER.findall(site)
        same_layer = [path for path in known if _NUMBER.findall(path) == numbers]
        for among in (same_layer, known):
            near = difflib.get_close_matches(site, among, n=5, cutoff=0.5)
            if near:
                return near
        return known[:5]

    def require_ids(self, ids: Int64[Tensor, "batch context"]) -> None:
        """Raise ModelError unless the model has positions and embeddings for `ids`."""
        config: Any = getattr(self.model, "config", None)
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and ids.shape[1] > positions:
            do = f"set source.context to at most {positions}"
            raise ModelError(f"windows of at most {positions} tokens, as {self.name} takes", f"{ids.shape[1]} tokens", do)
        vocabulary = getattr(config, "vocab_size", None)
        if vocabulary is not None and int(ids.max()) >= vocabulary:
            found = f"token id {int(ids.max())}"
            raise ModelError(f"ids below {vocabulary}, the model's vocabulary", found, "use the tokenizer of this model")

    @torch.no_grad()
    def capture(
        self, ids: Int64[Tensor, "batch context"], sites: Sequence[str], side: Side = "output"
    ) -> dict[str, Float[Tensor, "batch context dim"]]:
        """Activations at `sites` from one forward pass that stops right after the deepest of them.

        Args:
            ids: full windows; nothing is masked.
            sites: module paths.
            side: the modules' outputs or inputs; of a tuple, the first element.

        Returns:
            Activations by site, in the order of `sites`, on the model's device.

        Raises:
            ModelError: a site is unknown, does not run, or does not give one vector a token.
        """
        self.require_sites(sites)
        self.require_ids(ids)
        held: dict[str, Tensor] = {}

        def keep(site: str, value: Any) -> None:
            if site not in held:
                held[site] = _one_vector_a_token(_first_tensor(value), ids.shape, site).detach().clone()
            if len(held) == len(set(sites)):
                raise _AllCaptured

        with _ONE_AT_A_TIME, contextlib.ExitStack() as hooks, contextlib.suppress(_AllCaptured):
            for site in set(sites):
                hooks.enter_context(self._watched(site, side, keep))
            self.model(input_ids=ids.to(self.device), **self._options)
        idle = [site for site in sites if site not in held]
        if idle:
            raise ModelError("a site that runs in a forward pass", f"'{idle[0]}', which does not", "choose another site")
        return {site: held[site] for site in sites}

    @contextlib.contextmanager
    def _watched(self, site: str, side: Side, keep: Callable[[str, Any], None]) -> Iterator[None]:
        """Call `keep` with what goes into or comes out of a site."""
        module = self.model.get_submodule(site)

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(site, (*args, *kwargs.values()))

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            keep(site, output)

        if side == "input":
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = module.register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def logits(
        self,
        ids: Int64[Tensor, "batch context"],
        splice: tuple[str, Codec] | None = None,
        where: Bool[Tensor, "batch context"] | None = None,
    ) -> Float[Tensor, "batch context vocabulary"]:
        """Next-token logits, with a site's output replaced on the way if asked for.

        Args:
            ids: full windows; nothing is masked.
            splice: a module path and the codec whose decode(encode(x)) takes the place of its output x.
            where: tokens at which the output is replaced; everywhere if none.

        Raises:
            ModelError: the model has no language-model head, or the site is unknown or does not run.
        """
        self.require_ids(ids)
        replaced = self._replaced(*splice, ids, where) if splice is not None else contextlib.nullcontext()
        with _ONE_AT_A_TIME, replaced:
            output = self.model(input_ids=ids.to(self.device), **self._options)
        if getattr(output, "logits", None) is None:
            do = "use a causal language model for this figure"
            raise ModelError("a model with next-token logits", f"{self.name}, an encoder without them", do)
        logits: Tensor = output.logits
        return logits

    @contextlib.contextmanager
    def _replaced(
        self, site: str, codec: Codec, ids: Int64[Tensor, "batch context"], where: Bool[Tensor, "batch context"] | None
    ) -> Iterator[None]:
        """Replace a site's output by its reconstruction for the time of one forward pass."""
        self.require_sites([site])
        ran = False

        def replace(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            nonlocal ran
            ran = True
            x = _one_vector_a_token(_first_tensor(output), ids.shape, site)
            rows = x.reshape(-1, x.shape[-1])
            new = codec.decode(codec.encode(rows.float())).to(rows.dtype).reshape(x.shape)
            if where is not None:
                new = torch.where(where.to(x.device).unsqueeze(-1), new, x)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = self.model.get_submodule(site).register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()
        if not ran:
            raise ModelError("a site that runs in a forward pass", f"'{site}', which does not", "choose another site")


def _first_tensor(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return next((item for item in value if isinstance(item, Tensor)), None)
    return value


def _one_vector_a_token(value: Any, shape: torch.Size, site: str) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[:2] != shape or not value.is_floating_point():
        found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        expected = f"one vector a token, [{shape[0]}, {shape[1]}, dim], at '{site}'"
        raise ModelError(expected, found, "choose another site, such as a layer's MLP")
    return value
