"""Only layers up to the deepest site are loaded: the same activations, the same digest, and the whole where it is needed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.source.architectures import CONTEXT, VOCABULARY, saved

from kyomei.errors import ModelError
from kyomei.source.depth import Depth
from kyomei.source.model import LanguageModel
from kyomei.source.trial import try_sites

IDS = torch.randint(5, VOCABULARY - 10, (2, CONTEXT), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Saved models by kind, each made once."""
    return functools.cache(lambda kind: str(saved(kind, tmp_path_factory.mktemp(kind))))


def require_same(part: LanguageModel, whole: LanguageModel, sites: list[str]) -> None:
    """Whether captures, digest and what is said of sites are the same bytes, and nothing else is loaded."""
    assert part.part is not None
    held, all_of_it = part.capture(IDS, sites), whole.capture(IDS, sites)
    assert all(torch.equal(held[site], all_of_it[site]) for site in sites)
    assert part.fingerprint() == whole.fingerprint()
    assert part.sites() == whole.sites() and part.default_site() == whole.default_site()
    names = dict(whole.model.named_parameters())
    assert [name for name in names if not part.part.depth.lacks(name)] == list(dict(part.model.named_parameters()))
    with pytest.raises(ModelError, match=r"a whole language model. Found one that was loaded up to its deepest site"):
        part.logits(IDS)


@pytest.mark.parametrize(
    ("kind", "stack", "inner"),
    [
        ("qwen2", "model.layers", "mlp"),
        ("gpt_neox", "gpt_neox.layers", "attention"),
        ("gpt2", "transformer.h", "ln_2"),
        ("opt", "model.decoder.layers", "fc2"),
        ("gemma", "model.layers", "self_attn.o_proj"),
        ("t5", "encoder.block", "layer.1.DenseReluDense"),
        ("bert", "encoder.layer", "output.dense"),
    ],
)
def test_activations_and_digest_are_those_of_the_whole_model(
    folder_of: Callable[[str], str], kind: str, stack: str, inner: str
) -> None:
    whole = LanguageModel.load(folder_of(kind))
    sites = [f"{stack}.1", f"{stack}.0.{inner}", f"{stack}.1.{inner}"]
    for wanted, loaded in ((sites, 2), (sites[1:2], 1)):
        part = LanguageModel.load(folder_of(kind), sites=wanted)
        assert part.part is not None and str(part.part.depth) == f"the first {loaded} of 3 layers"
        if whole.is_causal:
            require_same(part, whole, wanted)
        else:
            assert torch.equal(part.capture(IDS, wanted)[wanted[0]], whole.capture(IDS, wanted)[wanted[0]])


def test_the_embedded_model_ends_at_its_default_site() -> None:
    whole, part = LanguageModel.load("embedded"), LanguageModel.load("embedded", sites=())
    require_same(part, whole, [whole.default_site()])
    below = "model.layers.3.mlp"
    with pytest.raises(ModelError, match=rf"up to {whole.default_site()}. Found '{below}', below layer 3 of 4, the last"):
        part.capture(IDS, [below])


@pytest.mark.parametrize(
    ("kind", "sites"),
    [
        ("llama", ["model.layers.2.mlp"]),
        ("llama", ["model.layers.0.mlp", "model.norm"]),
        ("llama", ["model.layers.0.mlp#1"]),
        ("t5", ["encoder.block.0", "decoder.block.0"]),
        ("albert", []),
        ("mixtral", ["model.layers.0.mlp"]),
    ],
)
def test_the_whole_is_loaded_where_all_of_it_is_needed_or_the_rest_cannot_be_told(
    folder_of: Callable[[str], str], kind: str, sites: list[str]
) -> None:
    """Mixtral's experts lie in the file one by one, and in memory together."""
    model = LanguageModel.load(folder_of(kind), sites=sites)
    assert model.part is None and model.fingerprint() == LanguageModel.load(folder_of(kind)).fingerprint()


def test_the_whole_is_loaded_where_a_pass_does_not_get_to_the_site(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the site of an early layer ran after later ones."""
    short = Depth("model.layers", 1, LanguageModel.load(folder_of("llama")).model, ("model.norm",))
    monkeypatch.setattr(Depth, "of", lambda *_: short)
    model = LanguageModel.load(folder_of("llama"), sites=["model.norm"])
    assert model.part is None and model.capture(IDS, ["model.norm"])["model.norm"].shape == (2, CONTEXT, 16)


def test_precision_devices_and_a_hub_s_cache_change_nothing(
    folder_of: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, site = folder_of("llama"), "model.layers.1.mlp"
    half = LanguageModel.load(folder, dtype=torch.bfloat16)
    require_same(LanguageModel.load(folder, dtype=torch.bfloat16, sites=[site]), half, [site])
    whole = LanguageModel.load(folder)
    require_same(LanguageModel.load(folder, all_devices=True, sites=[site]), whole, [site])
    cached = tmp_path / "models--someone--llama"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    (cached / "snapshots" / ("0" * 40)).symlink_to(folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    require_same(LanguageModel.load("someone/llama", sites=[site]), whole, [site])


def test_what_is_wrong_with_layers_that_are_not_loaded_is_said_all_the_same(
    folder_of: Callable[[str], str], tmp_path: Path
) -> None:
    folder = saved("llama", tmp_path)
    with pytest.raises(ModelError, match=r"'model.layers.1.mpl', which .* does not have. Use a near one: model.layers.1.mlp"):
        LanguageModel.load(str(folder), sites=["model.layers.1.mpl"])
    weights, last = load_file(folder / "model.safetensors"), "model.layers.2.mlp.up_proj.weight"
    save_file({**weights, last: weights[last][:5].clone()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"of the shapes that its configuration gives. Found model.layers.2.mlp.up_proj"):
        LanguageModel.load(str(folder), sites=["model.layers.0"])
    del weights[last]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 of \d+ missing: model.layers.2.mlp.up_proj"):
        LanguageModel.load(str(folder), sites=["model.layers.0"])


@pytest.mark.parametrize(
    ("kind", "site", "reason"),
    [
        ("bert", "encoder.layer.1", "predicts no tokens"),
        ("xlnet", "transformer.layer.1.ff", "sees the tokens that it would have to predict"),
        ("llama", "model.layers.1.mlp", ""),
    ],
)
def test_what_layers_up_to_the_site_tell_of_it_is_said(
    folder_of: Callable[[str], str], kind: str, site: str, reason: str
) -> None:
    part, whole = (LanguageModel.load(folder_of(kind), sites=sites) for sites in ([site], None))
    assert part.part is not None
    said = [try_sites(model, IDS, [site]).unspliceable.get(site, "") for model in (part, whole)]
    assert said[0] == said[1] and reason in said[0]
