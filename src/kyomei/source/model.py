"""A language model at work: find a site, capture there, stop there, replace there."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from kyomei.errors import ModelError
from kyomei.source.depth import Part, fingerprint, sampled
from kyomei.source.hook_names import is_hook_name, said_of
from kyomei.source.hooks import Act, Calls, Layout, Side, acting, counting, require_located
from kyomei.source.loading import load
from kyomei.source.masking import hiding
from kyomei.source.sites import Site, default_site, module_paths
from kyomei.source.unembedding import Unembedding, unembedding

_ONE_AT_A_TIME = threading.Lock()
"""A pass takes much memory: two callers, such as a stream's thread and one that splices, take turns."""


class Codec(Protocol):
    """What can stand in for a site: rows to codes and back."""

    def encode(self, x: Float[Tensor, "rows dim"], /) -> Any: ...

    def decode(self, z: Any, /) -> Float[Tensor, "rows dim"]: ...


class _AllCaptured(Exception):
    """Raised inside a forward pass to leave it: nothing after the deepest site needs to run."""


@final
class LanguageModel:
    """A language model whose inner activations can be captured and replaced.

    A site is the path of a module, `path#3` its fourth call in a pass (`path` the first), or TransformerLens' name of a place
    (`kyomei.source.hook_names`). The encoder of an encoder-decoder
    reads a window and so does its decoder, unshifted: row i is that of token i on both sides. Only the text part of a
    vision-language model runs.

    Args:
        model: a transformers model; it is put into evaluation mode.
        tokenizer: its tokenizer.
        name: what to call it in runs and reports.
        part: what part of the model it is; none: the whole.

    Attributes:
        outline: all modules of the whole model; in those that are not loaded there are no numbers.
        is_encoder_decoder: whether a decoder reads what an encoder made of the text.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, name: str, part: Part | None = None) -> None:
        self.model, self.tokenizer, self.name = model.eval().requires_grad_(False), tokenizer, name
        self.part = part
        self.outline = model if part is None else part.depth.outline
        self._accepted = accepted = inspect.signature(model.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in accepted else {}
        config: Any = getattr(model, "config", None)
        self._takes = "" if "input_ids" in accepted or not accepted else next(iter(accepted))
        self._unembedding: Unembedding | None = None
        self.is_encoder_decoder = "decoder_input_ids" in accepted and bool(getattr(config, "is_encoder_decoder", True))

    @classmethod
    def load(
        cls,
        name: str,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        random_weights_seed: int | None = None,
        all_devices: bool = False,
        sites: Sequence[str] | None = None,
    ) -> LanguageModel:
        """Load a model whose every weight comes from its files; code from the hub and pickles are never run.

        Args:
            name: hub id, folder or GGUF file; "embedded" for the small model in the package; "package:NAME" for the one
                inside an installed Python package.
            revision: revision of a hub model.
            device: where the weights live.
            dtype: their precision; quantised weights of a GGUF file are unpacked to it.
            random_weights_seed: instead of the trained weights, draw random ones of the same architecture (a control).
            all_devices: lay its layers out over all devices that this process sees, in place of `device`; random weights
                stay on one.
            sites: what is captured of it, the default if empty: only layers up to the deepest are read into memory, where it
                can be told which those are, and `logits` is refused then; none: the whole model.

        Raises:
            ModelError: it has no such site, or no room on the devices; it is missing, damaged, or without a tokenizer; its
                weights are not those of its class, or not finite; a package is missing; or it needs code from the hub.
        """
        spread = all_devices and random_weights_seed is None
        model, tokenizer, known, part = load(name, revision, dtype, random_weights_seed, spread, sites)
        loaded = cls(model if spread else model.to(device), tokenizer, known, part)
        if part is None or loaded._reaches(part.depth.sites):
            return loaded
        return cls.load(name, revision, device, dtype, random_weights_seed, all_devices)

    def _reaches(self, sites: Sequence[str]) -> bool:
        """Whether a pass gets to sites; what is not loaded may stand before them."""
        try:
            self.capture(torch.arange(1, 5)[None], sites)
        except ModelError:
            return False
        return True

    @property
    def device(self) -> torch.device:
        """Where it takes tokens; later layers of a large model may be elsewhere."""
        return next(self.model.parameters()).device

    @property
    def is_causal(self) -> bool:
        """Whether the model predicts the next token, so that `logits` means something."""
        head = getattr(self.model, "get_output_embeddings", None)
        return callable(head) and head() is not None

    def unembed(self, vectors: Float[Tensor, "vectors dim"]) -> Float[Tensor, "vectors vocabulary"]:
        """What directions in the residual stream say of the next token, see `Unembedding.logits`.

        Raises:
            ModelError: the model is not causal, or directions of another width.
        """
        if self._unembedding is None:
            ids = torch.arange(1, 5)[None]  # the embedding of padding, which id 0 may be, is zero
            with _ONE_AT_A_TIME, self._explaining():
                self._unembedding = unembedding(self.model, self.name, ids, self._run)
        dim = self._unembedding.head.shape[1]
        if vectors.shape[1] != dim:
            found = f"directions of width {vectors.shape[1]}"
            raise ModelError(f"directions of width {dim}, the residual stream of {self.name}", found, "choose another site")
        return self._unembedding.logits(vectors)

    def vocabulary(self) -> list[str]:
        """The text of every token id; in angle brackets the bytes of a piece of a character, the number of one without text."""
        texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
        named = self.tokenizer.convert_ids_to_tokens(list(range(len(texts))))
        return [
            _bytes_of(str(name)) if "\ufffd" in text else text or f"<{i}>"
            for i, (text, name) in enumerate(zip(texts, named, strict=True))
        ]

    @property
    def special_ids(self) -> set[int]:
        """Ids of tokens that stand for no text: BOS, EOS, CLS, padding, chat markers."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return set(self.tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}

    def fingerprint(self) -> str:
        """Digest of a sample of every weight, to tell models of one name apart."""
        if self.part is not None:
            return self.part.weights
        return fingerprint((name, weight.shape, sampled(weight)) for name, weight in self.model.named_parameters())

    def sites(self) -> list[str]:
        """Module paths that can be captured."""
        return module_paths(self.outline)

    def default_site(self) -> str:
        """The MLP of the middle layer; of an encoder-decoder, of its encoder.

        Raises:
            ModelError: no module is recognised as a layer's MLP.
        """
        return default_site(self.outline, self.name)

    def require_sites(self, sites: Sequence[str]) -> None:
        """Raise ModelError, with near matches, unless the model has every site, loaded, and it sees every token."""
        require_located(self.outline, sites, self.name)
        if self.part is not None:
            self.part.depth.require(sites)

    def said_of(self, site: str) -> str:
        """What a name of TransformerLens' is taken for, in a sentence; empty for a module path."""
        return said_of(self.outline, site) if is_hook_name(site) else ""

    @property
    def max_context(self) -> int | None:
        """Most tokens of a window that the model has positions for; none: it has no bound."""
        config = _text_config(self.model)
        bounds = (getattr(config, f"max_{part}position_embeddings", None) for part in ("", "encoder_", "decoder_"))
        # XLNet says −1: it has no bound.
        positions = min((bound for bound in bounds if bound is not None and bound > 0), default=None)
        return None if positions is None else positions - _positions_before_the_first(self.model, positions)

    def require_context(self, context: int) -> None:
        """Raise ModelError unless the model has positions for windows of so many tokens."""
        positions = self.max_context
        if positions is not None and positions < context:
            do = f"set source.context to at most {positions}"
            raise ModelError(f"windows of at most {positions} tokens, as {self.name} takes", f"{context} tokens", do)

    def require_ids(self, ids: Int64[Tensor, "batch context"]) -> None:
        """Raise ModelError unless the model has positions and embeddings for `ids`."""
        self.require_context(ids.shape[1])
        config = _text_config(self.model)
        vocabulary = getattr(config, "vocab_size", None)
        if vocabulary is not None and int(ids.max()) >= vocabulary:
            found = f"token id {int(ids.max())}"
            raise ModelError(f"ids below {vocabulary}, the model's vocabulary", found, "use the tokenizer of this model")

    @torch.no_grad()
    def capture(
        self,
        ids: Int64[Tensor, "batch context"],
        sites: Sequence[str],
        side: Side = "output",
        hidden: Bool[Tensor, "batch context"] | None = None,
    ) -> dict[str, Float[Tensor, "batch context dim"]]:
        """Activations at `sites` from one forward pass that stops right after the deepest of them.

        Args:
            ids: full windows.
            sites: module paths, each with #CALL where another call than the first in a pass is meant.
            side: the modules' outputs or inputs; of several values, the first floating-point tensor.
            hidden: tokens masked from attention, positions kept; none: nothing is masked.

        Returns:
            Activations by site, in the order of `sites`, on the model's device.

        Raises:
            ModelError: a site is unknown, does not run, or does not give one vector a token; or tokens cannot be hidden.
        """
        self.require_sites(sites)
        self.require_ids(ids)
        masks = {} if hidden is None else hiding(hidden.to(self.device), self._accepted, _text_config(self.model), self.name)
        held = self._captured(ids, self._layouts(ids, sites, side), side, masks)
        return {site: held[site] for site in sites}

    def _captured(
        self, ids: Tensor, layouts: dict[str, Layout], side: Side, masks: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Activations by site, as `capture` gives them."""
        held: dict[str, Tensor] = {}

        def keeping(site: str) -> Act:
            def keep(x: Tensor) -> None:
                held[site] = x.detach().clone()
                if len(held) == len(layouts):
                    raise _AllCaptured

            return keep

        with _ONE_AT_A_TIME, contextlib.ExitStack() as hooks, contextlib.suppress(_AllCaptured):
            calls = {
                site: hooks.enter_context(acting(self.model, site, side, layout, keeping(site)))
                for site, layout in layouts.items()
            }
            with self._explaining():
                self._run(ids, masks)
        for site in layouts:
            _require_ran(site, calls[site])
        return held

    def _layouts(self, ids: Tensor, sites: Sequence[str], side: Side) -> dict[str, Layout]:
        """How each site lays its tokens out."""
        batch, context = ids.shape
        layouts = {site: Layout((1 if batch == context else batch, context)) for site in sites}
        if batch != context or batch == 1:
            return layouts
        # [batch, context, dim] and [context, batch, dim] look the same: one window tells them apart.
        self._captured(ids[:1], layouts, side)
        return {site: Layout(ids.shape, layout.context_first) for site, layout in layouts.items()}

    def _run(self, ids: Int64[Tensor, "batch context"], masks: Mapping[str, Any] | None = None) -> Any:
        """One forward pass on token ids alone."""
        if self._takes:
            raise ModelError("a model that reads token ids", f"{self.name}, which reads {self._takes}", "use a text model")
        ids = ids.to(self.device)
        more = {"decoder_input_ids": ids} if self.is_encoder_decoder else {}
        return self.model(input_ids=ids, **more, **self._options, **(masks or {}))

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Say of a pass that fails that the model asks for more than text, such as pictures or sound."""
        try:
            yield
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            found = f"{self.name}, where a pass on token ids fails: {first_line.rstrip('. ')}"
            raise ModelError("a model that runs on token ids alone", found, "use a text model") from error

    @torch.no_grad()
    def calls(self, ids: Int64[Tensor, "batch context"], sites: Sequence[str]) -> dict[str, int]:
        """How often each site's module runs in one forward pass."""
        self.require_sites(sites)
        with _ONE_AT_A_TIME, contextlib.ExitStack() as hooks:
            counts = {site: hooks.enter_context(counting(self.model, site)) for site in sites}
            with self._explaining():
                self._run(ids)
        return {site: calls.count for site, calls in counts.items()}

    @torch.no_grad()
    def logits(
        self,
        ids: Int64[Tensor, "batch context"],
        splice: tuple[str, Codec] | None = None,
        where: Bool[Tensor, "batch context"] | None = None,
        side: Side = "output",
    ) -> Float[Tensor, "batch context vocabulary"]:
        """Next-token logits, with a site's activation replaced on the way if asked for.

        Args:
            ids: full windows; nothing is masked.
            splice: a site and the codec whose decode(encode(x)) takes the place of its activation x.
            where: tokens at which it is replaced; everywhere if none.
            side: whether the module's output or its input is replaced.

        Raises:
            ModelError: the model has no language-model head, or the site is unknown, does not run, or does not give one vector
                a token.
        """
        self.require_ids(ids)
        if splice is None:
            with _ONE_AT_A_TIME, self._explaining():
                output = self._run(ids)
        else:
            site, codec = splice
            self.require_sites([site])
            layout = self._layouts(ids, [site], side)[site]

            def replace(x: Tensor) -> Tensor:
                rows = x.reshape(-1, x.shape[-1])
                new = codec.decode(codec.encode(rows.float().to(self.device))).to(rows).reshape(x.shape)
                return new if where is None else torch.where(where.to(x.device).unsqueeze(-1), new, x)

            with _ONE_AT_A_TIME, acting(self.model, site, side, layout, replace) as calls:
                output = self._run(ids)
            _require_ran(site, calls)
        if getattr(output, "logits", None) is None:
            do = "use a causal language model for this figure"
            raise ModelError("a model with next-token logits", f"{self.name}, an encoder without them", do)
        logits: Tensor = output.logits
        return logits


def _require_ran(site: str, calls: Calls) -> None:
    if not calls.count:
        raise ModelError("a site that runs in a forward pass", f"'{site}', which does not", "choose another site")
    if calls.count <= Site.parse(site).call:
        path, last = Site.parse(site).path, calls.count - 1
        found = f"'{site}', where the module runs {calls.count} times in a pass"
        raise ModelError("a call that there is", found, f"name one from {path}#0 to {path}#{last}")


def _bytes_of(token: str) -> str:
    """A token that is a piece of a character, as its bytes, such as <E1 B9>."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters: dict[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]
    byte_of = {letter: byte for byte, letter in letters.items()}
    # A vocabulary that does not write bytes as letters calls such a token <0xE1> itself.
    known = all(letter in byte_of for letter in token) and not token.startswith("<0x")
    return f"<{' '.join(f'{byte_of[letter]:02X}' for letter in token)}>" if known else token


def _text_config(model: nn.Module) -> Any:
    """The part of a configuration that is about text."""
    config: Any = getattr(model, "config", None)
    text = getattr(config, "get_text_config", None)
    return config if text is None or getattr(config, "is_encoder_decoder", False) else text()


def _positions_before_the_first(model: nn.Module, positions: int) -> int:
    """Positions that no token takes: RoBERTa and its kin count from the one after padding's."""
    for path, module in model.named_modules():
        if path.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.num_embeddings == positions:
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0
