"""Audit and forget, on a small harvest with a certified run on it, and on a run in one go."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from safetensors import safe_open
from tests.faults.moments import stopped_at
from typer.testing import CliRunner

from kyomei.cli import app
from kyomei.errors import RunError
from kyomei.evidence.goals.detector import read_goals
from kyomei.runs import Run
from kyomei.sealing import files_of, seal_of, sealed
from kyomei.source.text import Tokens
from kyomei.stages.audit import audit
from kyomei.stages.certify import certify_run, verdict_of
from kyomei.stages.forget import documents_of, forget
from kyomei.stages.index import index_run
from kyomei.stages.measure import measure_run
from kyomei.stages.progress import Reporter
from kyomei.stages.report import report_run
from kyomei.stages.train import train_run
from kyomei.views.labels import Label, Labels

SOURCE = {"source.num_tokens": 12_000, "source.context": 64, "source.spread": 2, "source.evidence_share": 0.5}
SOURCE["source.windows_per_shard"] = 24
TRAIN = {"mechanism.name": "topk", "dictionary.width": 32, "dictionary.l0": 4, "train.steps": 10, "train.batch_rows": 64}
EVIDENCE, LEARNT = "evidence", "replica-0"


def options(*settings: dict[str, Any]) -> list[str]:
    return [part for each in settings for key, value in each.items() for part in ("--set", f"{key}={value}")]


def kyomei(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> Result:
    result = kyomei(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def refused(*arguments: str | Path) -> str:
    result = kyomei(*arguments)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("kyomei: Expected"))
    return line


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with H, a harvest; R, a run on it with all that a run shows; and K, a run in one go. Nothing may change it."""
    place = tmp_path_factory.mktemp("governed") / "runs"
    done("harvest", place / "H", *options(SOURCE))
    done("train", place / "R", "--from", place / "H", *options(TRAIN))
    run = Run.open(place / "R")
    with run.lock():
        certify_run(run, Reporter())
        measure_run(run, Reporter())
        index_run(run, Reporter(), ["replicas-0"])
        report_run(run)
    done("train", place / "K", *options({**SOURCE, "source.num_tokens": 8_000}, TRAIN))
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(made, tmp_path / "runs", copy_function=shutil.copy2)


def document_of(harvest: Path, part: str) -> Any:
    """The document of a part that has most tokens beside others in it."""
    found = sorted((kept for kept in documents_of(Run.open(harvest)) if kept.part == part), key=lambda kept: -kept.tokens)
    return found[1]


# ── Audit ──


def test_a_run_is_whole_with_the_chain_from_its_report_to_the_text(made: Path) -> None:
    facts = json.loads(done("audit", made / "R", "--json").stdout)
    assert facts["whole"] and not facts["unverified"] and not facts["unnamed"]
    links = [link["name"] for chain in facts["chains"].values() for link in chain]
    assert [name for name in dict.fromkeys(links) if name not in ("index", "premises")] == [
        "report", "certificate", "evidence", "dictionary", "activations", "tokens", "text", "model",
    ]  # fmt: skip
    assert all(link["sha256"] for chain in facts["chains"].values() for link in chain)
    assert facts["names"]["data"]["licence"] == "PSF-2.0" and facts["names"]["model"]["licence"] == "Apache-2.0"
    assert facts["names"]["seed"] == 0 and facts["names"]["redaction"] == "none"
    shown = done("audit", made / "R").stdout
    assert shown.startswith("Whole: ") and "certificate.json" in shown


