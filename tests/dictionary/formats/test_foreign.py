"""Files that other libraries wrote (tools/peer_files.py) are the same function here, and come back as they were."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import kyomei
from kyomei.dictionary.formats import FORMATS, read, recognised, tensors_path, write
from kyomei.dictionary.formats.files import read_torch
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError, KyomeiError

FILES = Path(__file__).parent / "files"
READABLE = sorted(path.parent.relative_to(FILES).as_posix() for path in FILES.rglob("expected.safetensors"))
WRITABLE = [name for name, one in FORMATS.items() if one.write is not None]
UNFOLDED = [
    "dictionary-learning-batchtopk",
    "dictionary-learning-matryoshka",
    "dictionary-learning-topk",
    "saelens-batchtopk",
    "saelens-jumprelu",
    "saelens-matryoshka",
    "saelens-standard",
    "saelens-topk",
    "sparsify/layers.3",
]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", READABLE)
def test_it_is_the_same_function(name: str) -> None:
    sae, expected = kyomei.load(FILES / name), load_file(FILES / name / "expected.safetensors")
    z = sae.encode(expected["x"])
    assert 0.05 < (z > 0).float().mean() < 0.95, "a code that says something"
    close(z, expected["z"])
    close(sae.decode(z), expected["x_hat"])
    close(sae.encode(expected["x"], sparse=True).to_dense(), expected["z"])


@pytest.mark.parametrize("name", [name for name in READABLE if name.startswith("saelens")])
def test_it_says_where_it_comes_from(name: str) -> None:
    provenance = kyomei.load(FILES / name).provenance
    facts = {key: provenance[key] for key in ("format", "model", "hook_name", "context", "dataset", "prepend_bos")}
    assert facts == {
        "format": "saelens",
        "model": "gpt2-small",
        "hook_name": "blocks.3.hook_resid_post",
        "context": 128,
        "dataset": "monology/pile-uncopyrighted",
        "prepend_bos": True,
    }
    assert "site" not in provenance, "a hook's name is no module of the model"
    assert provenance["metadata"] == json.loads((FILES / name / "cfg.json").read_text())["metadata"]


@pytest.mark.parametrize(
    ("name", "format", "facts"),
    [
        ("sparsify/layers.3", "sparsify", {"hook_name": "layers.3", "context": 256, "dataset": "pile"}),
        ("dictionary-learning-topk", "dictionary_learning", {"hook_name": "blocks.3.hook_resid_post", "context": 256}),
    ],
)
def test_others_say_it_too(name: str, format: str, facts: dict[str, object]) -> None:
    provenance = kyomei.load(FILES / name).provenance
    assert provenance["format"] == format and provenance["model"] == "EleutherAI/pythia-14m"
    assert {key: provenance[key] for key in facts} == facts


def test_a_link_of_the_hubs_cache_says_where_it_stands(tmp_path: Path) -> None:
    (name,) = (name for name in READABLE if name.startswith("gemma") and "layer_20" in name)
    blob, link = tmp_path / "blobs/deadbeef", tmp_path / name / "params.npz"
    blob.parent.mkdir()
    link.parent.mkdir(parents=True)
    source = FILES / name
    blob.write_bytes((source if source.is_file() else source / "params.npz").read_bytes())
    link.symlink_to(blob)
    assert kyomei.load(link.parent).provenance["hook_name"] == "blocks.20.hook_resid_post"


def test_a_path_of_gemma_scope_names_model_and_hook() -> None:
    layer, embedding = [kyomei.load(FILES / name).provenance for name in READABLE if name.startswith("gemma")][::-1]
    assert (layer["model"], layer["hook_name"]) == ("google/gemma-2-2b", "blocks.20.hook_resid_post")
    assert (embedding["model"], embedding["hook_name"]) == ("google/gemma-2-2b", "hook_embed")


@pytest.mark.parametrize("name", READABLE)
def test_import_export_import_is_the_same_function_with_the_same_metadata(name: str, tmp_path: Path) -> None:
    first = read(FILES / name)
    format = first.format if first.format in WRITABLE else "saelens"
    write(first.sae, tmp_path, format)
    again = read(tmp_path)
    assert recognised(tmp_path) == format and again.sae.provenance == first.sae.provenance
    x = load_file(FILES / name / "expected.safetensors")["x"]
    close(again.sae.encode(x), first.sae.encode(x))
    close(again.sae(x), first.sae(x))


@pytest.mark.parametrize("name", UNFOLDED)
def test_without_folding_the_tensors_are_the_same(name: str, tmp_path: Path) -> None:
    first = read(FILES / name)
    assert first.folded == ()
    format = "saelens" if first.sae.activation == "jumprelu" else first.format  # which subtracts centres, as these do
    assert write(first.sae, tmp_path, format).folded == ()
    again = read(tmp_path).sae
    for part in ("encoder", "decoder", "threshold", "center", "bias"):
        ours, theirs = getattr(first.sae, part), getattr(again, part)
        assert ours is theirs is None or torch.equal(ours, theirs), part
    if format == first.format:
        before, after = held(FILES / name), held(tmp_path)
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def held(folder: Path) -> dict[str, torch.Tensor]:
    path = tensors_path(folder)
    assert path is not None
    return read_torch(path) if path.suffix == ".pt" else load_file(path)


def test_what_is_folded_is_said() -> None:
    folded = {name: read(FILES / name).folded for name in READABLE}
    assert [name for name in READABLE if not folded[name]] == [name for name in READABLE if name in UNFOLDED]
    assert "decoder's bias" in folded["saelens-standard-uncentred"][0]
    assert folded["saelens-topk-rescaled"] == ("the norms of the decoder, into the encoder",)
    assert folded["saelens-gated"][0] == "the gates, into thresholds of the magnitudes"
    assert "√dim" in folded["gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"][0]


def changed(name: str, folder: Path, **values: object) -> Path:
    """A copy of a SAELens folder with other settings."""
    shutil.copytree(FILES / name, folder)
    path = folder / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@pytest.mark.parametrize("name", ["saelens-transcoder", "sparsify-transcoder"])
def test_a_transcoder_is_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(DataError, match="Found a transcoder: it reads one site and writes another"):
        kyomei.load(FILES / name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "abstopk"}, "'abstopk', which keeps the latents of largest size, negative ones too"),
        ({"architecture": "newest"}, "'newest', which is not known here"),
        ({"normalize_activations": "layer_norm"}, "every row is divided by a norm of its own"),
        ({"normalize_activations": "expected_average_only_in"}, "without its numbers. Put the numbers beside it"),
        ({"dtype": "float8"}, "a dtype among float32, .* Found 'float8'"),
    ],
)
def test_what_cannot_be_expressed_is_refused_with_the_reason(values: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        kyomei.load(changed("saelens-standard", tmp_path / "sae", **values))


def openai_state(**more: object) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"pre_bias": (4,), "encoder.weight": (9, 4), "latent_bias": (9,), "decoder.weight": (4, 9)}
    tensors = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    buffers = {"stats_last_nonzero": torch.zeros(9, dtype=torch.long), "latents_mean_square": torch.zeros(9)}
    return {**tensors, **buffers, "activation": "ReLU", "activation_state_dict": {}, **more}


def test_openai_files_follow_the_formula_of_their_layout(tmp_path: Path) -> None:
    """latents = relu(encoder(x − pre_bias) + latent_bias), recons = decoder(latents) + pre_bias; tied: decoder = encoderᵀ."""
    state, x = openai_state(), torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    torch.save(state, tmp_path / "8.pt")
    tied = {**state, "decoder.linear.weight": state["encoder.weight"]}
    torch.save({name: value for name, value in tied.items() if name != "decoder.weight"}, tmp_path / "tied.pt")
    weight, bias, pre, decoder = (state[name] for name in ("encoder.weight", "latent_bias", "pre_bias", "decoder.weight"))
    z = ((x - pre) @ weight.T + bias).relu()  # type: ignore[operator, attr-defined]
    for name, matrix in (("8.pt", decoder.T), ("tied.pt", weight)):  # type: ignore[attr-defined]
        sae = kyomei.load(tmp_path / name)
        close(sae.encode(x), z)
        close(sae(x), z @ matrix + pre)
    torch.save(openai_state(activation="TopK", activation_state_dict={"k": 32, "postact_fn": "ReLU"}), tmp_path / "9.pt")
    with pytest.raises(DataError, match="TopK, for inputs that are layer-normed row by row"):
        kyomei.load(tmp_path / "9.pt")


class Trap:
    """What a pickle would do on being read, if it could."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("echo run > trap",)


