"""Runs that cannot be written to, odd folders, plain terminals and full disks, through the real command line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.warm import verb as kyomei

from kyomei.runs import Run

TINY = {
    "source.num_tokens": 12_000,
    "source.context": 64,
    "source.spread": 2,
    "dictionary.width": 64,
    "mechanism.name": "topk",
    "mechanism.start": "random",
    "mechanism.k": 4,
    "train.steps": 20,
    "train.batch_rows": 64,
    "train.checkpoint_every": 10,
}
OPTIONS = ["--threads", "1", *(part for key, value in TINY.items() for part in ("--set", f"{key}={value}"))]


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal."""
    said = done.stderr
    lines = [line for line in said.splitlines() if line.startswith("kyomei: Expected")]
    assert done.returncode == 2 and len(lines) == 1 and "Traceback" not in said, said
    return lines[0]


@pytest.fixture(scope="module", autouse=True)
def text(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A little text, for all runs of this file."""
    folder = tmp_path_factory.mktemp("text")
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "while",
        "one",
        "cat",
        "sat",
        "on",
        "mats",
        "狐",
    ]
    for number in range(48):
        chosen = (words[(number * k * k + k) % len(words)] for k in range(1, 900 + 7 * number))
        (folder / f"{number}.txt").write_text(" ".join(chosen), encoding="utf-8")
    OPTIONS.extend(["--text", str(folder)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quiet") / "run"
    for verb in (("train", folder, *OPTIONS), ("certify", folder), ("measure", folder), ("report", folder)):
        done = kyomei(*verb)
        assert done.returncode == 0, done.stderr
    return folder


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """The same folder where nobody may write, not even the superuser."""
    if os.getuid():
        paths = [folder, *folder.rglob("*")]
        modes = {path: path.stat().st_mode for path in paths}
        for path in paths:
            path.chmod(modes[path] & ~0o222)
        try:
            yield folder
        finally:
            for path in paths:
                path.chmod(modes[path])
        return
    place = folder.with_name("read-only")
    place.mkdir()
    if subprocess.run(["mount", "--bind", "-o", "ro", folder, place], capture_output=True, check=False).returncode:
        pytest.skip("the superuser can write anywhere, and may not mount here")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


@pytest.mark.slow
def test_a_finished_run_that_cannot_be_written_to_is_read(finished: Path) -> None:
    before = json.loads((finished / "manifest.json").read_text())
    with read_only(finished) as folder:
        for verb in ("report", "measure", "certify"):
            done = kyomei(verb, folder, "--json")
            assert done.returncode == 0, (verb, done.stderr)
            assert json.loads(done.stdout)
        assert kyomei("train", folder, "--resume").returncode == 0
        for verb in (("certify", folder, "--baseline", "l1"), ("train", folder, "--overwrite", *OPTIONS)):
            assert "Expected permission" in refused(kyomei(*verb))
        assert "Expected permission" in refused(kyomei("harvest", folder / "below", *OPTIONS))
    assert json.loads((finished / "manifest.json").read_text()) == before


@pytest.mark.slow
def test_what_is_up_to_date_is_read_while_another_process_works(finished: Path) -> None:
    with Run.open(finished).lock():
        for verb in (("certify", finished), ("train", finished, "--resume")):
            done = kyomei(*verb)
            assert done.returncode == 0, done.stderr
        assert "locked by process" in refused(kyomei("certify", finished, "--baseline", "l1"))


@pytest.mark.slow
def test_another_number_of_threads_on_resume_is_said(tmp_path: Path) -> None:
    assert kyomei("harvest", tmp_path / "run", *OPTIONS).returncode == 0
    for threads, said in (("1", False), ("2", True), ("2", True)):
        manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
        manifest["stages"] = {"harvest": manifest["stages"]["harvest"]}
        (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
        done = kyomei("train", tmp_path / "run", "--resume", "--threads", threads)
        assert done.returncode == 0 and ("CPU threads: worked on with 1 before and 2 now" in done.stderr) == said
    history = json.loads((tmp_path / "run" / "manifest.json").read_text())["history"]
    assert [act["threads"] for act in history] == [1, 1, 2, 2]


ODD = ["two words", "-first", "共鳴 žluť", "x" * 200, "a\nb", "quote'$HOME\"", "[red]bold[/red]", "%s{}"]


SEVERAL = """
import json, sys
from kyomei.cli import main
for line in json.loads(sys.argv[1]):
    sys.argv = ["kyomei", *line]
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code or 0
    print(json.dumps([line, code]), flush=True)
"""
"""Verbs one after the other in one process."""


def several(lines: list[list[str]], cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Verbs in one interpreter, with an environment that it reads when it starts."""
    command = [sys.executable, "-c", SEVERAL, json.dumps(lines)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, timeout=600, check=False)


def told(output: str) -> list[tuple[int, str]]:
    """Of what several verbs wrote to standard output, the status of each and what it wrote."""
    found, written = list[tuple[int, str]](), ""
    for said in output.splitlines(keepends=True):
        if said.startswith("[["):
            found, written = [*found, (json.loads(said)[1], written)], ""
        else:
            written += said
    return found


@pytest.mark.slow
def test_a_run_may_lie_in_any_folder(finished: Path, tmp_path: Path) -> None:
    lines = []
    for name in ODD:
        shutil.copytree(finished, tmp_path / name)
        lines += [[verb, "--json", "--", name] for verb in ("certify", "report", "list")]
        lines.append(["train", "--resume", "--", name])
    # One that is begun there.
    lines += [["harvest", *OPTIONS, "--", name] for name in ("-first of all", "ü" * 100)]
    done = several(lines, tmp_path)
    output = done.stdout.decode()
    answers = [json.loads(said) for said in output.splitlines() if said.startswith("[[")]
    assert answers == [[line, 0] for line in lines], done.stderr[-3000:]
    reports = [json.loads(said)["report"] for said in output.splitlines() if said.startswith("{") and '"report"' in said]
    assert [Path(path) for path in reports] == [Path(name) / "report.html" for name in ODD]
    history = json.loads((tmp_path / "-first of all" / "manifest.json").read_text())["history"]
    assert history[0]["outcome"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_plain_terminal_gets_plain_text(finished: Path, tmp_path: Path, encoding: str) -> None:
    folder = shutil.copytree(finished, tmp_path / "共鳴 žluť")
    verbs = (["certify"], ["certify", "--json"], ["report"], ["report", "--json"], ["train", "--resume"])
    lines = [[*verb, str(folder)] for verb in verbs] + [[*verb, "--help"] for verb in ([], ["train"], ["plan"], ["reproduce"])]
    lines.append(["certify", str(tmp_path / "無い")])
    done = several(lines, tmp_path, PYTHONIOENCODING=encoding, NO_COLOR="1", FORCE_COLOR="")
    *before, refusal = done.stderr.splitlines(keepends=True)
    output, errors = done.stdout.decode(encoding), b"".join(before).decode(encoding)
    answers = told(output)
    assert [status for status, _ in answers] == [0] * 9 + [2], errors
    assert "\x1b" not in output + errors and "Traceback" not in output + errors and "kyomei: Expected" not in errors
    for verb, (_, said) in zip(verbs, answers, strict=False):
        assert "--json" not in verb or json.loads(said)
    assert refusal.decode().startswith("kyomei: Expected")