def test_a_changed_byte_in_any_file_is_found_and_named(place: Path) -> None:
    draw = np.random.default_rng(0)
    Labels(place / "R/explore/labels.sqlite").add(Label.new(dictionary="replicas-0", digest="d", latent=1, label="verbs"))
    done("export", place / "R", place / "exported", "--format", "saelens")
    tried = 0
    for name in ("R", "H", "K"):
        folder = place / name
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files if name != "K" else [path for path in files if "tokens" not in path.parts][::5]:
            content = path.read_bytes()
            at = int(draw.integers(len(content)))
            path.write_bytes(content[:at] + bytes([content[at] ^ (1 << int(draw.integers(8)))]) + content[at + 1 :])
            facts = audit(folder, Reporter())
            named = path.relative_to(folder).as_posix().removesuffix(".sha256")
            assert not facts["whole"] and any(found["file"].startswith(named) for found in facts["broken"]), (named, at)
            path.write_bytes(content)
            tried += 1
    assert tried > 60
    shard = next((place / "H").rglob("shard-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    result = kyomei("audit", place / "R", "--json")
    assert result.exit_code == 1 and "shard-" in json.loads(result.stdout)["broken"][0]["file"]


def test_a_removed_file_an_added_one_and_a_link_to_another_are_named(place: Path) -> None:
    (place / "R/replicas/1/events.jsonl").unlink()
    (place / "R/thesis.txt").write_text("years of work")
    facts = audit(place / "R", Reporter())
    assert [(found["file"], found["what"]) for found in facts["broken"]] == [("replicas/1/events.jsonl", "missing")]
    assert facts["unverified"] == ["thesis.txt"]
    run = Run.open(place / "R")
    with run.lock():  # whatever is written while a run is held is in its manifest, and what is gone before is not forgotten
        run.path("goals.json").write_text("{}")
        shutil.copy(run.path("replicas/1/sae.safetensors"), run.path("replicas/0/sae.safetensors"))
    facts = audit(place / "R", Reporter())
    broken = {found["file"]: found["what"] for found in facts["broken"]}
    assert set(broken) == {"replicas/1/events.jsonl", "certificate.json", "evidence.json", "explore/replicas-0/index.json"}
    assert "replicas/0/sae.safetensors (another)" in broken["certificate.json"] and not facts["unverified"]


def test_what_a_stopped_verb_leaves_is_no_damage_and_the_next_one_vouches_for_it(place: Path) -> None:
    run = Run.open(place / "R")
    with pytest.raises(ZeroDivisionError), run.lock():
        run.path("report.html").write_text("half")
        raise ZeroDivisionError
    assert audit(run.folder, Reporter())["unverified"] == ["report.html"]
    pid = os.fork()
    if not pid:
        with run.lock():
            run.path("report.html").write_text("half, and killed")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    done("report", run.folder)
    facts = audit(run.folder, Reporter())
    assert facts["whole"] and not facts["unverified"]


def test_a_manifest_that_was_changed_by_others_says_so_for_good(place: Path) -> None:
    path = place / "R/manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7', 1))
    for _ in range(2):
        facts = audit(place / "R", Reporter())
        assert [found["file"] for found in facts["broken"]] == ["manifest.json"]
        Run.open(place / "R").note(x=1)


def test_a_file_that_vouches_for_itself() -> None:
    content = sealed({"a": "é", "b": [1]})
    assert json.loads(content)["b"] == [1] and seal_of(content) == "whole"
    assert all(seal_of(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]) != "whole" for at in range(len(content)))
    assert seal_of(b'{\n "a": 1\n}\n') == "none"


def test_audit_refuses_what_is_no_run_and_what_is_being_worked_on(place: Path) -> None:
    assert "no manifest.json" in refused("audit", place)
    with Run.open(place / "R").lock():
        assert "locked by process" in refused("audit", place / "R")


# ── Forget ──


WEIGHTS = np.random.default_rng(1).integers(1, 2**40, 8)


def grams(ids: np.ndarray) -> np.ndarray:
    """A number for every sequence of eight ids."""
    flat = np.asarray(ids, dtype=np.int64).ravel()
    if len(flat) < 8:
        return np.zeros(0, np.int64)
    with np.errstate(over="ignore"):
        return sum((flat[i : len(flat) - 7 + i] * WEIGHTS[i] for i in range(8)), np.zeros(len(flat) - 7, np.int64))


class Peculiar:
    """The 8-token sequences of a document that no other document of the harvest has, as ids and as text."""

    def __init__(self, harvest: Path, sha256: str) -> None:
        own: set[int] = set()
        grams_of: set[tuple[int, ...]] = set()
        self.texts: set[str] = set()
        others: set[int] = set()
        run = Run.open(harvest)
        gone = [kept for kept in documents_of(run) if kept.sha256 == sha256]
        for index in (harvest / "tokens").glob("*/index.json"):
            tokens = Tokens.load(index.parent)
            numbers = [kept.number for kept in gone if kept.part == index.parent.name]
            for window, document in zip(tokens.ids.numpy(), tokens.document.numpy(), strict=True):
                for number in set(document.tolist()):
                    part = window[document == number]
                    (own if number in numbers else others).update(grams(part).tolist())
                    if number in numbers:
                        grams_of.update(tuple(part[i : i + 8].tolist()) for i in range(len(part) - 7))
            documents = tokens.document.flatten().tolist()
            for at in range(len(documents) - 7):
                if at % tokens.context <= tokens.context - 8 and {*documents[at : at + 8]} <= {*numbers}:
                    self.texts.add("".join(tokens.text_at(place) for place in range(at, at + 8)))
        self.ids = np.array(sorted(own - others))
        grams_of = {gram for gram in grams_of if np.isin(grams(np.array(gram)), self.ids).all()}
        numbers_gone = {(kept.part, kept.number) for kept in gone}
        whole = "\0".join(
            document.text
            for index in (harvest / "tokens").glob("*/index.json")
            for number, document in enumerate(Tokens.load(index.parent).documents)
            if (index.parent.name, number) not in numbers_gone
        )
        self.texts = {text for text in self.texts if len(text.strip()) > 8 and text not in whole}
        assert len(self.ids) > 20 and len(self.texts) > 20
        self.shortest = min(map(len, self.texts))
        self.starts = {text[: self.shortest] for text in self.texts}
        encoded = [text.encode(code) for text in sorted(self.texts)[::20] for code in ("utf-8", "utf-16-le")]
        as_ids = [np.array(gram, kind).tobytes() for gram in sorted(grams_of)[::20] for kind in ("<u2", "<i4", "<i8")]
        self.samples = [*encoded, *as_ids]

    def found_in(self, folder: Path) -> list[str]:
        """Files that hold one, in whatever form."""
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and self._is_in(path))

    def _is_in(self, path: Path) -> bool:
        content = path.read_bytes()
        if any(sample in content for sample in self.samples):
            return True
        texts, ids = [content.decode("utf-8", "ignore")] if path.suffix != ".safetensors" else [], []
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as held:
                arrays = [held.get_tensor(name) for name in held.keys()]  # noqa: SIM118
            ids += [row for array in arrays if array.dtype.kind in "iu" for row in np.atleast_2d(array)]
        elif path.suffix == ".parquet":
            texts += strings(pq.read_table(path).to_pylist())
        elif path.suffix in (".json", ".jsonl"):
            lines = content.splitlines() if path.suffix == ".jsonl" else [content]
            texts += [part for line in lines for part in strings(json.loads(line))]
        elif path.suffix == ".sqlite":
            texts += strings(sqlite3.connect(path).execute("SELECT * FROM labels").fetchall())
        elif path.suffix == ".duckdb":
            with duckdb.connect(str(path), read_only=True) as connection:
                texts += strings(connection.execute("SELECT * FROM notes").fetchall())
        elif path.suffix == ".html":
            texts.append(html.unescape(re.sub("<[^>]*>", "", texts[0])))
        return any(map(self._is_said, texts)) or any(np.isin(grams(row), self.ids).any() for row in ids)

    def _is_said(self, whole: str) -> bool:
        found = self.starts & {whole[i : i + self.shortest] for i in range(len(whole) - self.shortest + 1)}
        return any(text in whole for text in self.texts if text[: self.shortest] in found)


