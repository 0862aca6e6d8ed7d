"""`kyomei watch` on a certified run: counted once whatever happens, told in events, remembered in a folder."""

from __future__ import annotations

import io
import json
import shutil
import signal
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.warm import begun, command_line, ended, verb
from typer.testing import CliRunner, Result

from kyomei.atomic import sha256_of
from kyomei.cli import app
from kyomei.evidence import drift
from kyomei.evidence.goals.detector import Detector, file_of
from kyomei.runs import Run
from kyomei.source.stdlib import stdlib_documents
from kyomei.source.text import Document, Tokens
from kyomei.stages import watch as stage
from kyomei.stages import watched
from kyomei.views.watch import Metrics, event_words, streams

QUIET, REFUSED, ALARM, EXPIRED, STOPPED = 0, 2, 3, 4, 130
FOREIGN = "Es war einmal ein König, der hatte drei Töchter, und die jüngste war so schön, dass sich die Sonne wunderte. "


def kyomei(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["watch", *map(str, arguments)], input=stdin)


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def records(texts: Sequence[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def shuffled() -> list[Document]:
    documents = stdlib_documents()
    return [documents[i] for i in np.random.default_rng(0).permutation(len(documents))]


def own_texts(count: int) -> list[str]:
    """Documents of the law that the reference is of."""
    return [document.text for document in shuffled()[:count]]


@pytest.fixture(scope="module")
def run(indexed: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy that may be written to, with a reference of more documents than so small a run has."""
    folder = tmp_path_factory.mktemp("watched") / "run"
    shutil.copytree(indexed.folder, folder)
    parts = {"replica-0": shuffled()[100:124], "evidence": shuffled()[200:260]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watched, "tokens_of", lambda _, part: SimpleNamespace(has_text=True, documents=parts[part]))
        done = kyomei(folder, "--prepare")
    assert done.exit_code == QUIET and "reference: 60 documents" in done.stderr, done.stderr
    return Run.open(folder)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "WINDOW_DOCUMENTS", 8)
    monkeypatch.setattr(stage, "WINDOW_TOKENS", 500)


def test_text_of_standard_input_is_counted_told_and_gone_on_with(run: Run, tmp_path: Path) -> None:
    texts = own_texts(30)
    done = kyomei(run.folder, "--state", tmp_path, "--json", stdin=records(texts[:19]))
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["event"] for each in said] == ["start", "window", "window", "end", "status"], done.stderr
    assert said[:-1] == events(tmp_path)
    assert done.exit_code == QUIET and said[-1]["documents"] == 19 and said[-1]["certificate"]["state"] == "valid"
    again = kyomei(run.folder, "--state", tmp_path, "--lines", stdin="\n" + " ".join(texts[19].split()) + "\n\n")
    assert again.exit_code == QUIET and "watching goes on after 19 documents" in again.stderr
    assert json.loads((tmp_path / "status.json").read_text())["documents"] == 20
    replayed = kyomei(run.folder, "--state", tmp_path, "--replay", stdin=records(texts[:5]))
    assert replayed.exit_code == REFUSED and "the documents that were counted before" in replayed.stderr


def test_what_is_read_again_is_not_counted_again(run: Run, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(records(own_texts(12)))
    for count, more in ((12, ""), (12, ""), (15, records(own_texts(15)[12:]))):
        with text.open("a") as file:
            file.write(more)
        assert kyomei(run.folder, "--state", tmp_path / "s", "--text", text).exit_code == QUIET
        assert json.loads((tmp_path / "s/status.json").read_text())["documents"] == count
    text.write_text(records(own_texts(20)[1:]))
    changed = kyomei(run.folder, "--state", tmp_path / "s", "--text", text)
    assert changed.exit_code == REFUSED and "Found other documents among the first 15" in changed.stderr
    anew = kyomei(run.folder, "--state", tmp_path / "s", "--text", text, "--overwrite")
    assert anew.exit_code == QUIET and json.loads((tmp_path / "s/status.json").read_text())["documents"] == 19


def test_however_it_is_cut_up_the_evidence_is_the_same(run: Run, tmp_path: Path) -> None:
    """Killed at any write of its state, with documents and events after it that nobody vouches for."""
    text = tmp_path / "text.jsonl"
    text.write_text(records([*own_texts(14), *[FOREIGN * 6] * 3]))
    kyomei(run.folder, "--state", tmp_path / "whole", "--text", text)
    part = tmp_path / "part.jsonl"
    for lines in (3, 11, 17):
        part.write_text("".join(text.read_text().splitlines(keepends=True)[:lines]))
        shutil.copy(part, tmp_path / "now.jsonl")
        kyomei(run.folder, "--state", tmp_path / "cut", "--text", tmp_path / "now.jsonl")
        with (tmp_path / "cut/events.jsonl").open("a") as file:
            file.write('{"event": "window", "half": ')
    whole, cut = (json.loads((tmp_path / name / "status.json").read_text()) for name in ("whole", "cut"))
    assert whole["evidence"] == cut["evidence"] and whole["features"] == cut["features"]
    kyomei(run.folder, "--state", tmp_path / "cut", "--text", tmp_path / "now.jsonl")
    told = [each for each in events(tmp_path / "cut") if each["event"] == "window"]
    assert [each["window"] for each in told] == [1, 2]


def test_foreign_text_raises_an_alarm_that_ends_the_certificate(run: Run, tmp_path: Path) -> None:
    texts = own_texts(60)
    mixed = [FOREIGN * (3 + i % 5) if i % 2 else text for i, text in enumerate(texts)]
    done = kyomei(run.folder, "--state", tmp_path, "--stop-at-alarm", stdin=records(mixed))
    assert done.exit_code == ALARM, done.stderr
    told = events(tmp_path)
    alarm = next(each for each in told if each["event"] == "alarm")
    assert alarm["document"] <= 60 and "ALARM: " in done.stderr
    assert next(each for each in told if each["event"] == "certificate")["reasons"] == ["drift"]
    assert "certificate: expired: the text is no longer like the evidence" in done.stdout
    quiet = kyomei(run.folder, "--state", tmp_path, stdin="")
    assert quiet.exit_code == ALARM, "an alarm stays"
    (stream,) = [each for each in streams(tmp_path.parent) if each["name"] == tmp_path.name]
    assert stream["status"]["alarms"] and len(stream["windows"]) == stream["status"]["windows"]


def test_age_and_other_files_end_a_certificate_without_an_alarm(run: Run, tmp_path: Path) -> None:
    texts = records(own_texts(2))
    old = kyomei(run.folder, "--state", tmp_path / "old", "--max-age", "0", stdin=texts)
    assert old.exit_code == EXPIRED and "it is too old" in old.stderr
    shutil.copytree(run.folder, tmp_path / "run")
    sae = tmp_path / "run/replicas/1/sae.safetensors"
    sae.write_bytes((tmp_path / "run/replicas/2/sae.safetensors").read_bytes())
    other = kyomei(tmp_path / "run", "--state", tmp_path / "other", "--json", stdin=texts)
    told = [json.loads(line) for line in other.stdout.splitlines()]
    assert other.exit_code == EXPIRED and told[-1]["certificate"]["reasons"] == ["files"]
    assert told[-1]["certificate"]["changed"] == ["replicas/1/sae.safetensors"]


def test_stored_rows_are_held_to_stored_rows(run: Run, tmp_path: Path) -> None:
    done = kyomei(run.folder, "--state", tmp_path, "--activations", run.folder, "--json")
    assert done.exit_code in (QUIET, ALARM), done.stderr
    status = json.loads(done.stdout.splitlines()[-1])
    parts = run.manifest["split"]
    assert 0 < status["documents"] <= sum(len(names) for names in parts.values())
    assert status["reference"]["way"] == "packed"
    text = kyomei(run.folder, "--state", tmp_path, stdin=records(own_texts(1)))
    assert text.exit_code == REFUSED and "a watch of the same reference" in text.stderr


def test_rows_on_standard_input_are_taken_as_they_are(run: Run, tmp_path: Path) -> None:
    row = [0.1] * stage.opened_dictionary(run).dim
    lines = json.dumps({"activations": [row, row]}) + "\n" + json.dumps({"activations": [row[:-1]]}) + "\n"
    refused = kyomei(run.folder, "--state", tmp_path, stdin=lines)
    assert refused.exit_code == REFUSED and "line 2" in refused.stderr
    taken = kyomei(run.folder, "--state", tmp_path, "--replay", "--skip-bad-records", "--json", stdin=lines)
    assert json.loads(taken.stdout.splitlines()[-1])["tokens"] == 2, taken.stderr


def test_goals_are_watched_and_those_of_another_dictionary_are_refused(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    digest = sha256_of(folder / watched.SHIPPED)
    for dictionary, code in ((digest, QUIET), ("of another", REFUSED)):
        goal = Detector("imports", "label", "mean", (1, 2), (3.0, -1.0), -0.5, 0.5, dictionary)
        (folder / "goals.json").write_text(json.dumps(file_of({"imports": {"detector": goal.to_dict()}})))
        done = kyomei(folder, "--state", tmp_path / "s", "--json", "--overwrite", stdin=records(own_texts(9)))
        assert done.exit_code == code, done.stderr
        if code == REFUSED:
            assert "run `kyomei goals` again" in done.stderr.replace("Run", "run")
            continue
        told = [json.loads(line) for line in done.stdout.splitlines()]
        (score,) = told[-1]["goals"]
        assert score["goal"] == "imports" and 0 < score["score"] < 1 and 0 < score["reference_score"] < 1
        assert [each["name"] for each in told[-1]["evidence"] if each["kind"] == "goals"] == ["imports"]
        assert [each["goal"] for each in told if each["event"] == "window" for each in each["goals"]] == ["imports"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["--text", "nowhere"], None, "nothing at nowhere|nowhere"),
        (["--text", "a", "--activations", "b"], None, "text or activations"),
        (["--text", "a", "--lines"], None, "--lines and --replay for standard input"),
        ([], "no record\n", "a JSON object a line"),
        ([], '{"words": "x"}\n', "a field 'text' in every record"),
    ],
)
def test_what_cannot_be_watched_is_refused_in_one_line(
    run: Run, tmp_path: Path, arguments: list[str], stdin: str | None, message: str
) -> None:
    done = kyomei(run.folder, "--state", tmp_path / "s", *arguments, stdin=stdin)
    assert done.exit_code == REFUSED
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("kyomei: Expected ") and any(part in last for part in message.split("|")), last


def test_a_run_without_text_and_one_without_a_dictionary_say_what_to_do(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    for part in ("evidence", "replica-0"):
        folder = tmp_path / "run/tokens" / part
        Tokens.load(folder).save(folder, keep_text=False)
    (tmp_path / "run/watch/reference-whole.safetensors").unlink()
    bare = kyomei(tmp_path / "run", stdin="x")
    assert bare.exit_code == REFUSED and "--activations" in bare.stderr
    shutil.rmtree(tmp_path / "run/replicas")
    untrained = kyomei(tmp_path / "run", stdin="x")
    assert untrained.exit_code == REFUSED and "Run `kyomei train` first" in untrained.stderr


def test_figures_are_served_to_prometheus_and_the_server_ends(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    kyomei(run.folder, "--state", tmp_path, "--prometheus", "0", stdin=records(own_texts(3)))
    metrics = Metrics("127.0.0.1", 0)
    address = f"http://127.0.0.1:{metrics.port}/metrics"
    try:
        with urllib.request.urlopen(address) as answer:
            assert b"kyomei_watch" not in answer.read(), "nothing before there is a status"
        metrics.update(json.loads((tmp_path / "status.json").read_text()))
        with urllib.request.urlopen(address) as answer:
            said = answer.read().decode()
    finally:
        metrics.close()
    assert "kyomei_watch_documents_total 3.0" in said
    assert 'kyomei_watch_alarm{kind="text",name="distance"} 0.0' in said
    assert "kyomei_watch_certificate_valid 1.0" in said


def test_every_event_is_told_in_one_line(run: Run, tmp_path: Path) -> None:
    kyomei(run.folder, "--state", tmp_path, stdin=records([FOREIGN * 4] * 60))
    told = events(tmp_path)
    assert {each["event"] for each in told} >= {"start", "window", "alarm", "certificate", "end"}
    for each in told:
        assert event_words(each) and "\n" not in event_words(each)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_stopped_anywhere_goes_on_without_counting_twice(run: Run, tmp_path: Path, number: int) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(records(own_texts(40)))
    whole = kyomei(run.folder, "--state", tmp_path / "whole", "--text", text)
    command = ["watch", str(run.folder), "--state", str(tmp_path / "s"), "--text", str(text)]
    process = begun(command_line, *command, err=tmp_path / "said")
    for _ in range(3000):
        if (tmp_path / "s/state.safetensors").exists() or not process.is_alive():
            break
        time.sleep(0.05)
    process.terminate() if number == signal.SIGTERM else process.kill()  # nothing, if it has ended first
    if ended(process, 60) == STOPPED:
        said = (tmp_path / "said").read_text()
        assert "Run the same command again: what is counted stays counted" in said, said
    done = verb(*command)
    assert done.returncode == whole.exit_code, done.stderr
    statuses = [json.loads((tmp_path / name / "status.json").read_text()) for name in ("whole", "s")]
    for key in ("documents", "tokens", "evidence", "features"):
        assert statuses[0][key] == statuses[1][key], key


def test_a_long_line_takes_no_more_memory_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from kyomei.source.records import Fields
    from kyomei.stages import watch_sources

    monkeypatch.setattr(watch_sources, "MOST_LINE_BYTES", 64)
    stream = io.BytesIO(b"x" * 1000 + b"\nshort\n")
    source = watch_sources.StreamSource(stream, None, Fields(), lines=True)  # type: ignore[arg-type]
    assert [(len(line), whole) for line, whole in source._read()] == [(64, False), (6, True)]


def test_the_window_is_the_one_of_the_module() -> None:
    assert (drift.WINDOW_DOCUMENTS, drift.WINDOW_TOKENS) == (50, 10_000)
