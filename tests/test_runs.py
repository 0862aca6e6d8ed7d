"""A run's folder: atomic writes, lock, manifest, resume and overwrite, signals."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kyomei
from kyomei import locks, runs
from kyomei.atomic import sha256_of, write_atomic
from kyomei.config import Recipe
from kyomei.errors import RunError
from kyomei.runs import Run, plain

HOLD_LOCK = """
import sys
from kyomei.runs import Run
with Run.open(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""

RACE_FOR_LOCK = """
import sys
from kyomei.errors import RunError
from kyomei.runs import Run
run = Run.open(sys.argv[1])
sys.stdin.readline()
try:
    with run.lock():
        print("got", flush=True)
        sys.stdin.readline()
except RunError:
    print("refused", flush=True)
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", Recipe(seed=5))


@contextmanager
def another_process_holding(run: Run) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def refuse_to_write(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# Atomic writes


def test_write_atomic_makes_the_folder_and_leaves_only_the_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b.bin", b"old")
    write_atomic(tmp_path / "a" / "b.bin", b"new")
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"new"
    assert files_in(tmp_path) == ["a/b.bin"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "b.bin"
    write_atomic(path, b"old")
    refuse_to_write(monkeypatch, number)
    with pytest.raises(RunError) as caught:
        write_atomic(path, b"new")
    assert str(caught.value) == (
        f"Expected space on the disk. Found none left while writing {path}. "
        "Free some space, then resume; what was complete is kept."
    )
    assert path.read_bytes() == b"old"
    assert files_in(tmp_path) == ["b.bin"]


def test_another_failure_to_write_is_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_write(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomic(tmp_path / "b.bin", b"new")
    assert files_in(tmp_path) == []


def test_a_write_that_is_killed_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "b.bin"
    write_atomic(path, b"old")
    code = "import os, sys, signal; from kyomei.atomic import write_atomic\n"
    code += "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\nwrite_atomic(sys.argv[1], b'new')"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "x").write_bytes(content)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(content).hexdigest()


# JSON


def test_plain_values() -> None:
    class Evidence:
        def to_dict(self) -> dict[str, Any]:
            return {"mcc": np.float32(0.5)}

    given = {
        1: float("nan"),
        "infinite": [float("inf"), -1.5],
        "array": np.arange(3),
        "number": np.int64(2),
        "nan": np.float64("nan"),
        "tensor": torch.tensor([[1.0, float("inf")]]),
        "path": Path("a/b"),
        "set": {"b", "a"},
        "evidence": Evidence(),
        "others": (True, None, "text"),
    }
    assert plain(given) == {
        "1": None,
        "infinite": [None, -1.5],
        "array": [0, 1, 2],
        "number": 2,
        "nan": None,
        "tensor": [[1.0, None]],
        "path": "a/b",
        "set": ["a", "b"],
        "evidence": {"mcc": 0.5},
        "others": [True, None, "text"],
    }


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        plain([object()])


def test_json_round_trip(run: Run) -> None:
    path = run.write_json("evidence.json", {"share": np.float64(0.25), "name": "共鳴"})
    assert path == run.path("evidence.json") == run.folder / "evidence.json"
    assert run.read_json("evidence.json") == {"share": 0.25, "name": "共鳴"}
    assert "共鳴" in path.read_text(encoding="utf-8")


def test_missing_or_damaged_json_is_explained(run: Run) -> None:
    with pytest.raises(RunError, match=r"Expected evidence\.json in the run\. .*Run the stage that writes it\."):
        run.read_json("evidence.json")
    run.path("evidence.json").write_text("{")
    with pytest.raises(RunError, match=r"Expected JSON\. .*evidence\.json.* Delete the damaged file"):
        run.read_json("evidence.json")


# Manifest


def test_a_new_manifest_says_what_and_where(run: Run) -> None:
    manifest = run.manifest
    assert manifest["schema_version"] == runs.SCHEMA_VERSION
    assert manifest["seed"] == 5
    assert manifest["versions"]["kyomei"] == kyomei.__version__
    assert manifest["versions"]["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert manifest["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert manifest["hardware"]["cores"] == os.cpu_count()
    assert manifest["hardware"]["memory_bytes"] > 1e8
    assert (manifest["split"], list(manifest["outputs"]), manifest["stages"]) == ({}, ["recipe.yaml"], {})


def test_outputs_are_recorded_by_relative_path(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = ["a.json", "replicas/0/sae.safetensors", "replicas/1/sae.safetensors"]
    for name in recorded:
        write_atomic(run.path(name), name.encode())
    write_atomic(run.path("replicas/0/.sae.safetensors.17.tmp"), b"left over")
    run.record("a.json")
    run.record(run.path("replicas"))
    monkeypatch.chdir(run.folder.parent)
    Run.open("run").record(Path("run/a.json"))
    outputs = {name: digest for name, digest in run.manifest["outputs"].items() if name != "recipe.yaml"}
    assert outputs == {name: hashlib.sha256(name.encode()).hexdigest() for name in recorded}


def test_recording_what_is_missing_or_outside_is_refused(run: Run) -> None:
    with pytest.raises(RunError, match=r"Found nothing at .*a\.json\. Write it first"):
        run.record("a.json")
    with pytest.raises(RunError, match="Expected an output inside"):
        run.record("../a.json")
    with pytest.raises(RunError, match="Expected an output inside"):
        run.record("/etc/hosts")


def test_stages_and_facts_survive_opening_again(run: Run) -> None:
    assert not run.done("harvest")
    run.finish("harvest")
    run.note(split={"evidence": ["a.py"]}, device="cpu")
    again = Run.open(run.folder)
    assert again.done("harvest")
    assert not again.done("train")
    assert again.manifest["split"] == {"evidence": ["a.py"]}
    assert again.manifest["device"] == "cpu"
    assert again.recipe == run.recipe


# Opening and creating


def test_a_stage_is_done_only_for_what_it_was_made_from(run: Run) -> None:
    run.finish("measure", {"a": "1"})
    assert run.done("measure") and run.done("measure", {"a": "1"})
    assert not run.done("measure", {"a": "1", "b": "2"}) and not run.done("check", {"a": "1"})
    run.finish("train")
    assert run.done("measure", {"a": "1"}) and not run.done("train", {})
    assert run.digests(["recipe.yaml", "nothing"]) == {"recipe.yaml": sha256_of(run.path("recipe.yaml"))}


def test_a_folder_that_is_no_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Found no manifest\.json in .*nowhere\. Check the path\."):
        Run.open(tmp_path / "nowhere")


def test_an_existing_folder_needs_an_option(run: Run) -> None:
    with pytest.raises(RunError) as caught:
        Run.create(run.folder, run.recipe)
    assert str(run.folder) in caught.value.found
    assert "--resume" in caught.value.do
    assert "--overwrite" in caught.value.do


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(RunError, match="Found a file at"):
            Run.create(tmp_path / "run", Recipe(), **options)


def test_both_options_are_refused(run: Run) -> None:
    with pytest.raises(RunError, match="Expected either --resume or --overwrite"):
        Run.create(run.folder, run.recipe, resume=True, overwrite=True)


def test_what_create_would_do_is_told_without_doing_it(run: Run, tmp_path: Path) -> None:
    found = Run.find(run.folder, run.recipe, resume=True)
    assert found is not None and found.folder == run.folder
    assert Run.find(run.folder, Recipe(), overwrite=True) is None and Run.find(tmp_path / "new", Recipe()) is None
    assert run.manifest["seed"] == 5 and not (tmp_path / "new").exists()


@pytest.mark.parametrize("made_before", [True, False])
def test_only_the_owner_can_look_into_a_run(tmp_path: Path, made_before: bool) -> None:
    folder = tmp_path / "runs" / "private"
    if made_before:
        folder.mkdir(parents=True, mode=0o755)
    Run.create(folder, Recipe(), resume=True)
    assert folder.stat().st_mode & 0o777 == 0o700 and folder.parent.stat().st_mode & 0o777 != 0o700


def test_resume_goes_on(run: Run) -> None:
    run.finish("harvest")
    run.write_json("evidence.json", 1)
    resumed = Run.create(run.folder, Recipe(seed=5), resume=True)
    assert resumed.done("harvest")
    assert resumed.read_json("evidence.json") == 1


def test_resume_of_nothing_starts(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new" / "run", tmp_path / "empty"):
        assert Run.create(folder, Recipe(seed=2), resume=True).manifest["seed"] == 2


def test_resume_with_another_recipe_names_what_differs(run: Run) -> None:
    other = run.recipe.with_values({"train.steps": 3, "source.sites": ["a"]})
    with pytest.raises(RunError) as caught:
        Run.create(run.folder, other, resume=True)
    assert caught.value.found == "other values of source.sites (was [], now ['a']), train.steps (was 1000, now 3)"


def test_overwrite_starts_anew(run: Run) -> None:
    run.finish("harvest")
    write_atomic(run.path("replicas/0/x"), b"")
    (run.folder / "link").symlink_to(run.folder.parent)
    new = Run.create(run.folder, Recipe(seed=6), overwrite=True)
    assert not new.done("harvest")
    assert new.manifest["seed"] == 6
    assert files_in(run.folder) == ["manifest.json", "recipe.yaml"]
    assert run.folder.parent.is_dir()


@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, option: str) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"no manifest\.json\. .*nothing was deleted"):
        Run.create(tmp_path, Recipe(), **{option: True})
    assert files_in(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_a_run_that_a_crash_kept_from_being_born_is_started(tmp_path: Path, option: str) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: [")
    (tmp_path / ".manifest.json.17.tmp").write_text("{")
    assert Run.create(tmp_path, Recipe(seed=4), **{option: True}).manifest["seed"] == 4
    assert Run.open(tmp_path).recipe.seed == 4


def test_a_full_disk_at_the_start_is_named_and_resumable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        refuse_to_write(patch, errno.ENOSPC)
        with pytest.raises(RunError, match=r"Expected space on the disk\. .*manifest\.json"):
            Run.create(tmp_path / "run", Recipe())
    assert Run.create(tmp_path / "run", Recipe(), resume=True).manifest["stages"] == {}


# Schema


def set_version(run: Run, version: Any) -> None:
    run.path("manifest.json").write_text(json.dumps({**run.manifest, "schema_version": version}))


@pytest.mark.parametrize("resume", [True, False])
def test_a_newer_layout_is_refused(run: Run, resume: bool) -> None:
    set_version(run, runs.SCHEMA_VERSION + 1)
    with pytest.raises(RunError, match=f"Found layout {runs.SCHEMA_VERSION + 1} in .* newer Kyomei"):
        Run.create(run.folder, run.recipe, resume=True) if resume else Run.open(run.folder)


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_of_the_old_layout_is_refused_in_one_line_that_says_how_to_make_it_anew(run: Run, resume: bool) -> None:
    """Its recipe may have keys that no Kyomei knows any more: it is not read."""
    run.note(command="kyomei train runs/first --set train.steps=9")
    set_version(run, 1)
    run.path("recipe.yaml").write_text("mechanism: {long: gone}\n")
    with pytest.raises(RunError) as refused:
        Run.create(run.folder, run.recipe, resume=True) if resume else Run.open(run.folder)
    said = str(refused.value)
    assert said.endswith("Make it anew with: kyomei train runs/first --set train.steps=9 --overwrite.") and "\n" not in said
    assert Run.create(run.folder, run.recipe, overwrite=True).manifest["schema_version"] == runs.SCHEMA_VERSION


def test_without_its_command_the_folder_is_named(run: Run) -> None:
    set_version(run, 1)
    with pytest.raises(RunError, match=f"Make it anew with: kyomei train {run.folder} --overwrite"):
        Run.open(run.folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"schema_version": "1"}'])
def test_a_manifest_without_a_version_is_refused(run: Run, content: str) -> None:
    run.path("manifest.json").write_text(content)
    with pytest.raises(RunError, match="Expected a manifest with a schema_version"):
        Run.open(run.folder)


# Lock


def test_a_live_process_keeps_others_out(run: Run) -> None:
    with another_process_holding(run) as process:
        with pytest.raises(RunError, match=f"locked by process {process.pid} on .*Wait for it to end"), run.lock():
            pass
        with pytest.raises(RunError, match=f"locked by process {process.pid}"):
            Run.create(run.folder, run.recipe, overwrite=True)
        assert run.manifest["seed"] == 5, "nothing was deleted"


def test_the_lock_of_a_killed_process_is_taken_over_and_its_rests_removed(run: Run) -> None:
    run.path("replicas").mkdir()
    with another_process_holding(run) as process:
        left = run.path("replicas") / f".x.safetensors.{process.pid}.tmp"
        left.write_bytes(b"half")
        (run.folder / ".keep.tmp").write_bytes(b"of another program")
    assert run.path("lock").exists()
    with run.lock():
        assert json.loads(run.path("lock").read_bytes())["pid"] == os.getpid()
        assert not left.exists()
    assert not run.path("lock").exists()
    assert (run.folder / ".keep.tmp").exists()


def test_folders_that_a_killed_process_was_writing_are_removed(run: Run) -> None:
    """A checkpoint is a folder: a kill while one is written must not keep every later verb out."""
    left = run.path("replicas/0/checkpoints/.step-00000040.4711.tmp")
    left.mkdir(parents=True)
    (left / "tensors.safetensors").write_bytes(b"half")
    (left / ".state.json.4711.tmp").write_bytes(b"half")
    with run.lock():
        assert not left.exists() and left.parent.exists()


def test_the_lock_of_a_zombie_is_stale(run: Run) -> None:
    with another_process_holding(run) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with run.lock():
            pass


def test_a_process_number_used_again_is_not_taken_for_the_holder(run: Run) -> None:
    with run.lock():
        holder = json.loads(run.path("lock").read_bytes())
    run.path("lock").write_text(json.dumps({**holder, "started": "another time"}))
    with run.lock():
        pass


@pytest.fixture
def lock_from_elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lock file of a process on another machine; heartbeats and patience last moments."""
    for name, seconds in {"HEARTBEAT_SECONDS": 0.05, "SILENT_SECONDS": 0.6, "_WATCH_SECONDS": 0.02}.items():
        monkeypatch.setattr(locks, name, seconds)
    with run.lock():
        holder = json.loads(run.path("lock").read_bytes())
    run.path("lock").write_text(json.dumps({**holder, "host": "elsewhere"}))
    # Its clock is hours ahead: the age of the file says nothing.
    os.utime(run.path("lock"), times=(2e9, 2e9))
    return run.path("lock")


def test_a_lock_from_another_machine_whose_heart_beats_is_respected(run: Run, lock_from_elsewhere: Path) -> None:
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.1):
            os.utime(lock_from_elsewhere)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(RunError, match=r"on elsewhere\. Wait for it to end"), run.lock():
            pass
        with pytest.raises(RunError, match="on elsewhere"):
            Run.create(run.folder, run.recipe, overwrite=True)
    finally:
        ended.set()
        beating.join()
    assert json.loads(lock_from_elsewhere.read_bytes())["host"] == "elsewhere"


