"""A language model and its tokenizer from their files; nothing is left at random without a word."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn

from kyomei.errors import KyomeiError, ModelError
from kyomei.extras import require
from kyomei.source.depth import Depth, Part
from kyomei.source.locating import Place, locate, require_whole, snapshot, some, weight_files

# What torch.compile and the wrappers of parallel training put into the names of weights, anywhere in them.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Buffers that older versions of transformers saved and newer ones compute.
_FORMER_BUFFERS = re.compile(
    r"(^|\.)(inv_freq|position_ids|token_type_ids|masked_bias|num_batches_tracked|causal_mask|(attn|attention)\.bias)$"
)

_LONGEST_ERROR = 300

_log = logging.getLogger("kyomei")


def load(
    name: str,
    revision: str | None,
    dtype: torch.dtype,
    random_weights_seed: int | None,
    spread: bool = False,
    sites: Sequence[str] | None = None,
) -> tuple[nn.Module, Any, str, Part | None]:
    """A model on the CPU, or spread over all devices, its tokenizer and what to call it, as `LanguageModel.load` says.

    Returns:
        The three, and what part of the model it is; none: the whole.

    Raises:
        ModelError: it is missing, damaged, or without a tokenizer; weights and class do not fit; a package is missing; or it
            needs code from the hub.
    """
    place = locate(name)
    require_whole(place, weights=random_weights_seed is None)
    if spread:
        require("devices", ModelError)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    if place.gguf is not None:
        options["gguf_file"] = place.gguf
        require("gguf", ModelError)
    do = "check source.model, and that its files are complete"
    part: Part | None = None
    if place.gguf is not None:
        do = "check that the file is complete, and of an architecture that transformers reads from GGUF"
    with _quiet_transformers() as transformers, _read_once() if place.gguf is not None else contextlib.nullcontext():
        with _explained(f"a language model's configuration at '{name}'", do):
            config = transformers.AutoConfig.from_pretrained(place.path, **options)
        with _explained(f"a tokenizer at '{name}'", do):
            tokenizer = transformers.AutoTokenizer.from_pretrained(place.path, **options)
        family = _family(transformers, config, place)
        with _explained(f"a language model's weights at '{name}'", do):
            if random_weights_seed is None:
                options |= {"device_map": "auto"} if spread else {}
                cut = None if sites is None else _up_to(sites, family, config, place, dtype, options, name)
                model, part = cut or (_read(family, config, place, dtype, options, name), None)
            else:
                name = f"{name} (random weights, seed {random_weights_seed})"
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(random_weights_seed)
                    model = _drawn(family, config, dtype)
    _require_embeddings(model, tokenizer, name)
    return model, tokenizer, name, part


def _read(family: Any, config: Any, place: Place, dtype: torch.dtype, options: dict[str, Any], name: str) -> nn.Module:
    """The model with the weights of its checkpoint, every one of them there and finite."""
    model = _trained(family, config, place, dtype, options)
    _require_room(model, name)
    _require_finite(model, name)
    return model


def _up_to(
    sites: Sequence[str], family: Any, config: Any, place: Place, dtype: torch.dtype, options: dict[str, Any], name: str
) -> tuple[nn.Module, Part] | None:
    """The model up to the deepest site; none where it cannot be told which layers that takes, or what the others are.

    Raises:
        ModelError: it has no such site, or cannot be read.
    """
    if place.gguf is not None:
        return None
    try:
        with torch.device("meta"):
            outline = _drawn(family, config, dtype)
    except Exception:  # a class that looks at its weights while it is built
        return None
    depth = Depth.of(outline, sites, name)
    if depth is None:
        return None
    model = _read(depth.shortened(type(outline)), config, place, dtype, options, name)
    folder = snapshot(place, options["revision"])
    weights = None if folder is None else depth.fingerprint(model, weight_files(folder))
    return None if weights is None else (model, Part(depth, weights))


def _family(transformers: Any, config: Any, place: Place) -> Any:
    """The class to load into: the one that was saved if it generates text, else the bare model without a head.

    An encoder's checkpoint can be loaded with a causal head too, but an untrained one: `architectures` says what was saved.
    A GGUF file does not say, and holds a model that generates.
    """
    saved = set(getattr(config, "architectures", None) or [])
    families = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForImageTextToText")
    for family in (getattr(transformers, name) for name in families):
        known = family._model_mapping.get(type(config), ())
        if any(one.__name__ in saved for one in (known if isinstance(known, tuple) else (known,))):
            return family
    encoders = sorted(name for name in saved if name.endswith("EncoderModel") and hasattr(transformers, name))
    if encoders:  # one half of an encoder-decoder, whose configuration is that of the whole
        return getattr(transformers, encoders[0])
    causal = place.gguf is not None or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in saved)
    return transformers.AutoModelForCausalLM if causal else transformers.AutoModel


def _drawn(family: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    """A model with random weights, from an automatic class or one that was named."""
    if hasattr(family, "from_config"):
        return cast(nn.Module, family.from_config(config, dtype=dtype, trust_remote_code=False))
    return cast(nn.Module, family._from_config(config, dtype=dtype))


def _trained(family: Any, config: Any, place: Place, dtype: torch.dtype, options: dict[str, Any]) -> nn.Module:
    """The model with the weights of its checkpoint, every one of them."""
    settings = {**options, "config": config, "dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if place.gguf is not None:
        settings.update(_unpacked())
    else:
        settings["use_safetensors"] = True

    def read(**more: Any) -> tuple[nn.Module, dict[str, Any]]:
        model, info = family.from_pretrained(place.path, **settings, **more)
        return model, info

    model, info = read()
    renamed = _wrapping(model, info)
    if renamed:
        del model
        model, info = read(key_mapping=renamed)
    poolerless = _without_pooler(model, info)
    _require_every_weight(model, info, place.path)
    if renamed:
        words = " and ".join(pattern.removeprefix("^").replace("\\", "") for pattern in renamed)
        _log.warning("%s: the names of its weights had %s in them, from how it was trained; undone", place.path, words)
    if poolerless:
        _log.warning("%s: its checkpoint has no pooler, so the model is loaded without one", place.path)
    return model


def _unpacked() -> dict[str, Any]:
    """Options that turn a GGUF file's blocks into plain weights, whichever packages are installed."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)  # before it came, blocks were always unpacked
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _wrapping(model: nn.Module, info: dict[str, Any]) -> dict[str, str]:
    """What to take out of the names of weights so that they are the model's: replacement by pattern."""
    missing, unexpected = set(info["missing_keys"]), [key.split(".") for key in info["unexpected_keys"]]
    wrappers = [word for word in _WRAPPERS if any(word in words for words in unexpected)]
    base = getattr(model, "base_model_prefix", "")
    leading: Counter[str] = Counter()
    for words in ([word for word in words if word not in wrappers] for words in unexpected):
        for depth in range(min(4, len(words))):
            rest = ".".join(words[depth:])
            if not missing.isdisjoint((rest, f"{base}.{rest}", rest.removeprefix(f"{base}."))):
                leading[".".join(words[:depth])] += 1
                break
    renamed = {rf"{word}\.": "" for word in wrappers}
    prefix = max(leading, key=leading.__getitem__, default="")
    return {**renamed, rf"^{re.escape(prefix)}\.": ""} if prefix else renamed


