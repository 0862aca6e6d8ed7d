"""A dictionary at work in any Hugging Face model while it runs: read, put in the place of a site, steered, ablated."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kyomei.dictionary.edits import Edit, EditedCode, Reconstruction
from kyomei.dictionary.figures import usual_bound
from kyomei.dictionary.formats import load
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError, ModelError
from kyomei.source.hooks import AsGiven, Layout, Side, acting, passes, require_located
from kyomei.source.model import LanguageModel

Mode = Literal["read", "replace", "steer", "ablate"]
_Change = Callable[[Tensor], Tensor]


class Tap:
    """What a dictionary does at its site while it is attached.

    Attributes:
        mode: read, replace, steer or ablate.
        site, side: where.
        features: numbers of the latents that are read, steered or ablated; none: all.
        codes: where features are read, those of every pass so far, float32 [batch, tokens, features] on the site's device.
            Generation with a cache reads the prompt in its first pass and one token in each that follows.
    """

    def __init__(self, mode: Mode, site: str, side: Side, features: list[int] | None) -> None:
        self.mode, self.site, self.side, self.features = mode, site, side, features
        self.codes: list[Float[Tensor, "batch tokens features"]] = []
        self._shape: tuple[int, ...] | None = None
        self._passes = self._acted = 0

    def code(self) -> Float[Tensor, "batch tokens features"]:
        """The codes of all passes as one, token after token.

        Raises:
            DataError: nothing was read, or passes of different batches.
        """
        if not self.codes:
            found = "none" if self.mode == "read" else f"none: the mode is {self.mode}"
            raise DataError("a pass whose features were read", found, 'run the model inside `with …`, in mode "read"')
        if len({len(code) for code in self.codes}) > 1:
            do = "take tap.codes, or tap.clear() between them"
            raise DataError("passes of one batch", f"batches of {[len(code) for code in self.codes]}", do)
        return torch.cat(self.codes, dim=-2)

    def clear(self) -> None:
        """Forget the codes read so far."""
        self.codes.clear()

    def __repr__(self) -> str:
        features = "all" if self.features is None else len(self.features)
        return f"Tap({self.mode!r}, {self.site!r}, side={self.side!r}, features={features}, passes={self._passes})"

    def _begin(self, shape: tuple[int, ...] | None) -> None:
        self._shape, self._passes = shape, self._passes + 1

    def _keep(self, code: Tensor) -> None:
        """Keep a code laid out as the module gave its activation, by window and token where that is what it is."""
        if self._shape is not None:
            with contextlib.suppress(ModelError):
                code = Layout(self._shape).by_token(code, self.site)
        self.codes.append(code)


@contextlib.contextmanager
def attach(
    model: nn.Module | LanguageModel,
    site: str | None,
    sae: SparseAutoencoder | Path | str,
    mode: Mode = "read",
    *,
    features: Sequence[int] | None = None,
    strength: float | Sequence[float] | None = None,
    side: Side | None = None,
    max_norm: float | None = None,
) -> Iterator[Tap]:
    """Let a dictionary act at a site in every pass of a model inside `with`: under `generate`, with a cache, in batches.

        with kyomei.attach(model, "model.layers.12.mlp", sae, mode="steer", features=[7], strength=4.0):
            model.generate(**tokenizer("Once", return_tensors="pt"))

    Several may be attached at once; at one site the first acts first. Nothing is left on the model afterwards, whatever
    happened inside. What is attached belongs to the thread that attached it: other threads run the same model untouched, so
    attach in the thread that calls the model. Meanwhile nothing in the process runs as compiled by torch.compile: compiled code
    would not notice. The dictionary works in float32 on the site's device, whatever the model's precision.

    Args:
        model: a Hugging Face model, compiled or not, or any module with the site in it.
        site: path of a module, with #CALL for another call than the first of a pass, or TransformerLens' name of a place, such
            as blocks.3.hook_resid_pre; none: the one that the dictionary names.
        sae: the dictionary, or its folder.
        mode: "read" keeps the latents' activations and changes nothing. "replace" puts the reconstruction in the place of the
            activation. "steer" adds strength × decoder row of each feature. "ablate" takes away what each feature adds.
        features: numbers of latents: which to read (none: all), to steer or to ablate.
        strength: of steering, in units of a latent's activation: one for all features, or one for each.
        side: of the module; none: as the dictionary says, else its output.
        max_norm: rows above this norm keep their activation: no dictionary is trained on massive ones, such as a first token's.
            None: as in the harvest of the dictionary, 10 times the median norm there; without a bound where it does not say.

    Yields:
        What it reads.

    Raises:
        DataError: features, strength or mode do not fit together; or rows of another dimension than the dictionary's.
        ModelError: the site is unknown, or did not run in a pass.

    Warns:
        UserWarning: the model ran in other threads only.
    """
    if isinstance(model, LanguageModel):
        model = model.model
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    sae = sae if isinstance(sae, SparseAutoencoder) else load(sae)
    known = sae.provenance
    site, side = site or known.get("site") or known.get("hook_name"), side or known.get("side") or "output"
    if not site:
        raise DataError("a site", "none, and a dictionary that does not name one", 'name it, such as "model.layers.12.mlp"')
    require_located(model, [site], type(model).__name__)
    tap = Tap(mode, site, side, None if features is None else list(features))
    act = _act(tap, sae, _change(tap, sae, strength), max_norm)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_eagerly)
        calls = stack.enter_context(acting(model, site, side, AsGiven(), act))
        stack.enter_context(passes(model, site, calls, tap._begin))
        yield tap
    if tap._passes and not tap._acted:
        raise ModelError("a site that runs in a forward pass", f"'{site}', which did not", "choose another site")
    if calls.elsewhere and not tap._acted:
        do = "attach in the thread that calls the model"
        warnings.warn(f"{tap}: the model ran in other threads only, which do not see it: {do}", stacklevel=3)


_Codec = EditedCode | Reconstruction | None


def _change(
    tap: Tap, sae: SparseAutoencoder, strength: float | Sequence[float] | None
) -> Callable[[SparseAutoencoder, float], _Codec]:
    """What makes a mode's codec of a dictionary and a bound; what does not fit together is refused."""
    mode, features = tap.mode, tap.features
    if mode not in get_args(Mode):
        raise DataError(f"a mode among {', '.join(get_args(Mode))}", repr(mode), "choose one of them")
    wrong = [feature for feature in features or () if not 0 <= feature < sae.width]
    if wrong:
        raise DataError(f"features from 0 to {sae.width - 1}", str(wrong[0]), "choose latents of this dictionary")
    if mode in ("steer", "ablate") and not features:
        raise DataError(f"features to {mode}", "none", "name them: features=[…]")
    if mode == "replace" and features is not None:
        raise DataError("no features for replace, which takes all", f"{len(features)}", 'leave them out, or use mode "ablate"')
    if (mode == "steer") != (strength is not None):
        raise DataError("a strength to steer by, and none otherwise", f"{mode} with strength={strength}", "correct it")
    if mode == "read":
        return lambda sae, bound: None
    if mode == "replace":
        return lambda sae, bound: Reconstruction(sae, bound)
    edits = _edits(mode, list(features or ()), strength)
    return lambda sae, bound: EditedCode(sae, edits, bound)


