"""Dictionaries to and from the hub, against a stand-in on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tests.dictionary.hub_stand_in import Hub, hub

import kyomei
from kyomei.dictionary.card import card, shown_model
from kyomei.dictionary.sae import SparseAutoencoder

PROVENANCE = {"model": "some/model", "site": "model.layers.1.mlp", "side": "output", "mechanism": "GBA"}


def dictionary(**provenance: object) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(0)
    encoder, decoder = torch.randn(2, 6, 4, generator=generator)
    return SparseAutoencoder(encoder, decoder, torch.ones(6) / 4, torch.ones(4), provenance={**PROVENANCE, **provenance})


def script(server: Hub, home: Path, code: str, *, token: str = "hf_write") -> subprocess.CompletedProcess[str]:
    """Run code in a process that takes the stand-in for the hub."""
    settings = {"HF_ENDPOINT": server.address, "HF_TOKEN": token, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)


PUSH_AND_LOAD = """
import sys, torch, kyomei
sae = kyomei.load(sys.argv[-1] if len(sys.argv) > 1 else FOLDER)
print(sae.push_to_hub("me/mine", revision="v2"))
again = kyomei.SparseAutoencoder.from_pretrained("me/mine", revision="v2")
assert torch.equal(again.encoder, sae.encoder) and torch.equal(again.decoder, sae.decoder), "other tensors"
assert again.provenance == sae.provenance, again.provenance
for name, revision in (("me/none", None), ("me/mine", "v3"), ("me/mine", None)):
    try:
        kyomei.SparseAutoencoder.from_pretrained(name, revision=revision)
    except kyomei.KyomeiError as error:
        print(error)
"""


def test_to_the_hub_and_back_by_name_and_revision(tmp_path: Path) -> None:
    dictionary().save(tmp_path / "sae")
    with hub() as server:
        code = PUSH_AND_LOAD.replace("FOLDER", repr(str(tmp_path / "sae")))
        done = script(server, tmp_path / "home", code)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        address, absent, other, empty = done.stdout.splitlines()
        assert address.startswith(f"{server.address}/me/mine/commit/")
        assert absent.startswith("Expected the repository me/none on the hub.") and "or name a folder" in absent
        assert other.startswith("Expected the repository me/mine at revision v3") and "no file of one" in empty
        files = server.repositories["me/mine"]["v2"]
        assert set(files) == {"README.md", "config.json", "sae.safetensors"} and server.private == {"me/mine": True}
        assert 'from_pretrained("me/mine")' in files["README.md"].decode()


def test_a_repository_of_many_is_refused_before_any_is_fetched(tmp_path: Path) -> None:
    dictionary().save(tmp_path / "sae")
    held = {path.name: path.read_bytes() for path in (tmp_path / "sae").iterdir()}
    with hub() as server:
        many = {f"a/{name}": content for name, content in held.items()}
        server.repositories["me/many"] = {"main": {**many, "b/params.npz": b"large"}}
        load = "import kyomei\nprint(kyomei.SparseAutoencoder.from_pretrained('me/many', subfolder='a').width)\n"
        code = load + "try: kyomei.SparseAutoencoder.from_pretrained('me/many')\n"
        code += "except kyomei.KyomeiError as error: print(error)\n"
        done = script(server, tmp_path / "home", code)
        fetched = {path for path in server.asked if path.startswith("GET") and "/resolve/" in path}
    width, refused = done.stdout.splitlines()
    assert int(width) == dictionary().width and refused.startswith("Expected"), done.stderr
    assert fetched and all("/a/" in path for path in fetched)


def test_what_the_hub_refuses_is_one_line(tmp_path: Path) -> None:
    dictionary().save(tmp_path / "sae")
    with hub() as server:
        code = f"import kyomei\ntry: kyomei.load({str(tmp_path / 'sae')!r}).push_to_hub('me/mine')\n"
        done = script(server, tmp_path / "home", code + "except kyomei.KyomeiError as error: print(error)", token="hf_wrong")
    assert done.stdout.startswith("Expected the repository me/mine on the hub, to write to. Found ") and done.stderr == ""
    assert done.stdout.count("\n") == 1 and "hf auth login" in done.stdout


def test_a_folder_is_a_repository_too(tmp_path: Path) -> None:
    sae = dictionary()
    sae.save_pretrained(tmp_path / "all" / "one")
    for again in (
        SparseAutoencoder.from_pretrained(tmp_path / "all" / "one"),
        SparseAutoencoder.from_pretrained(str(tmp_path / "all"), subfolder="one"),
    ):
        assert torch.equal(again.encoder, sae.encoder) and again.provenance == sae.provenance
    assert (tmp_path / "all" / "one" / "README.md").read_text(encoding="utf-8") == card(sae)
    with pytest.raises(kyomei.KyomeiError, match=r"no .*config\.json|the folder of one"):
        SparseAutoencoder.from_pretrained(tmp_path)


def test_a_card_says_what_is_known_and_no_more(tmp_path: Path) -> None:
    text = card(dictionary(), "me/mine", licence="apache-2.0")
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "apache-2.0" and header["library_name"] == "kyomei" and header["base_model"] == "some/model"
    assert "| site | `model.layers.1.mlp` (output) |" in text and "JumpReLU" in text and "6 × 4" in text
    assert "No certificate travels with this dictionary" in text
    own = tmp_path / "private" / "model"
    own.mkdir(parents=True)
    bare = card(dictionary(model=str(own), certificate={"certified": 3, "latents": 6}))
    assert str(tmp_path) not in bare and "base_model" not in bare and "| model | model |" in bare
    assert "| certified latents | 3 |" in bare and "No certificate" not in bare and "has not said" in bare
    assert shown_model(None) is None and json.dumps(shown_model("a/b")) == '"a/b"'