def test_a_lock_from_another_machine_is_taken_over_once_its_heart_stands_still(
    run: Run, lock_from_elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with run.lock():
        assert json.loads(lock_from_elsewhere.read_bytes())["host"] == socket.gethostname()
    assert "on elsewhere: watching up to 1 seconds for a sign of life" in caplog.text
    lock_from_elsewhere.write_text(json.dumps({"pid": 1, "started": "", "host": "elsewhere"}))
    assert Run.create(run.folder, Recipe(seed=8), overwrite=True).manifest["seed"] == 8


def test_a_lock_that_another_machine_lets_go_of_while_it_is_watched_is_free(run: Run, lock_from_elsewhere: Path) -> None:
    threading.Timer(0.2, lock_from_elsewhere.unlink).start()
    with run.lock():
        pass


def test_a_holder_touches_its_lock_and_no_other(run: Run, lock_from_elsewhere: Path) -> None:
    with pytest.raises(RunError, match=r"locked by process 1 on elsewhere\. See what it made of it"), run.lock():
        touched = lock_from_elsewhere.stat().st_mtime_ns
        time.sleep(0.3)
        assert lock_from_elsewhere.stat().st_mtime_ns > touched
        write_atomic(lock_from_elsewhere, json.dumps({"pid": 1, "started": "", "host": "elsewhere"}).encode())
        touched = lock_from_elsewhere.stat().st_mtime_ns
        time.sleep(0.3)
        assert lock_from_elsewhere.stat().st_mtime_ns == touched
    assert lock_from_elsewhere.exists(), "the other's lock stays"


def test_the_lock_is_released_after_an_error_and_not_shared_with_itself(run: Run) -> None:
    with pytest.raises(ValueError, match="boom"), run.lock():
        with pytest.raises(RunError, match=f"locked by process {os.getpid()}"), run.lock():
            pass
        assert run.path("lock").exists()
        raise ValueError("boom")
    with run.lock():
        pass


def test_only_one_of_many_takes_a_stale_lock_over(run: Run) -> None:
    with another_process_holding(run):
        pass
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE_FOR_LOCK, str(run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = [racer.stdout.readline().strip() for racer in racers if racer.stdout is not None]
    for racer in racers:
        racer.communicate("end\n")
    assert sorted(answers) == ["got", "refused", "refused"]