def _edits(mode: Literal["steer", "ablate"], features: list[int], strength: float | Sequence[float] | None) -> list[Edit]:
    if mode == "ablate":
        return [Edit(feature, "ablate") for feature in features]
    strengths = list(strength) if isinstance(strength, Sequence) else [float(strength or 0.0)] * len(features)
    if len(strengths) != len(features):
        raise DataError(f"one strength, or {len(features)}", f"{len(strengths)}", "give one for each feature")
    return [Edit(feature, "steer", float(value)) for feature, value in zip(features, strengths, strict=True)]


def _act(
    tap: Tap, sae: SparseAutoencoder, change: Callable[[SparseAutoencoder, float], _Codec], max_norm: float | None
) -> Callable[[Tensor], Tensor | None]:
    """What is done with an activation, laid out as the module gives it."""
    bound = usual_bound(sae) if max_norm is None else max_norm
    ready: dict[torch.device, tuple[SparseAutoencoder, _Codec]] = {}

    def act(x: Tensor) -> Tensor | None:
        tap._acted += 1
        if x.device not in ready:
            there = sae.to(x.device, torch.float32)
            ready[x.device] = there, change(there, bound)
        dictionary, codec = ready[x.device]
        rows = x.reshape(-1, x.shape[-1]).float()
        dictionary.require_dim(rows.shape[1], tap.site)
        if codec is None:
            code = dictionary.encode(rows).detach()
            chosen = code if tap.features is None else code[:, tap.features]
            tap._keep(chosen.reshape(*x.shape[:-1], chosen.shape[1]))
            return None
        return codec.decode(codec.encode(rows)).to(x.dtype)

    return act


class _Eagerly:
    """Nothing runs compiled while a block is open in any thread: compiled code does not notice that hooks come and go."""

    def __init__(self) -> None:
        self._lock, self._open = threading.Lock(), 0
        self._stance: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._open:
                self._stance = torch.compiler.set_stance("force_eager")
            self._open += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._open -= 1
            if not self._open:
                self._stance.__exit__(None, None, None)


_eagerly = _Eagerly()
