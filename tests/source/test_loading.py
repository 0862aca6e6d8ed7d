"""Loading a language model: what comes in is what was saved, and what cannot is said in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.source import architectures
from torch import Tensor

from kyomei.errors import ModelError
from kyomei.source import loading, locating
from kyomei.source.model import LanguageModel

Make = Callable[[str], LanguageModel]

IDS = torch.randint(1, 300, (2, 9), generator=torch.Generator().manual_seed(0))


def saved(model: LanguageModel, folder: Path) -> str:
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_saved_model_loads_as_what_it_was(make_model: Make, tmp_path: Path, kind: str) -> None:
    model = make_model(kind)
    loaded = LanguageModel.load(saved(model, tmp_path))
    assert type(loaded.model) is type(model.model)
    assert loaded.fingerprint() == model.fingerprint()
    site = model.default_site()
    assert torch.equal(loaded.capture(IDS, [site])[site], model.capture(IDS, [site])[site])
    assert not loaded.model.training
    assert loaded.device == torch.device("cpu")
    half = LanguageModel.load(str(tmp_path), dtype=torch.bfloat16)
    assert half.capture(IDS, [site])[site].dtype == torch.bfloat16


def test_a_model_can_be_laid_out_over_all_devices_if_it_has_room_there(
    llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, read, options = llama.default_site(), loading._trained, []
    monkeypatch.setattr(loading, "_trained", lambda *given: (options.append(given[-1]), read(*given))[1])
    spread = LanguageModel.load(saved(llama, tmp_path), all_devices=True)
    assert torch.equal(spread.capture(IDS, [site])[site], llama.capture(IDS, [site])[site])
    assert [given.get("device_map") for given in options] == ["auto"]
    absent = torch.nn.Linear(2, 2, device="meta")
    with pytest.raises(ModelError, match=r"room for large on the devices of this process. Found none for weight, bias. Give"):
        loading._require_room(absent, "large")


def test_random_weights_are_seeded_and_say_so(llama: LanguageModel, tmp_path: Path) -> None:
    folder = saved(llama, tmp_path)
    state = torch.get_rng_state()
    one, again, other = (LanguageModel.load(folder, random_weights_seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.fingerprint() == again.fingerprint()
    assert len({one.fingerprint(), other.fingerprint(), llama.fingerprint()}) == 3
    assert one.name == f"{folder} (random weights, seed 1)"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a model's folder, or a .gguf file. Found nothing at .*nowhere. Check source.model"):
        LanguageModel.load(str(tmp_path / "nowhere"))


def test_a_folder_or_file_without_a_model_is_named(llama: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a language model in the folder .*\. Found neither config.json nor a .gguf file"):
        LanguageModel.load(str(tmp_path))
    saved(llama, tmp_path)
    with pytest.raises(ModelError, match=r"Found the file .*config.json. Name the folder that it is in"):
        LanguageModel.load(str(tmp_path / "config.json"))


def change_weights(folder: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> str:
    path = Path(folder) / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return folder


def change_config(folder: str, **values: Any) -> str:
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("_orig_mod.", "had _orig_mod. in them"),
        ("module.", "had module. in them"),
        ("module._orig_mod.", "had _orig_mod. and module. in them"),
        ("net.", "had net. in them"),
        ("lightning.net.", "had lightning.net. in them"),
    ],
)
def test_prefixes_from_training_are_undone_and_said(
    make_model: Make, tmp_path: Path, kind: str, prefix: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(kind)
    folder = change_weights(saved(model, tmp_path), lambda weights: {prefix + name: w for name, w in weights.items()})
    assert LanguageModel.load(folder).fingerprint() == model.fingerprint()
    assert [record.getMessage() for record in caplog.records if record.name == "kyomei"] == [
        f"{folder}: the names of its weights {said}, from how it was trained; undone"
    ]


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_inside_names_are_undone(llama: LanguageModel, tmp_path: Path, wrapper: str) -> None:
    """As a model leaves them some of whose layers were compiled, sharded or checkpointed."""
    inside = lambda weights: {name.replace("mlp.", f"{wrapper}.mlp."): w for name, w in weights.items()}  # noqa: E731
    assert LanguageModel.load(change_weights(saved(llama, tmp_path), inside)).fingerprint() == llama.fingerprint()


MISFITS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], dict[str, Any], str]] = {
    "half of the weights": (
        lambda weights: dict(sorted(weights.items())[::2]),
        {},
        r"every weight of a LlamaForCausalLM at .* Found 15 of 30 missing: model.embed_tokens.weight, .* and 12 more",
    ),
    "one layer's MLP": (
        lambda weights: {name: w for name, w in weights.items() if "layers.1.mlp" not in name},
        {},
        r"Found 3 of 30 missing: model.layers.1.mlp.down_proj.weight, .*gate_proj.weight, .*up_proj.weight\. Check",
    ),
    "the head": (
        lambda weights: {name: w for name, w in weights.items() if "lm_head" not in name},
        {},
        r"missing: lm_head.weight\.",
    ),
    "other names": (
        lambda weights: {name.replace("mlp", "ffn"): w for name, w in weights.items()},
        {},
        r"Found 9 of 30 missing: model.layers.0.mlp.* without a place in it: model.layers.0.ffn.down_proj.weight",
    ),
    "vocabulary of the configuration": (
        dict,
        {"vocab_size": 320},
        r"Found lm_head.weight \[300, 16\] where \[320, 16\] is asked, ",
    ),
    "width of the configuration": (
        dict,
        {"intermediate_size": 40},
        r"mlp.down_proj.weight \[16, 24\] where \[16, 40\] .* and 7 more",
    ),
    "more layers in the configuration": (
        dict,
        {"num_hidden_layers": 5},
        r"Found 18 of 48 missing: model.layers.3.input_layernorm",
    ),
    "fewer layers in the configuration": (
        dict,
        {"num_hidden_layers": 2},
        r"no weights at .* but those of a LlamaForCausalLM .* Found 9 more: model.layers.2.input_layernorm.weight",
    ),
    "biases that the class lacks": (
        lambda weights: {**weights, "model.layers.0.self_attn.q_proj.bias": torch.zeros(16)},
        {},
        r"Found 1 more: model.layers.0.self_attn.q_proj.bias",
    ),
    "NaN": (
        lambda weights: {name: w * float("nan") if "layers.0.mlp" in name else w for name, w in weights.items()},
        {},
        r"finite weights in .* Found NaN or infinity in 3 of 30: model.layers.0.mlp",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_weights_that_do_not_fit_are_named(llama: LanguageModel, tmp_path: Path, misfit: str) -> None:
    change, config, message = MISFITS[misfit]
    folder = change_config(change_weights(saved(llama, tmp_path), change), **config)
    with pytest.raises(ModelError, match=message):
        LanguageModel.load(folder)


def test_former_buffers_and_other_tasks_heads_are_no_misfit(make_model: Make, tmp_path: Path) -> None:
    llama = make_model("llama")
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "score.weight": torch.ones(2, 16)}
    folder = change_weights(saved(llama, tmp_path / "llama"), lambda weights: {**weights, **more})
    assert LanguageModel.load(folder).fingerprint() == llama.fingerprint()
    gpt2 = make_model("gpt2")
    more = {"transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32), "transformer.h.0.attn.masked_bias": torch.ones(())}
    folder = change_weights(saved(gpt2, tmp_path / "gpt2"), lambda weights: {**weights, **more})
    assert LanguageModel.load(folder).fingerprint() == gpt2.fingerprint()


def test_tied_heads_are_not_missing(llama: LanguageModel, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**{**llama.model.config.to_dict(), "tie_word_embeddings": True})
    tied = transformers.AutoModelForCausalLM.from_config(config)
    tied.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert LanguageModel.load(str(tmp_path)).is_causal


def test_an_encoder_of_a_masked_model_is_loaded_without_its_pooler(
    make_model: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """That checkpoint has a head that is not wanted, and no pooler: nothing is drawn at random for it."""
    bert = make_model("bert")
    transformers.BertForMaskedLM(bert.model.config).save_pretrained(tmp_path)
    bert.tokenizer.save_pretrained(tmp_path)
    one, again = LanguageModel.load(str(tmp_path)), LanguageModel.load(str(tmp_path))
    assert one.fingerprint() == again.fingerprint()
    assert not any("pooler" in site for site in one.sites())
    assert one.capture(IDS, [one.default_site()])
    assert "its checkpoint has no pooler" in caplog.text


@pytest.mark.parametrize("kind", ["roberta", "albert", "mpnet"])
def test_the_encoder_runs_without_its_pooler(llama: LanguageModel, tmp_path: Path, kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind, **architectures.KINDS[kind])
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    loaded = LanguageModel.load(str(tmp_path))
    assert loaded.model.pooler is None
    assert loaded.capture(IDS, [loaded.default_site()])


ONE_OF_EACH = ("llama", "opt", "mixtral", "t5", "bart", "marian", "albert", "gemma3", "mllama")


@pytest.mark.parametrize(
    "kind", [k if k in ONE_OF_EACH else pytest.param(k, marks=pytest.mark.sweep) for k in architectures.KINDS]
)
def test_every_architecture_loads_as_the_class_that_was_saved(llama: LanguageModel, tmp_path: Path, kind: str) -> None:
    """Tied weights, computed positions and buffers of any of them raise no alarm."""
    model = architectures.build(kind)
    loaded = LanguageModel.load(saved(LanguageModel(model, llama.tokenizer, kind), tmp_path))
    assert type(loaded.model) is type(model)
    assert loaded.fingerprint() == LanguageModel(model, llama.tokenizer, kind).fingerprint()


def test_half_of_an_encoder_decoder_loads_as_that(llama: LanguageModel, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model("t5", **architectures.KINDS["t5"])
    encoder = LanguageModel(transformers.T5EncoderModel(config), llama.tokenizer, "half")
    loaded = LanguageModel.load(saved(encoder, tmp_path))
    assert loaded.fingerprint() == encoder.fingerprint()
    assert type(LanguageModel.load(str(tmp_path), random_weights_seed=0).model) is type(encoder.model)


@pytest.mark.parametrize("length", [0, 5, 200, 0.5, 0.99])
def test_a_file_cut_short_is_named(llama: LanguageModel, tmp_path: Path, length: float) -> None:
    path = Path(saved(llama, tmp_path)) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(length * len(whole)) if isinstance(length, float) else length])
    with pytest.raises(ModelError, match=r"(bytes in|a safetensors file at) .*model.safetensors.* Fetch it again"):
        LanguageModel.load(str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_in_a_files_place_is_named(llama: LanguageModel, tmp_path: Path, name: str) -> None:
    Path(saved(llama, tmp_path), name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(
        ModelError, match=rf"the contents of .*{name}. Found a Git LFS pointer to them. Fetch .* `git lfs pull`"
    ):
        LanguageModel.load(str(tmp_path))


def test_a_missing_shard_is_named(llama: LanguageModel, tmp_path: Path) -> None:
    llama.model.save_pretrained(tmp_path, max_shard_size="10KB")
    llama.tokenizer.save_pretrained(tmp_path)
    assert LanguageModel.load(str(tmp_path)).fingerprint() == llama.fingerprint()
    shards = sorted(tmp_path.glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(
        ModelError, match=rf"the {len(shards)} files that .*index.json names. Found 1 missing: {shards[1].name}"
    ):
        LanguageModel.load(str(tmp_path))


def test_pickles_are_never_opened(llama: LanguageModel, tmp_path: Path) -> None:
    saved(llama, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"weights in safetensors form in .* Found none"):
        LanguageModel.load(str(tmp_path))
    assert LanguageModel.load(str(tmp_path), random_weights_seed=0).is_causal
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ModelError, match=r"Found pytorch_model.bin. Save the model with safetensors.* a pickle can run code"):
        LanguageModel.load(str(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_file_that_is_no_json_is_named(llama: LanguageModel, tmp_path: Path, name: str) -> None:
    Path(saved(llama, tmp_path), name).write_text("{")
    what = "a tokenizer" if name.startswith("tok") else "a language model's configuration"
    with pytest.raises(ModelError, match=rf"Expected {what} at '.*'. Found an error: .*Check source.model"):
        LanguageModel.load(str(tmp_path))


def test_a_tokenizer_of_another_model_is_refused(llama: LanguageModel, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**{**llama.model.config.to_dict(), "vocab_size": 200})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"token ids below 200, .* Found a tokenizer with ids up to 299. Use the tokenizer of"):
        LanguageModel.load(str(tmp_path))


def test_added_tokens_that_no_text_becomes_may_lie_past_the_embeddings(llama: LanguageModel, tmp_path: Path) -> None:
    """Gemma 3's tokenizer has a place for images that its small models have no embedding for."""
    saved(llama, tmp_path)
    more = transformers.AutoTokenizer.from_pretrained(tmp_path)
    more.add_special_tokens({"additional_special_tokens": ["<image>"]})
    more.save_pretrained(tmp_path)
    assert LanguageModel.load(str(tmp_path)).tokenizer.get_vocab()["<image>"] == 300


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_quantised_weights_name_the_package_that_unpacks_them(llama: LanguageModel, tmp_path: Path, method: str) -> None:
    settings = {"quant_method": method, "bits": 4, "load_in_4bit": True}
    folder = change_config(saved(llama, tmp_path), quantization_config=settings)
    with pytest.raises(
        ModelError, match=r"weights at .* Found an error: .*pip install.* or name a checkpoint that does without"
    ):
        LanguageModel.load(folder)


