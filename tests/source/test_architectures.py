"""Every architecture: what is captured is the module's own, token by token, and what is put in its place lands."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.source import architectures
from torch import Tensor, nn

from kyomei.errors import ModelError
from kyomei.source.hooks import Side
from kyomei.source.model import LanguageModel
from kyomei.source.sites import ATTENTION_PATHS, Site, in_layers, layer_of
from kyomei.source.trial import try_sites

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
IDS = torch.randint(5, 290, (3, architectures.CONTEXT), generator=torch.Generator().manual_seed(0))
# One of each: layers of a tensor, flattened tokens, experts, tokens first, late positions, shared layers, two stacks, pictures.
USUAL = ("llama", "opt", "mixtral", "xlnet", "roberta", "albert", "t5", "bart", "llava", "blip-2")

REFUSED = ("blip-2",)


class Same:
    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


class Zero(Same):
    def decode(self, z: Tensor) -> Tensor:
        return torch.zeros_like(z)


def tiny(kind: str, tokenizer: Any = None) -> LanguageModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LanguageModel(architectures.build(kind), tokenizer, f"tiny {kind}")


def places(model: LanguageModel) -> dict[str, str | None]:
    """MLP, attention and residual stream of the middle layer, encoder's first; for a decoder beside an encoder, its own."""
    mlp = model.default_site()
    path, mark, call = mlp.partition("#")
    attention = in_layers(model.sites(), ATTENTION_PATHS)
    here = next((site for site in attention.values() if layer_of(site) == layer_of(path)), None)
    found = {"MLP": mlp, "attention": here and here + mark + call, "residual": layer_of(path) + mark + call}
    decoder = layer_of(path).replace("encoder.", "decoder.")
    if model.is_encoder_decoder and decoder in model.sites():
        found["decoder residual"] = decoder
    return found


def in_a_plain_pass(model: LanguageModel, site: str, side: Side) -> Tensor:
    """[windows, context, dim] by a hook of this test, a window at a time, so that no layout can confuse windows."""
    place, rows = Site.parse(site), []
    for window in IDS:
        seen: list[Tensor] = []

        def see(value: Any, seen: list[Tensor] = seen) -> None:
            values = (value,) if isinstance(value, Tensor) else value
            # Falcon adds to its MLP's output in place.
            seen.extend([v.clone() for v in values if isinstance(v, Tensor) and v.is_floating_point()][:1])

        part = model.model.get_submodule(place.path)
        if side == "output":
            handle = part.register_forward_hook(lambda _, __, output, see=see: see(output))
        else:
            handle = part.register_forward_pre_hook(
                lambda _, args, kwargs, see=see: see((*args, *kwargs.values())), with_kwargs=True
            )
        more = {"decoder_input_ids": window[None]} if model.is_encoder_decoder else {}
        with torch.no_grad():
            model.model(input_ids=window[None], **more)
        handle.remove()
        rows.append(seen[place.call].reshape(len(window), -1))
    return torch.stack(rows)


def examined(model: LanguageModel, site: str, side: Side = "output") -> str:
    """What holds at a site, in a few words; fails where something else holds than is said."""
    try:
        trial = try_sites(model, IDS, [site], side)
    except ModelError as error:
        assert "\n" not in str(error)
        return f"refused: {error.found}"
    captured = model.capture(IDS, [site], side)[site]
    torch.testing.assert_close(captured, in_a_plain_pass(model, site, side), atol=1e-4, rtol=1e-4)
    reason = trial.unspliceable.get(site)
    if reason is not None:
        return f"captured; not replaced: {reason}"
    plain = model.logits(IDS)
    torch.testing.assert_close(model.logits(IDS, (site, Same()), side=side), plain, atol=1e-4, rtol=1e-4)
    zeroed = model.logits(IDS, (site, Zero()), side=side)
    assert not torch.allclose(zeroed, plain, atol=1e-4)
    torch.testing.assert_close(zeroed, with_zeros(model, site, side), atol=1e-4, rtol=1e-4)
    return "captured and replaced"


def with_zeros(model: LanguageModel, site: str, side: Side) -> Tensor:
    """Logits with the site silenced by a hook of this test."""
    place, calls = Site.parse(site), 0

    def silenced(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.zeros_like(value) if value.is_floating_point() else value
        first = next(i for i, v in enumerate(value) if isinstance(v, Tensor) and v.is_floating_point())
        return (*value[:first], torch.zeros_like(value[first]), *value[first + 1 :])

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        values = silenced((*args, *kwargs.values()))
        return values[: len(args)], dict(zip(kwargs, values[len(args) :], strict=True))

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        return silenced(output) if calls == place.call + 1 else output

    part = model.model.get_submodule(place.path)
    register: Any = part.register_forward_hook if side == "output" else part.register_forward_pre_hook
    handle = register(after) if side == "output" else register(before, with_kwargs=True)
    try:
        return model.logits(IDS)
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", USUAL)
def test_sites_of_an_architecture(kind: str) -> None:
    model = tiny(kind)
    said = {place: examined(model, site) for place, site in places(model).items() if site is not None}
    if kind == "blip-2":
        assert all("pixel_values" in words for words in said.values())
    elif kind == "xlnet":
        assert all("sees the tokens that it would have to predict" in words for words in said.values())
    elif kind in architectures.ENCODERS:
        assert all("predicts no tokens" in words for words in said.values())
    else:
        assert set(said.values()) == {"captured and replaced"}


@pytest.mark.sweep
def test_the_table_of_architectures() -> None:
    """Writes docs/architectures.md."""
    groups = []
    for title, kinds in architectures.GROUPS.items():
        rows = [row_of(kind) for kind in kinds]
        groups.append(
            f"## {title}\n| architecture | MLP | attention | residual stream | |\n|---|---|---|---|---|\n" + "\n".join(rows)
        )
    head = PAGE.read_text(encoding="utf-8").split("\n## ")[0].rstrip()
    PAGE.write_text("\n\n".join([head, *groups]) + f"\n\nMeasured with transformers {transformers.__version__}.\n", "utf-8")


def row_of(kind: str) -> str:
    model = tiny(kind)
    sites = {place: site for place, site in places(model).items() if site is not None}
    said = {place: examined(model, site).replace(model.name, "it") for place, site in sites.items()}
    assert kind in REFUSED or not any(words.startswith("refused") for words in said.values())
    same = set(said.values())
    outcome = same.pop() if len(same) == 1 else "; ".join(f"{place} {words}" for place, words in said.items())
    if "decoder residual" in sites:
        outcome += f"; so are the decoder's sites (`{sites['decoder residual']}`)"
    cells = (f"`{sites[place]}`" if place in sites else "none" for place in ("MLP", "attention", "residual"))
    return f"| {kind} | {' | '.join(cells)} | {outcome} |"


def test_every_architecture_stands_in_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert len(architectures.KINDS) >= 50
    assert [kind for kind in architectures.KINDS if f"\n| {kind} | " not in page] == []
