"""`kyomei goals` and `kyomei detect` on a small run: what they write, what a detector says, and what goes on after a stop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.views.live_samples import dictionary, embedded
from typer.testing import CliRunner, Result

import kyomei
from kyomei.cli import app
from kyomei.evidence.goals.detector import FILE, detectors
from kyomei.runs import Run
from kyomei.source.model import LanguageModel
from kyomei.source.stdlib import stdlib_documents
from kyomei.stages.certify import certify, certify_run
from kyomei.stages.detect import TextDetector
from kyomei.stages.foreign import Foreign, import_into
from kyomei.stages.progress import Reporter

DOCUMENTS = 160


def verb(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def records() -> list[dict[str, Any]]:
    """Pieces of the library, of a file at most two; half have the word `self`, and the score is how often."""
    found: list[dict[str, Any]] = []
    for document in stdlib_documents():
        pieces = [document.text[at : at + 150] for at in range(0, min(len(document.text), 3000) - 150, 150)]
        for label in (True, False):
            piece = next((piece for piece in pieces if ("self" in piece) == label and piece.strip()), None)
            if piece is not None and sum(one["label"] == label for one in found) < DOCUMENTS // 2:
                found.append({"text": piece, "label": int(label), "words": piece.count("self"), "group": document.name})
    return found


@pytest.fixture(scope="module")
def folder(indexed: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run whose replicas have all learnt the same, so that all is certified, and labelled text beside it."""
    folder = tmp_path_factory.mktemp("goals") / "run"
    shutil.copytree(indexed.folder, folder, ignore=shutil.ignore_patterns("explore"))
    for replica in ("1", "2"):
        shutil.copytree(folder / "replicas" / "0", folder / "replicas" / replica, dirs_exist_ok=True)
    run = Run.open(folder)
    import_into(run, Foreign.read(str(folder / "replicas" / "0")))
    certify_run(run, Reporter())
    (folder.parent / "self.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records()))
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    done = verb("goals", folder, "--labels", folder.parent / "self.jsonl", "--json")
    assert done.exit_code == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_the_file_names_features_figures_data_and_dictionary(folder: Path, found: dict[str, Any]) -> None:
    (goal,) = found.values()
    assert list(found) == ["self"] and json.loads((folder / FILE).read_text())["goals"] == found
    certified = set(certify(Run.open(folder)).certified)
    assert {feature["latent"] for feature in goal["detector"]["features"]} <= certified
    assert all(feature["status"] == "certified" for feature in goal["detector"]["features"])
    assert goal["told"] and goal["figures"]["auc"]["interval"][0] > 0.7, goal["figures"]
    assert [replica["replica"] for replica in goal["replicas"]] == ["replicas/1", "replicas/2"]
    run = Run.open(folder)
    assert goal["dictionary"]["sha256"] == {
        f"replicas/{i}": run.digests([f"replicas/{i}/sae.safetensors"]).popitem()[1] for i in range(3)
    }
    assert sum(goal["data"]["documents"].values()) == DOCUMENTS and run.recorded(FILE) and run.done("goals")


def test_a_dictionary_from_elsewhere_is_asked_like_the_own(folder: Path, found: dict[str, Any], tmp_path: Path) -> None:
    copy, labels = tmp_path / "run", folder.parent / "self.jsonl"
    shutil.copytree(folder, copy)
    done = verb("goals", copy, "--labels", labels, "--dictionary", "imported-0-0", "--json")
    assert done.exit_code == 0, done.stderr
    (goal,) = json.loads(done.stdout).values()
    own = found["self"]
    assert goal["dictionary"]["path"] == "imported/0/0" and goal["figures"] == own["figures"] and goal["sets"] == own["sets"]
    assert [replica["replica"] for replica in goal["replicas"]] == ["replicas/0", "replicas/1", "replicas/2"]
    here, there = (next(kyomei.detect(place, "self", ["self.x"])).score for place in (copy, folder))
    assert here == there


def test_a_detector_says_of_a_text_what_its_features_come_to_there(folder: Path, found: dict[str, Any]) -> None:
    texts = ["class A:\n    def f(self):\n        return self.x\n" * 9, "import os", "x = [1, 2, 3]"]
    detector, detection = detectors(folder)["self"], list(kyomei.detect(folder, "self", iter(texts), batch=2))
    model, run = LanguageModel.load("embedded"), Run.open(folder)
    sae, site = kyomei.load(folder / "replicas/0"), run.manifest["sites"][0]
    begin, inner = [model.tokenizer.bos_token_id], run.recipe.source.context - 1
    for text, one in zip(texts, detection, strict=True):
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        windows = [torch.tensor([begin + ids[at : at + inner]]) for at in range(0, len(ids), inner)]
        code = torch.cat([sae.encode(model.capture(window, [site])[site][0, 1:]) for window in windows])[
            :, list(detector.latents)
        ]
        own = code.max(dim=0).values if detector.pooling == "max" else code.mean(dim=0)
        assert one.score == pytest.approx(float(detector.scores(own.numpy()[None])[0]), rel=1e-3) and one.tokens == len(ids)
        assert {f["latent"]: f["activation"] for f in one.features} == pytest.approx(
            {latent: float(a) for latent, a in zip(detector.latents, own, strict=True) if a}, rel=1e-3
        )


def test_a_stream_is_answered_as_it_comes(folder: Path, found: dict[str, Any]) -> None:
    read = []

    def endless() -> Any:
        while True:
            read.append("x")
            yield "self.x" if len(read) % 2 else "  "

    answers = TextDetector(folder, "self")(endless(), batch=4)
    first = [next(answers) for _ in range(4)]
    assert len(read) == 4 and [one.score is None for one in first] == [False, True, False, True]
    assert [one.fires for one in first[1::2]] == [False, False]


def test_the_verb_reads_words_files_and_lines(folder: Path, found: dict[str, Any], tmp_path: Path) -> None:
    words = verb("detect", folder, "self", "self.x = self.y", "import os", "--json")
    assert words.exit_code == 0, words.stderr
    said = [json.loads(line) for line in words.stdout.splitlines()]
    assert [one["text"] for one in said] == ["self.x = self.y", "import os"] and said[0]["features"] != said[1]["features"]
    (tmp_path / "t.jsonl").write_text('{"text": "self.x = self.y"}\n{"text": "import os"}\n')
    of_file = [
        json.loads(line)
        for line in verb("detect", folder, "self", "--file", tmp_path / "t.jsonl", "--json").stdout.splitlines()
    ]
    assert [one["score"] for one in of_file] == [one["score"] for one in said]
    table = verb("detect", folder, "self", "--lines", stdin="self.x = self.y\n\nimport os\n")
    assert table.exit_code == 0 and "Goal self" in table.stdout and "self.x = self.y" in table.stdout


def test_what_was_encoded_is_not_encoded_again(
    folder: Path, found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kyomei.stages.pools.SHARD_DOCUMENTS", 40)
    copy, labels = tmp_path / "run", folder.parent / "self.jsonl"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "goals")
    calls, capture = [0], LanguageModel.capture

    def stopping(self: LanguageModel, *arguments: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == 60:
            raise KeyboardInterrupt
        return capture(self, *arguments, **more)

    monkeypatch.setattr(LanguageModel, "capture", stopping)
    verb("goals", copy, "--labels", labels)
    before = sorted(path.name for path in copy.glob("goals/*/shard-*"))
    assert 0 < len(before) < 4
    again = verb("goals", copy, "--labels", labels, "--json")
    assert again.exit_code == 0 and json.loads(again.stdout) == found
    calls[0] = 100
    other = verb("goals", copy, "--labels", labels, "--goal", "words", "--json")
    assert other.exit_code == 0 and calls[0] == 100, "another column of the same text"
    score = json.loads(other.stdout)["words"]
    assert score["detector"]["kind"] == "score" and score["figures"]["r2"]["value"] > 0.1
    assert set(detectors(copy)) == {"self", "words"}, "goals of before stay"
    assert "R²" in verb("goals", copy, "--labels", labels, "--goal", "words").stdout


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["goals", "RUN"], "a file of labelled text"),
        (["goals", "RUN", "--labels", "nowhere.csv"], "none at nowhere.csv"),
        (["goals", "RUN", "--labels", "FILE", "--goal", "colour"], "values of 'colour'"),
        (["goals", "RUN", "--labels", "FILE", "--dictionary", "replicas-1"], "a dictionary that ships: replicas-0"),
        (["detect", "RUN", "spam", "x"], "a goal of the run: self"),
        (["detect", "RUN", "self", "x", "--lines"], "texts from one place"),
        (["detect", "RUN", "self", "--file", "nowhere"], "nothing at nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_line(more: list[str], words: str, folder: Path, found: dict[str, Any]) -> None:
    places = {"RUN": str(folder), "FILE": str(folder.parent / "self.jsonl")}
    done = verb(*(places.get(word, word) for word in more))
    assert done.exit_code == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_another_dictionary_is_refused(folder: Path, found: dict[str, Any], tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    dictionary(embedded()).save(copy / "replicas/0")
    done = verb("detect", copy, "self", "x")
    assert done.exit_code == 2 and "the dictionary that the goal was found with" in done.stderr
    (copy / "certificate.json").unlink()
    done = verb("goals", copy, "--labels", folder.parent / "self.jsonl")
    assert done.exit_code == 2 and "a certificate" in done.stderr and "kyomei certify" in done.stderr