def test_pickled_code_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(openai_state(trap=Trap()), tmp_path / "8.pt")
    np.savez(tmp_path / "params.npz", W_enc=np.array([Trap()], dtype=object))
    for name in ("8.pt", "params.npz"):
        with pytest.raises(DataError):
            kyomei.load(tmp_path / name)
    assert not (tmp_path / "trap").exists()


def test_a_crosscoder_is_refused_in_a_sentence(tmp_path: Path) -> None:
    arrays = {name: np.ones(shape) for name, shape in {"b_enc": 5, "b_dec": (3, 4), "threshold": 5}.items()}
    np.savez(tmp_path / "params.npz", W_enc=np.ones((3, 4, 5)), W_dec=np.ones((5, 3, 4)), **arrays)
    with pytest.raises(DataError, match=r"a crosscoder.*reads several sites at once"):
        kyomei.load(tmp_path)


def test_the_folder_of_several_says_which(tmp_path: Path) -> None:
    for name in ("layers.3", "layers.4"):
        shutil.copytree(FILES / "sparsify" / "layers.3", tmp_path / name)
    with pytest.raises(DataError, match=r"which holds 2: layers.3, layers.4. Name one of them"):
        kyomei.load(tmp_path)
    shutil.copytree(FILES / "saelens-topk", tmp_path / "run" / "replicas" / "0")
    with pytest.raises(DataError, match=r"a run in .*ships: .*run/replicas/0"):
        kyomei.load(tmp_path / "run")
    again = kyomei.load(tmp_path / "layers.3" / "sae.safetensors")
    assert torch.equal(again.encoder, kyomei.load(tmp_path / "layers.3").encoder)