def _without_pooler(model: nn.Module, info: dict[str, Any]) -> bool:
    """Take an encoder's pooler off where its checkpoint has none: no site reads from it, and it would be at random."""
    missing = [key for key in info["missing_keys"] if key.startswith("pooler.")]
    if not missing or "add_pooling_layer" not in inspect.signature(type(model).__init__).parameters:
        return False
    model.pooler = None  # type: ignore[assignment]
    info["missing_keys"] = [key for key in info["missing_keys"] if key not in missing]
    return True


def _require_every_weight(model: nn.Module, info: dict[str, Any], place: str) -> None:
    """Raise ModelError unless weights and class fit: none missing, none of another shape, none without a place."""
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        named = some([f"{key} {list(found)} where {list(asked)} is asked" for key, found, asked in mismatched], 2)
        do = "check that weights and config.json are of one model"
        raise ModelError(f"weights at {place} of the shapes that its configuration gives", named, do)
    state = model.state_dict()
    missing = sorted(key for key in info["missing_keys"] if key not in state or state[key].is_floating_point())
    misplaced = sorted(key for key in info["unexpected_keys"] if _belongs(key, model))
    if missing:
        found = f"{len(missing)} of {len(state)} missing: {some(missing)}"
        strange = sorted(info["unexpected_keys"])
        if strange:
            found += f"; without a place in it: {some(strange)}"
        do = "check that the files are complete and that weights and config.json are of one model"
        raise ModelError(f"every weight of a {type(model).__name__} at {place}", found, do)
    if misplaced:
        expected = f"no weights at {place} but those of a {type(model).__name__} as its configuration describes it"
        do = "check that weights and config.json are of one model"
        raise ModelError(expected, f"{len(misplaced)} more: {some(misplaced)}", do)