def strings(value: Any) -> list[str]:
    """The strings of each list, together: a list of tokens is a text."""
    if isinstance(value, str):
        return [value]
    inside = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list | tuple) else []
    own = [item for item in inside if isinstance(item, str)]
    pairs = [item[0] for item in inside if isinstance(item, list | tuple) and item and isinstance(item[0], str)]
    return ["".join(own), "".join(pairs), *(text for item in inside for text in strings(item))]


def test_nothing_of_a_forgotten_document_is_left_in_any_artefact(place: Path) -> None:
    kept = document_of(place / "H", EVIDENCE)
    peculiar, run = Peculiar(place / "H", kept.sha256), place / "R"
    quote = max((text for text in peculiar.texts if "\n" not in text and "  " not in text), key=len).strip()
    labels = Labels(run / "explore/labels.sqlite")
    for number, text in enumerate((quote, "verbs")):
        labels.add(Label.new(dictionary="replicas-0", digest="d", latent=number, label=text, note=text, author="a"))
    done("export", run, run / "delphi", "--format", "delphi")
    done("export", run, place.parent / "elsewhere", "--format", "delphi")
    with duckdb.connect(str(run / "notes.duckdb")) as connection:
        connection.execute("CREATE TABLE notes AS SELECT ? AS note", [f"see {quote}"])
    (run / "goals.jsonl").write_text(json.dumps({"a": [[t, 0.5] for t in quote]}) + "\n")
    (run / "report.pdf").write_bytes(b"%PDF-1.4 compressed")
    (run / "kept.txt").write_text("of no document")
    before = {name: peculiar.found_in(place / name) for name in ("H", "R")}
    assert {"tokens/evidence/tokens.safetensors", "tokens/evidence/documents.parquet"} <= {*before["H"]}
    assert {"explore/replicas-0/documents.parquet", "explore/labels.sqlite", "notes.duckdb", "goals.jsonl"} <= {*before["R"]}
    assert any(name.startswith("delphi/") for name in before["R"])

    facts = json.loads(done("forget", place / "R", "--document", kept.name, "--json").stdout)

    assert {name: peculiar.found_in(place / name) for name in ("H", "R")} == {"H": [], "R": []}
    names = {path: path.read_bytes() for name in ("H", "R") for path in (place / name).rglob("*.json")}
    assert [path for path, content in names.items() if kept.name.encode() in content] == []
    assert {(entry.label, entry.note) for entry in labels.of("replicas-0", "d")} == {("[forgotten]", ""), ("verbs", "verbs")}
    assert not (run / "report.pdf").exists() and (run / "kept.txt").exists()
    assert facts["certificates"] == ["../R/certificate.json"] and facts["weights"] == [] and facts["labels"] == 1
    elsewhere = [entry for entry in facts["exports"] if entry["where"].endswith("elsewhere")]
    assert [entry["holds"] for entry in elsewhere] == [True]
    assert audit(run, Reporter())["whole"]


