"""Files that other libraries wrote (tools/peer_files.py) are the same function here, and come back as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import kyomei
from kyomei.dictionary.formats import FORMATS, read, recognised, write
from kyomei.errors import DataError

FILES = Path(__file__).parent / "files"
READABLE = sorted(path.name for path in FILES.iterdir() if (path / "expected.safetensors").exists())
WRITABLE = [name for name, one in FORMATS.items() if one.write is not None]


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


@pytest.mark.parametrize("name", READABLE)
def test_import_export_import_is_the_same_function_with_the_same_metadata(name: str, tmp_path: Path) -> None:
    first = read(FILES / name)
    write(first.sae, tmp_path, first.format)
    again = read(tmp_path)
    assert recognised(tmp_path) == first.format and again.folded == ()
    assert again.sae.provenance == first.sae.provenance
    x = load_file(FILES / name / "expected.safetensors")["x"]
    close(again.sae.encode(x), first.sae.encode(x))
    close(again.sae(x), first.sae(x))
    if not first.folded:
        tensors = FORMATS[first.format].tensors_file
        before, after = (load_file(tensors(folder) or "") for folder in (FILES / name, tmp_path))
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_what_is_folded_is_said() -> None:
    folded = {name: read(FILES / name).folded for name in READABLE}
    assert [name for name in READABLE if not folded[name]] == [
        "saelens-batchtopk",
        "saelens-jumprelu",
        "saelens-matryoshka",
        "saelens-standard",
        "saelens-topk",
    ]
    assert "decoder's bias" in folded["saelens-standard-uncentred"][0]
    assert folded["saelens-topk-rescaled"] == ("the norms of the decoder, into the encoder",)
    assert folded["saelens-gated"] == ("the gates, into thresholds of the magnitudes",)


def changed(name: str, folder: Path, **values: object) -> Path:
    """A copy of a SAELens folder with other settings."""
    shutil.copytree(FILES / name, folder)
    path = folder / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def test_a_transcoder_is_refused_in_a_sentence() -> None:
    with pytest.raises(DataError, match="Found a transcoder: it reads one site and writes another"):
        kyomei.load(FILES / "saelens-transcoder")


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
def test_what_cannot_be_expressed_is_refused_with_the_reason(
    values: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        kyomei.load(changed("saelens-standard", tmp_path / "sae", **values))