def _belongs(key: str, model: nn.Module) -> bool:
    """Whether a weight without a place lies inside a part that the model has; other parts are other tasks' heads and towers."""
    if _FORMER_BUFFERS.search(key):
        return False
    base = getattr(model, "base_model_prefix", "")
    root = getattr(model, base, model) if base else model
    part = key.removeprefix(f"{base}.").split(".")[0]
    return any(hasattr(module, part) for module in {model, root})


def _require_room(model: nn.Module, name: str) -> None:
    """Raise ModelError where weights had no room on the devices: fetching them anew in every pass would take all its time."""
    absent = [key for key, weight in model.named_parameters() if weight.is_meta]
    if absent:
        do = "give each process more GPUs, or load it with --dtype bfloat16"
        raise ModelError(f"room for {name} on the devices of this process", f"none for {some(absent)}", do)


def _require_finite(model: nn.Module, name: str) -> None:
    plain = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    weights = [(key, weight) for key, weight in model.named_parameters() if weight.dtype in plain]
    broken = [key for key, weight in weights if not bool(torch.isfinite(weight).all())]
    if broken:
        found = f"NaN or infinity in {len(broken)} of {len(weights)}: {some(broken)}"
        raise ModelError(f"finite weights in {name}", found, "use a checkpoint from before training broke")


def _require_embeddings(model: nn.Module, tokenizer: Any, name: str) -> None:
    """Raise ModelError where text can become an id without an embedding.

    Added tokens that stand for no text, such as an image's place, may lie past the embeddings: no text becomes one.
    """
    table: Any = None
    with contextlib.suppress(AttributeError, NotImplementedError):  # CLIP has one for text and one for pictures
        table = model.get_input_embeddings()  # type: ignore[operator]
    rows = getattr(table, "num_embeddings", None)
    if rows is None:
        return
    added = set(getattr(tokenizer, "added_tokens_decoder", {}))
    framing = {getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "cls", "sep")}
    highest = max((i for i in tokenizer.get_vocab().values() if i not in added or i in framing), default=-1)
    if highest >= rows:
        found = f"a tokenizer with ids up to {highest}"
        raise ModelError(f"token ids below {rows}, the embeddings of {name}", found, "use the tokenizer of this model")


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[Any]:
    """The transformers package, without its progress bars, load reports and the hub's retries for a while."""
    import transformers

    log: Any = transformers.logging
    hub = logging.getLogger("huggingface_hub")
    verbosity, bars, level = log.get_verbosity(), log.is_progress_bar_enabled(), hub.level
    log.set_verbosity_error()
    log.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        yield transformers
    finally:
        hub.setLevel(level)
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """Make transformers parse a GGUF file's header once instead of four times, and without a bar of its own.

    Parsing takes seconds for a vocabulary of fifty thousand, and a minute for one of Gemma's; the table of names is built
    anew for every module of the model.
    """
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    package: Any = importlib.import_module("gguf")
    before = reader.tqdm, package.GGUFReader, package.get_tensor_name_map
    reader.tqdm = lambda items, **_: items
    package.GGUFReader = functools.cache(package.GGUFReader)
    package.get_tensor_name_map = functools.cache(package.get_tensor_name_map)
    try:
        yield
    finally:
        reader.tqdm, package.GGUFReader, package.get_tensor_name_map = before


@contextlib.contextmanager
def _explained(expected: str, do: str) -> Iterator[None]:
    """Whatever a reader of damaged or foreign files raises, as one line."""
    try:
        yield
    except (KyomeiError, MemoryError):
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        found = "an error: " + (said if len(said) <= _LONGEST_ERROR else said[:_LONGEST_ERROR] + " …").rstrip(". ")
        if "trust_remote_code" in said:
            found = "one that comes with code of its own"
            do = "name a model that transformers has a class for; code from the hub is not run"
        elif "connect to" in said:
            do = "check source.model and the network, or name a folder with the model in it"
        elif isinstance(error, ImportError):
            do = "install what is missing, or name a checkpoint that does without it"
        raise ModelError(expected, found, do) from error