def test_what_a_goal_keeps_of_a_forgotten_document_goes_and_the_goal_expires(place: Path, tmp_path: Path) -> None:
    run, kept = Run.open(place / "R"), document_of(place / "H", EVIDENCE)
    peculiar = Peculiar(place / "H", kept.sha256)
    with run.lock():
        for replica in ("1", "2"):  # the same once more: all is certified
            shutil.copytree(run.path("replicas/0"), run.path(f"replicas/{replica}"), dirs_exist_ok=True)
    done("certify", run.folder)
    tokens = Tokens.load(place / "H/tokens/replica-1")
    pieces = [text[at : at + 120] for text in (d.text for d in tokens.documents) for at in range(0, len(text) - 120, 120)]
    records = [{"text": piece, "label": number % 2} for number, piece in enumerate(dict.fromkeys(pieces[:80])) if piece.strip()]
    whole = Tokens.load(place / "H/tokens/evidence").documents[kept.number].text
    for name, more in (("with", [{"text": whole, "label": 1}]), ("without", [])):
        lines = [json.dumps(record) + "\n" for record in (*records, *more)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
        done("goals", run.folder, "--labels", tmp_path / f"{name}.jsonl")
    before = {goal["data"]["encoded"]: name for name, goal in run.read_json("goals.json")["goals"].items()}
    assert {path.name for path in (place / "R/goals").iterdir()} == set(before) and set(before.values()) == {"with", "without"}
    named = run.read_json("goals.json")["goals"]["without"]["detector"]["features"]
    assert any(f["tokens"] for f in named), "there is something to blank"
    done("detect", run.folder, "with", "import os")
    earlier = run.path("earlier/2026-01-01T000000+0000/goals.json")  # what a smaller pilot of this run told
    earlier.parent.mkdir(parents=True)
    shutil.copy2(run.path("goals.json"), earlier)
    assert any(feature["tokens"] for feature in named)

    facts = json.loads(done("forget", place / "H", "--document", kept.id, "--json").stdout)

    assert peculiar.found_in(place / "R") == []
    assert not any(found["file"].startswith("goals") for found in audit(run.folder, Reporter())["broken"])
    assert facts["goals"] == [{"run": "../R", "goal": "with", "file": "with.jsonl"}]
    assert [before[path.name] for path in (place / "R/goals").iterdir()] == ["without"]
    goals = run.read_json("goals.json")["goals"]
    assert goals["with"]["expired"]["why"].startswith("documents that it was found with were forgotten on 2")
    assert "expired" not in goals["without"] and not any(f["tokens"] for f in goals["without"]["detector"]["features"])
    assert [f["weight"] for f in goals["without"]["detector"]["features"]] == [f["weight"] for f in named]
    told = [goal["detector"]["features"] for goal in read_goals(earlier.parent).values()]
    assert len(told) == 2 and all(features and not any(f["tokens"] for f in features) for features in told)
    stone = json.loads((place / "R/forgotten.json").read_text())["forgotten"][0]
    assert stone["goals"] == facts["goals"] and len(stone["files"]["goals.json"]["old"]) == 64
    gone = [each["new"] for name, each in stone["files"].items() if name.startswith("goals/")]
    assert gone and set(gone) == {None}
    assert "'with', which has expired" in refused("detect", run.folder, "with", "import os")
    done("detect", run.folder, "without", "import os")
    page = (place / "R/report.html").read_text()
    assert "The goal with has expired" in page and "The goal without has expired" not in page
    shutil.rmtree(place / "R/goals")  # nobody knows any more what a goal was found with
    later = document_of(place / "H", LEARNT)
    assert [goal["goal"] for goal in forget(place / "H", [later.id], Reporter())["goals"]] == ["without"]
    done("certify", run.folder)
    (tmp_path / "with.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    done("goals", run.folder, "--labels", tmp_path / "with.jsonl")
    done("detect", run.folder, "with", "import os")


def test_rows_that_a_model_made_beside_the_document_are_gone_and_others_are_as_they_were(place: Path, made: Path) -> None:
    kept = document_of(place / "H", EVIDENCE)
    site = next((place / "H/activations/evidence").iterdir()).name
    before = Tokens.load(made / "H/tokens/evidence")
    windows = {int(w) for w in np.flatnonzero((before.document == kept.number).any(dim=1).numpy())}
    done("forget", place / "H", "--document", kept.id)
    after = Tokens.load(place / "H/tokens/evidence")

    def rows(folder: Path) -> dict[int, bytes]:
        found = {}
        for path in sorted((folder / "H/activations/evidence" / site).glob("*.safetensors")):
            with safe_open(path, framework="numpy") as held:
                pairs = zip(held.get_tensor("row_tokens").tolist(), held.get_tensor("activations"), strict=True)
                found.update({place: row.tobytes() for place, row in pairs})
        return found

    old, new = rows(made), rows(place)
    assert new == {at: row for at, row in old.items() if at // before.context not in windows} and len(new) < len(old)
    same = (before.document != kept.number).numpy()
    assert (before.ids.numpy()[same] == after.ids.numpy()[same]).all() and (after.document.numpy()[~same] == -1).all()


def test_after_it_every_verb_works_again_and_the_tombstone_keeps_the_chain(place: Path) -> None:
    run, kept = Run.open(place / "R"), document_of(place / "H", LEARNT)
    facts = forget(place / "H", [kept.sha256[:16]], Reporter())
    assert set(facts["weights"]) == {"../R/replicas/0", "../R/controls/gaussian/topk/0"}
    certificate = run.read_json("certificate.json")
    assert certificate["expired"]["why"].startswith("documents were forgotten on 2")
    assert "certificate" not in run.read_json("replicas/0/config.json")["provenance"]
    assert verdict_of(run).level == "not tested"
    page = (place / "R/report.html").read_text()
    assert "The certificate of TopK has expired" in page
    found = audit(run.folder, Reporter())
    states = {link["file"]: link["state"] for link in found["chains"]["."]}
    assert found["whole"] and states["certificate.json"] == states["replicas/0/sae.safetensors"] == "expired"
    assert found["forgotten"][0]["documents"] == [kept.sha256]
    entry = json.loads((place / "H/forgotten.json").read_text())["forgotten"][0]
    old = json.loads((place / "R/forgotten.json").read_text())["forgotten"][0]["files"]["certificate.json"]["old"]
    assert len(old) == 64 and all(len(each["old"]) == 64 for each in entry["files"].values())
    for verb in (("certify", run.folder), ("index", run.folder), ("measure", run.folder), ("report", run.folder)):
        done(*verb)
    assert run.read_json("certificate.json")["expired"] is None
    assert [link for link in audit(run.folder, Reporter())["chains"]["."] if link["state"] == "broken"] == []
    assert "has expired" not in (place / "R/report.html").read_text()
    assert json.loads(done("forget", place / "H", "--document", kept.sha256, "--json").stdout)["runs"] == []
    history = json.loads((place / "H/manifest.json").read_text())["history"]
    assert not any(kept.sha256[:16] in act["command"] for act in history)


def test_a_run_in_one_go_forgets_within_its_own_folder(place: Path) -> None:
    kept = document_of(place / "K", LEARNT)
    peculiar = Peculiar(place / "K", kept.sha256)
    facts = json.loads(done("forget", place / "K", "--document", kept.name, "--json").stdout)
    assert facts["weights"] == ["./replicas/0", "./controls/gaussian/topk/0"] and len(facts["runs"]) == 1
    assert peculiar.found_in(place / "K") == [] and audit(place / "K", Reporter())["whole"]
    assert not any((place / "H").rglob("forgotten.json"))


def test_without_text_a_document_is_told_by_its_name_in_all_parts_and_a_file_stands_for_its_records(tmp_path: Path) -> None:
    library = sorted(Path(json.__file__).parents[1].glob("*.py"))[:60]
    texts = [path.read_text(errors="ignore")[:2000] for path in library]
    for name, part in (("a", texts[::2]), ("b", texts[1::2])):
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / f"text/{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    more = {"source.text": tmp_path / "text", "source.keep_text": "false", "source.streamed_tokens": 6000}
    done("harvest", tmp_path / "H", *options(SOURCE, more))
    kept = documents_of(Run.open(tmp_path / "H"))
    twice = next(d for d in kept if d.part == "stream-0" and any(o.name == d.name and o.part == LEARNT for o in kept))
    facts = forget(tmp_path / "H", [twice.id], Reporter())
    assert {part for document in facts["documents"] for part in document["parts"]} == {LEARNT, "stream-0"}
    forget(tmp_path / "H", ["a.jsonl"], Reporter())
    assert {d.name.partition(":")[0] for d in documents_of(Run.open(tmp_path / "H"))} == {"b.jsonl"}
    assert audit(tmp_path / "H", Reporter())["whole"]


def test_an_unfinished_training_begins_anew_on_what_is_left(place: Path) -> None:
    run, kept = Run.open(place / "R"), document_of(place / "H", LEARNT)
    stages = {name: when for name, when in run.manifest["stages"].items() if not name.startswith("train")}
    with run.lock():
        run.note(stages=stages)
        for name in ("sae.safetensors", "config.json"):
            run.path(f"replicas/0/{name}").unlink()
    forget(place / "H", [kept.id], Reporter())
    assert not run.path("replicas/0/checkpoints").exists() and run.path("replicas/1/checkpoints").exists()
    with run.lock():
        train_run(run, Reporter())
    assert run.done("train replicas/0")


def test_a_run_elsewhere_says_what_to_do_and_follows(place: Path, tmp_path: Path) -> None:
    far = shutil.move(place / "R", tmp_path / "far/R")
    done("train", far, "--resume", "--from", place / "H")
    kept = document_of(place / "H", EVIDENCE)
    forget(place / "H", [kept.id], Reporter())
    assert f"kyomei forget {place / 'H'} --runs {far}" in refused("measure", far)
    facts = forget(place / "H", [], Reporter(), places=[Path(far)])
    assert facts["runs"] == [str(Path(far))] and not (Path(far) / "examples.json").exists()
    assert kept.name not in (Path(far) / "manifest.json").read_text() and audit(Path(far), Reporter())["whole"]
    done("certify", far)
    assert forget(place / "H", [], Reporter(), places=[Path(far)])["runs"] == []


def test_what_cannot_be_done_is_refused_and_changes_nothing(place: Path) -> None:
    before = contents(place)
    assert "none called 'tempfil.py'" in refused("forget", place / "H", "--document", "tempfil.py")
    kept = documents_of(Run.open(place / "H"))
    evidence = [part for d in kept if d.part == EVIDENCE for part in ("--document", d.id)]
    assert "rows of other documents in the part evidence" in refused("forget", place / "H", *evidence)
    with pytest.raises(RunError, match="Nothing was changed"):
        forget(place / "H", [kept[0].id], Reporter(), agree=lambda asked: False)
    with Run.open(place / "R").lock():
        assert "locked by process" in refused("forget", place / "H", "--document", kept[0].id)
    after = contents(place)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert {name.rpartition("/")[2] for name in changed if "/forgetting/" not in name} <= {"manifest.json"}
    forget(place / "H", [kept[0].id], Reporter())  # and what was staged is no hindrance
    assert not list(place.rglob("forgetting*"))


def test_the_list_shows_what_a_document_may_be_called(made: Path) -> None:
    listed = json.loads(done("forget", made / "H", "--list", "--json").stdout)
    assert {"part", "number", "name", "sha256", "tokens"} == set(listed[0])
    assert len(listed) == len(documents_of(Run.open(made / "H")))


def contents(place: Path) -> dict[str, bytes]:
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}


TIMED = ("manifest.json", "forgotten.json", "certificate.json", "report.html", "report.ja.html", "reports.jsonl")
"""Files that say when they were made."""


def timeless(place: Path) -> dict[str, Any]:
    """The files of the runs, without times: those that hold some are there or not."""
    found: dict[str, Any] = {}
    for name in ("H", "R"):
        for file in files_of(place / name, "nothing"):
            says_time = Path(file).name in TIMED
            found[f"{name}/{file}"] = None if says_time else (place / name / file).read_bytes()
    return found


def copied(made: Path, folder: Path) -> Path:
    """H and R, to be changed."""
    return shutil.copytree(made, folder, copy_function=shutil.copy2, ignore=shutil.ignore_patterns("K"))


def same_whenever_killed(most: int, made: Path, tmp_path: Path) -> None:
    """Forget, killed at so many moments spread over all there are, and ended: always the same files, and whole."""
    kept = document_of(made / "H", EVIDENCE)
    place = copied(made, tmp_path / "undisturbed")
    moments = stopped_at(0, lambda: forget(place / "H", [kept.id], Reporter()))
    assert moments is not None and moments > 60
    expected = timeless(place)
    for moment in np.unique(np.linspace(1, moments, most).round().astype(int)).tolist():
        place = copied(made, tmp_path / "killed")
        assert stopped_at(moment, lambda: forget(place / "H", [kept.id], Reporter())) is None, moment  # noqa: B023
        wanted = [] if (place / "H/forgetting.json").exists() else [kept.sha256]
        forget(place / "H", wanted, Reporter())
        facts = audit(place / "R", Reporter())
        assert facts["whole"] and not facts["unverified"], (moment, facts["broken"], facts["unverified"])
        found = timeless(place)
        assert {name for name in expected.keys() | found.keys() if expected.get(name, 0) != found.get(name, 0)} == set(), moment
        shutil.rmtree(place)


def test_a_kill_anywhere_leaves_what_forget_ends(made: Path, tmp_path: Path) -> None:
    same_whenever_killed(4, made, tmp_path)


@pytest.mark.sweep
def test_a_kill_at_sixty_moments_leaves_what_forget_ends(made: Path, tmp_path: Path) -> None:
    same_whenever_killed(60, made, tmp_path)