def test_training_checkpoints_are_read_with_what_inputs_were_normalised_by(tmp_path: Path) -> None:
    folder = changed("saelens-standard", tmp_path / "scaled", normalize_activations="expected_average_only_in")
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.25, "has_whitening": False}))
    plain, x = kyomei.load(FILES / "saelens-standard"), torch.randn(30, 6, generator=torch.Generator().manual_seed(2))
    scaled = read(folder)
    assert "the factor 0.25" in scaled.folded[0]
    close(scaled.sae.encode(x), plain.encode(x * 0.25))
    close(scaled.sae(x), plain(x * 0.25) / 0.25)
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(3)).double() + 3 * torch.eye(6)
    mean = torch.linspace(-1, 1, 6).double()
    for name in ("saelens-standard", "saelens-jumprelu-uncentred", "saelens-gated"):
        folder = changed(name, tmp_path / name, normalize_activations="covariance_whitening")
        whitening = {"mean": mean, "matrix": mixing, "inverse_matrix": mixing.inverse().contiguous()}
        save_file(whitening, folder / "activation_whitening.safetensors")
        plain, white = kyomei.load(FILES / name), kyomei.load(folder)
        u = ((x.double() - mean) @ mixing).float()
        close(white.encode(x), plain.encode(u))
        close(white(x), (plain(u).double() @ mixing.inverse() + mean).float())


@pytest.mark.parametrize("format", WRITABLE)
def test_what_others_do_not_have_is_refused_with_the_way_out(format: str, tmp_path: Path) -> None:
    sae = kyomei.load(FILES / "saelens-jumprelu")
    sae.threshold = sae.threshold - 2
    reason = "format saelens" if format == "sparsify" else r"[1-9]\d* latents that are active at scores below zero"
    with pytest.raises(DataError, match=reason):
        write(sae, tmp_path, format)
    topk = kyomei.load(FILES / "saelens-topk")
    topk.threshold = topk.threshold + 1
    with pytest.raises(DataError, match=r"16 latents with a threshold of their own.*Keep it in Kyomei's own format"):
        write(topk, tmp_path, format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("activation", "format"),
    [
        (activation, format)
        for activation in ("relu", "topk", "jumprelu")
        for format in WRITABLE
        if (activation, format) != ("jumprelu", "sparsify")  # which has no thresholds
    ],
)
def test_ours_come_back_from_every_format_that_has_them(activation: str, format: str, tmp_path: Path) -> None:
    """Tied and not, with decoders that are not of unit norm, biases, and latents that are never active."""
    generator = torch.Generator().manual_seed(5)
    encoder, decoder = torch.randn(2, 12, 7, generator=generator)
    threshold = torch.zeros(12) if activation == "topk" else torch.rand(12, generator=generator)
    threshold[3] = 0 if activation == "topk" else torch.inf
    kind = {"activation": activation, "k": 5 if activation == "topk" else None, "bias": torch.randn(12, generator=generator)}
    provenance = {"model": "m", "site": "model.layers.1", "side": "output", "certificate": {"certified": 3}}
    x = torch.randn(50, 7, generator=generator)
    for tied in (True, False):
        center = torch.randn(7, generator=generator)
        sae = SparseAutoencoder(encoder, None if tied else decoder, threshold, center, **kind, provenance=provenance)
        write(sae, tmp_path, format)
        again = kyomei.load(tmp_path)
        assert again.provenance == provenance
        close(again.encode(x), sae.encode(x))
        close(again(x), sae(x))


