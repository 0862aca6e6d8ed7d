"""What is attached to a model acts as the same arithmetic by hand does, wherever the model runs, and leaves nothing behind."""

from __future__ import annotations

import threading
import warnings
from typing import Any, cast

import pytest
import torch
from tests.source import architectures
from tests.views.live_samples import SITE, dictionary, embedded
from torch import Tensor, nn

import kyomei
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError, ModelError
from kyomei.source.model import LanguageModel
from kyomei.source.sites import layer_of

IDS = torch.randint(5, 290, (3, 11), generator=torch.Generator().manual_seed(0))
# Usual layers, flattened tokens, experts, parallel attention, ALiBi, norms after the MLP, a state space, two stacks.
KINDS = ("llama", "gpt2", "opt", "gpt_neox", "bloom", "gemma2", "mixtral", "falcon", "mamba", "t5", "bart")


def tiny(kind: str) -> LanguageModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LanguageModel(architectures.build(kind), None, f"tiny {kind}")


def random_sae(model: LanguageModel, site: str, width: int = 24) -> SparseAutoencoder:
    """Random directions of a site, each active on about a third of its rows."""
    rows = model.capture(IDS, [site])[site].flatten(0, 1).float()
    encoder = nn.functional.normalize(torch.randn(width, rows.shape[1], generator=torch.Generator().manual_seed(1)), dim=1)
    threshold = ((rows - rows.mean(0)) @ encoder.T).quantile(0.7, dim=0)
    return SparseAutoencoder(encoder, encoder.flip(0), threshold, rows.mean(0))


def logits(model: LanguageModel) -> Tensor:
    more = {"decoder_input_ids": IDS} if model.is_encoder_decoder else {}
    with torch.no_grad():
        return cast(Tensor, model.model(input_ids=IDS, **more).logits)


def hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def generated(model: Any, ids: Tensor, cache: bool, **more: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asked = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_scores": True, **more}
        return model.generate(ids, use_cache=cache, eos_token_id=None, pad_token_id=0, **asked)


@pytest.mark.parametrize("kind", KINDS)
def test_every_mode_is_the_same_arithmetic_by_hand(kind: str) -> None:
    model = tiny(kind)
    site = layer_of(model.default_site())
    sae, before, plain = random_sae(model, site), hooks(model.model), logits(model)
    x = model.capture(IDS, [site])[site]
    with kyomei.attach(model.model, site, sae) as tap:
        assert torch.equal(logits(model), plain)
    torch.testing.assert_close(tap.code(), sae.encode(x))
    with kyomei.attach(model, site, sae, features=[3, 1]) as tap:
        logits(model)
    torch.testing.assert_close(tap.code(), sae.encode(x)[..., [3, 1]])
    with kyomei.attach(model.model, site, sae, "steer", features=[0, 5], strength=0.0):
        assert torch.equal(logits(model), plain)
    by_hand = {
        "replace": sae(x),
        "steer": x + 2.0 * sae.decoder[4] - 3.0 * sae.decoder[5],
        "ablate": x - sae.encode(x)[..., [4, 5]] @ sae.decoder[[4, 5]],
    }
    steered: dict[str, Any] = {"features": [4, 5], "strength": [2.0, -3.0]}
    asked = {"replace": {}, "steer": steered, "ablate": {"features": [4, 5]}}
    for mode, wanted in by_hand.items():
        with kyomei.attach(model.model, site, sae, mode, **asked[mode]):  # type: ignore[arg-type]
            found = logits(model)
        torch.testing.assert_close(found, model.logits(IDS, (site, Fixed(wanted))), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(found, plain, atol=1e-5)
    assert hooks(model.model) == before and torch.equal(logits(model), plain)


class Fixed:
    def __init__(self, value: Tensor) -> None:
        self.value = value

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return self.value.reshape(z.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_a_cache_is_generation_without(kind: str) -> None:
    model = tiny(kind)
    first = layer_of(model.default_site())
    for site in {first, first.replace("encoder", "decoder")}:  # of two stacks, one in each
        sae = random_sae(model, site)
        kind_of: dict[str, Any] = {"mode": "steer", "features": [2, 7], "strength": 1.5}
        with kyomei.attach(model.model, site, sae, **kind_of):
            cached = generated(model.model, IDS, cache=True)
        with kyomei.attach(model.model, site, sae, **kind_of):
            whole = generated(model.model, IDS, cache=False)
        plain = generated(model.model, IDS, cache=True)
        torch.testing.assert_close(torch.stack(cached.scores), torch.stack(whole.scores), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(cached.scores[-1], plain.scores[-1], atol=1e-4)


def test_reading_under_generation_reads_every_token_once() -> None:
    model = tiny("llama")
    sae = random_sae(model, "model.layers.1.mlp")
    with kyomei.attach(model.model, "model.layers.1.mlp", sae) as tap:
        said = generated(model.model, IDS, cache=True)
    assert [len(code[0]) for code in tap.codes] == [11, *[1] * 7]
    rows = model.capture(said.sequences[:, :-1], ["model.layers.1.mlp"])["model.layers.1.mlp"]
    torch.testing.assert_close(tap.code(), sae.encode(rows), atol=1e-5, rtol=1e-4)
    tap.clear()
    with pytest.raises(DataError, match="a pass whose features were read"):
        tap.code()


def test_a_batch_with_padding_is_each_text_alone() -> None:
    model = embedded()
    sae, hf = dictionary(model), model.model
    texts = ["def main(self):", "import os\nclass A:\n    def f(self): return"]
    encoded = [torch.tensor(model.tokenizer(text)["input_ids"]) for text in texts]
    longest = max(map(len, encoded))
    ids = torch.stack([nn.functional.pad(each, (longest - len(each), 0), value=3) for each in encoded])
    mask = torch.stack([(torch.arange(longest) >= longest - len(each)).long() for each in encoded])
    with kyomei.attach(hf, SITE, sae, "steer", features=[5], strength=8.0):
        together = generated(hf, ids, True, attention_mask=mask)
        alone = [generated(hf, each[None], True, attention_mask=torch.ones(1, len(each))) for each in encoded]
    for row, each in enumerate(alone):
        for a, b in zip(together.scores, each.scores, strict=True):
            torch.testing.assert_close(a[row], b[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_kept_and_the_dictionary_works_in_float32(dtype: torch.dtype) -> None:
    model = tiny("llama")
    site = "model.layers.1"
    sae = random_sae(model, site)
    model.model.to(dtype)
    x = model.capture(IDS, [site])[site]
    plain = logits(model)
    with kyomei.attach(model.model, site, sae) as tap:
        assert torch.equal(logits(model), plain)
    assert tap.code().dtype == torch.float32
    torch.testing.assert_close(tap.code(), sae.encode(x.float()))
    with kyomei.attach(model.model, site, sae, "ablate", features=[1, 2]):
        found = logits(model)
    wanted = (x.float() - sae.encode(x.float())[..., [1, 2]] @ sae.decoder[[1, 2]]).to(dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(found, model.logits(IDS, (site, Fixed(wanted))))


def test_several_sites_at_once_each_act_and_one_reads_what_another_left() -> None:
    model = tiny("llama")
    a, b = "model.layers.0", "model.layers.2"
    first, second = random_sae(model, a), random_sae(model, b)
    moved = model.capture(IDS, [a])[a] + 4.0 * first.decoder[0]
    with kyomei.attach(model.model, a, first, "steer", features=[0], strength=4.0):
        late = model.capture(IDS, [b])[b]
        with (
            kyomei.attach(model.model, a, first) as after,
            kyomei.attach(model.model, b, second) as deep,
            kyomei.attach(model.model, b, second, "replace"),
        ):
            found = logits(model)
    torch.testing.assert_close(after.code(), first.encode(moved), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(deep.code(), second.encode(late), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found, model.logits(IDS, (b, Fixed(second(late)))), atol=1e-4, rtol=1e-4)


def test_a_numbered_call_is_that_call_of_every_pass() -> None:
    model = tiny("albert")
    path = model.default_site().partition("#")[0]
    site = f"{path}#1"
    sae = random_sae(model, site)
    with kyomei.attach(model.model, site, sae) as tap, torch.no_grad():
        model.model(input_ids=IDS)
        model.model(input_ids=IDS[:, :4])
        model.model(input_ids=IDS)
    assert [tuple(code.shape[:2]) for code in tap.codes] == [(3, 11), (3, 4), (3, 11)]
    torch.testing.assert_close(tap.codes[2], sae.encode(model.capture(IDS, [site])[site]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_code_that_was_compiled_before_notices(how: str) -> None:
    model = tiny("llama")
    sae, plain = random_sae(model, "model.layers.1"), logits(model)
    compiled: Any = model.model
    if how == "wrapped":
        compiled = torch.compile(model.model, backend="eager")
    else:
        compiled.compile(backend="eager")
    with torch.no_grad():
        compiled(input_ids=IDS)
        with kyomei.attach(compiled, "model.layers.1", sae, "steer", features=[0], strength=5.0):
            steered = compiled(input_ids=IDS).logits
        after = compiled(input_ids=IDS).logits
    torch.testing.assert_close(after, plain, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(steered, plain, atol=1e-3)
    # A stance left behind would slow down whatever runs later.
    assert torch._dynamo.eval_frame._stance.stance == "default"  # type: ignore[attr-defined]


def test_no_hook_is_left_after_an_exception() -> None:
    model = tiny("llama")
    sae, plain, before = random_sae(model, "model.layers.1"), logits(model), hooks(model.model)
    with pytest.raises(ZeroDivisionError), kyomei.attach(model.model, "model.layers.1", sae, "replace"):
        logits(model)
        raise ZeroDivisionError
    wide = SparseAutoencoder(torch.eye(7), None, torch.zeros(7), torch.zeros(7))
    with pytest.raises(DataError, match="rows of dimension 7"), kyomei.attach(model.model, "model.layers.1", wide):
        logits(model)
    assert hooks(model.model) == before
    assert torch.equal(logits(model), plain)


def test_threads_on_one_model_do_not_see_each_others_tap() -> None:
    model = tiny("llama")
    site = "model.layers.1"
    sae, plain = random_sae(model, site), logits(model)
    wanted = {strength: steered(model, site, sae, strength) for strength in (2.0, -2.0)}
    found: dict[float, list[Tensor]] = {2.0: [], -2.0: [], 0.0: []}
    start = threading.Barrier(len(found))

    def work(strength: float) -> None:
        start.wait()
        for _ in range(25):
            found[strength].append(steered(model, site, sae, strength) if strength else logits(model))

    threads = [threading.Thread(target=work, args=(strength,)) for strength in found]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for strength, values in found.items():
        assert len(values) == 25
        for value in values:
            torch.testing.assert_close(value, wanted.get(strength, plain), atol=1e-6, rtol=1e-6)


def steered(model: LanguageModel, site: str, sae: SparseAutoencoder, strength: float) -> Tensor:
    with (
        kyomei.attach(model.model, site, sae, "steer", features=[0], strength=strength, side="input"),
        kyomei.attach(model.model, site, sae) as tap,
    ):
        value = logits(model)
    assert len(tap.codes) == 1
    return value


def test_a_model_that_ran_in_another_thread_only_is_spoken_of() -> None:
    model = tiny("llama")
    sae = random_sae(model, "model.layers.1")
    with pytest.warns(UserWarning, match="in other threads only"), kyomei.attach(model.model, "model.layers.1", sae):
        other = threading.Thread(target=logits, args=(model,))
        other.start()
        other.join()


def test_massive_rows_keep_what_they_have() -> None:
    model = tiny("llama")
    site = "model.layers.1"
    sae, x = random_sae(model, site), model.capture(IDS, [site])[site]
    norms = x.norm(dim=-1)
    bound = float(norms.median())
    wanted = torch.where((norms <= bound)[..., None], sae(x), x)
    with kyomei.attach(model.model, site, sae, "replace", max_norm=bound):
        found = logits(model)
    torch.testing.assert_close(found, model.logits(IDS, (site, Fixed(wanted))), atol=1e-5, rtol=1e-4)
    # A dictionary that says what it was trained on brings its bound along.
    sae.provenance = {"site": site, "sample": {"median_norm": bound / 10}}
    with kyomei.attach(model.model, None, sae, "replace"):
        torch.testing.assert_close(logits(model), found)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"mode": "explode"}, "a mode among read, replace, steer, ablate"),
        ({"mode": "steer", "strength": 1.0}, "features to steer"),
        ({"mode": "ablate", "features": [1], "strength": 1.0}, "a strength to steer by, and none otherwise"),
        ({"mode": "steer", "features": [1]}, "a strength to steer by"),
        ({"mode": "steer", "features": [1, 2], "strength": [1.0]}, "one strength, or 2"),
        ({"mode": "replace", "features": [1]}, "no features for replace"),
        ({"features": [24]}, "features from 0 to 23"),
        ({"site": None}, "a dictionary that does not name one"),
        ({"site": "model.layers.1.mlpp"}, "Use a near one: model.layers.1.mlp"),
    ],
)
def test_what_does_not_fit_together_is_refused(asked: dict[str, Any], words: str) -> None:
    model = tiny("llama")
    sae = random_sae(model, "model.layers.1")
    given: dict[str, Any] = {"model": model.model, "site": "model.layers.1", "sae": sae, **asked}
    with pytest.raises((DataError, ModelError), match=words), kyomei.attach(**given):
        pass


def test_a_site_that_never_ran_is_named() -> None:
    model = tiny("bart")
    sae = random_sae(model, "model.encoder.layers.1")
    encoded = model.model.get_encoder()(input_ids=IDS)
    site = "model.encoder.layers.1"
    with pytest.raises(ModelError, match=f"'{site}', which did not"), kyomei.attach(model.model, site, sae):
        model.model(decoder_input_ids=IDS, encoder_outputs=encoded)
