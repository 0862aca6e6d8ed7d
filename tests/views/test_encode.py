"""`kyomei encode` prints what the dictionary says of the rows that the model has at every token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from tests.views.live_samples import SITE, dictionary, embedded
from typer.testing import CliRunner, Result

from kyomei.cli import app
from kyomei.runs import Run
from kyomei.stages.certify import certify

TEXTS = ["def main(self):\n    return self.value", "import os " * 200]
CONTEXT = 256


def kyomei(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = embedded()
    sae = dictionary(model)
    sae.provenance = {"model": "embedded", "site": SITE}
    folder = tmp_path_factory.mktemp("dictionary")
    sae.save(folder)
    return folder


def by_hand(text: str) -> list[dict[int, float]]:
    """Active latents of each token, window by window, BOS before each and left out."""
    model = embedded()
    sae, ids = dictionary(model), model.tokenizer(text, add_special_tokens=False)["input_ids"]
    found = []
    for first in range(0, len(ids), CONTEXT - 1):
        window = torch.tensor([[model.tokenizer.bos_token_id, *ids[first : first + CONTEXT - 1]]])
        for row in sae.encode(model.capture(window, [SITE])[SITE][0, 1:]):
            found.append({int(i): float(row[i]) for i in row.nonzero()})
    return found


def flat(tokens: list[dict[str, Any]]) -> list[dict[int, float]]:
    return [{f["latent"]: f["activation"] for f in token["features"]} for token in tokens]


def test_every_token_has_the_latents_of_its_row(folder: Path) -> None:
    done = kyomei("encode", folder, *TEXTS, "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    for text, tokens in zip(TEXTS, said["texts"], strict=True):
        assert "".join(token["token"] for token in tokens) == text
        wanted = by_hand(text)
        assert len(wanted) == len(tokens) > 5
        for mine, own in zip(flat(tokens), wanted, strict=True):
            assert mine == pytest.approx(own, rel=1e-4)
        for token in tokens:
            values = [feature["activation"] for feature in token["features"]]
            assert values == sorted(values, reverse=True)
    assert len(said["texts"][1]) > CONTEXT, "a text of several windows"
    best = json.loads(kyomei("encode", folder, TEXTS[0], "--json", "--top", "2").stdout)["texts"][0]
    for few, every in zip(best, said["texts"][0], strict=True):
        assert few["features"] == every["features"][:2] and few["left_out"] == max(0, len(every["features"]) - 2)


def test_a_file_has_a_row_for_each_active_feature(folder: Path, tmp_path: Path) -> None:
    piped = kyomei("encode", folder, "--lines", "--out", tmp_path / "f.parquet", stdin="import os\n\nx = 3\n")
    assert piped.exit_code == 0 and piped.stdout == "", piped.stderr
    said = json.loads(kyomei("encode", folder, "import os", "x = 3", "--json").stdout)["texts"]
    rows = pq.read_table(tmp_path / "f.parquet").to_pylist()
    wanted = [(n, p, f["latent"]) for n, tokens in enumerate(said) for p, token in enumerate(tokens) for f in token["features"]]
    assert [(row["text"], row["position"], row["latent"]) for row in rows] == wanted
    assert {row["status"] for row in rows} == {None}
    whole = json.loads(kyomei("encode", folder, "--json", stdin="import os\n\nx = 3\n").stdout)["texts"]
    assert len(whole) == 1, "what is piped in is one text, unless its lines are"


def test_a_run_says_what_is_certified(indexed: Run) -> None:
    certified = set(certify(indexed).certified)
    done = kyomei("encode", indexed.folder, TEXTS[0], "--json")
    features = [f for token in json.loads(done.stdout)["texts"][0] for f in token["features"]]
    assert features and all((f["status"] == "certified") == (f["latent"] in certified) for f in features)
    table = kyomei("encode", indexed.folder, TEXTS[0])
    assert "a certified latent" in table.stdout
    other = kyomei("encode", indexed.folder, TEXTS[0], "--dictionary", "replicas-1", "--json")
    assert "status" not in other.stdout and json.loads(other.stdout)["dictionary"].endswith("replica 1")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([" "], "some text"),
        (["hi", "--out", "x.csv"], "a .parquet file"),
        (["hi", "--site", "model.layers.2.mlp.up_proj"], "rows of dimension 256"),
        (["hi", "--site", "model.layers.2.mpl"], "Use a near one: model.layers.2.mlp"),
    ],
)
def test_what_cannot_be_encoded_is_one_line(folder: Path, more: list[str], words: str) -> None:
    done = kyomei("encode", folder, *more)
    assert done.exit_code == 2 and words in done.stderr and "Traceback" not in done.stderr