def test_a_threshold_that_was_never_set_leaves_the_relu(tmp_path: Path) -> None:
    """dictionary_learning's BatchTopK begins with −1: every positive latent is active."""
    shutil.copytree(FILES / "dictionary-learning-batchtopk", tmp_path / "young")
    state = read_torch(tmp_path / "young" / "ae.pt")
    torch.save({**state, "threshold": torch.tensor(-1.0)}, tmp_path / "young" / "ae.pt")
    found, x = read(tmp_path / "young"), torch.randn(40, 6, generator=torch.Generator().manual_seed(6))
    close(found.sae.encode(x), ((x - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"]).relu())
    assert found.folded == ("thresholds below zero, where the ReLU decides, to zero",)


def test_settings_of_before_version_6_mean_what_they_meant(tmp_path: Path) -> None:
    """Hooks had points, activations names, normalisation was a switch, and latents could have factors."""
    topk, x = kyomei.load(FILES / "saelens-topk"), torch.randn(30, 6, generator=torch.Generator().manual_seed(4))
    shutil.copytree(FILES / "saelens-topk", tmp_path / "old")
    place = {"model_name": "gpt2-small", "hook_point": "blocks.3.hook_resid_post", "context_size": 64}
    kind = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "normalize_activations": False}
    config = {**place, **kind, "d_in": 6, "d_sae": 16, "dtype": "torch.float32", "finetuning_scaling_factor": True}
    (tmp_path / "old" / "cfg.json").write_text(json.dumps(config))
    factor = torch.linspace(0.5, 2, 16)
    held = {**load_file(FILES / "saelens-topk" / "sae_weights.safetensors"), "scaling_factor": factor}
    save_file(held, tmp_path / "old" / "sae_weights.safetensors")
    old = read(tmp_path / "old")
    assert torch.equal(old.sae.encode(x), topk.encode(x)) and "finetuning" in old.folded[0]
    close(old.sae(x), topk.decode(topk.encode(x) * factor))
    known = {key: old.sae.provenance[key] for key in ("model", "hook_name", "context", "mechanism")}
    assert known == {"model": "gpt2-small", "hook_name": "blocks.3.hook_resid_post", "context": 64, "mechanism": "topk"}
    for change, message in (
        ({"activation_fn_str": "tanh-relu"}, "standard with tanh-relu"),
        ({"normalize_activations": True}, "numbers"),
    ):
        (tmp_path / "old" / "cfg.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(DataError, match=message):
            kyomei.load(tmp_path / "old")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2)
)
BROKEN = ["saelens-gated", "saelens-batchtopk-checkpoint", "sparsify/layers.3", "dictionary-learning-topk"]


@hypothesis.settings(max_examples=80, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(data=st.data())
def test_only_our_errors_come_out_of_damaged_files(data: st.DataObject, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(FILES / data.draw(st.sampled_from(BROKEN)), folder)
    (folder / "expected.safetensors").unlink()
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(path.read_bytes())
    if path.suffix == ".json" and data.draw(st.booleans()):
        settings = json.loads(path.read_text())
        inner = settings.get("trainer", settings)
        inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(json_values)
        path.write_text(json.dumps(settings))
    elif data.draw(st.booleans()):
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    else:
        for _ in range(data.draw(st.integers(1, 5))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
    with contextlib.suppress(KyomeiError):
        kyomei.load(folder)(torch.ones(2, 6))