@pytest.mark.parametrize("where", ["llama", "odd"])
def test_code_from_a_checkpoint_is_not_run(llama: LanguageModel, tmp_path: Path, where: str) -> None:
    """A model that transformers has a class for is loaded into that; any other is refused."""
    auto_map = {"AutoConfig": "odd.Odd", "AutoModelForCausalLM": "odd.Odd"}
    folder = change_config(saved(llama, tmp_path), model_type=where, auto_map=auto_map)
    (tmp_path / "odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Odd: pass\n")
    if where == "llama":
        assert LanguageModel.load(folder).fingerprint() == llama.fingerprint()
    else:
        with pytest.raises(ModelError, match=r"Found one that comes with code of its own.* code from the hub is not run"):
            LanguageModel.load(folder)
    assert not (tmp_path / "ran").exists()


def test_without_a_network_a_hubs_name_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"a language model's configuration at 'no/such-model'. Found an error: ") as caught:
        LanguageModel.load("no/such-model")
    assert "\n" not in str(caught.value)


def test_a_model_inside_a_python_package(llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_small_model"
    saved(llama, package / "weights")
    (package / "__init__.py").write_text("raise AssertionError('importing is not needed')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert LanguageModel.load("package:some-small-model").fingerprint() == llama.fingerprint()
    (package / "weights" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"a model inside the package some-small-model. Found neither config.json"):
        LanguageModel.load("package:some-small-model")
    with pytest.raises(ModelError, match=r"Found it is not installed. .*pip install --no-deps no-such-model"):
        LanguageModel.load("package:no-such-model")


def test_a_missing_embedded_model_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(locating, "EMBEDDED", tmp_path)
    with pytest.raises(ModelError, match=r"the embedded model in the package. Found nothing at .* Reinstall Kyomei"):
        LanguageModel.load("embedded")


def test_the_embedded_model_loads_from_the_package(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved(llama, tmp_path / "model")
    monkeypatch.setattr(locating, "EMBEDDED", tmp_path)
    loaded = LanguageModel.load("embedded")
    assert (loaded.name, loaded.fingerprint()) == ("embedded", llama.fingerprint())
