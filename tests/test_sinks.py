"""Events reach the file at once, survive crashes, and resume without doubles."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kyomei.errors import RecipeError, RunError
from kyomei.sinks import Fanout, JsonlSink, TensorBoardSink, WandbSink, read_events


class Recorder:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def event(self, step: int, **values: Any) -> None:
        self.calls.append((step, values))

    def close(self) -> None:
        self.calls.append("closed")


def write_steps(path: Path, *steps: int) -> None:
    sink = JsonlSink(path)
    for step in steps:
        sink.event(step, loss=step / 2)
    sink.close()


def test_one_object_a_line_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    sink = JsonlSink(path)
    sink.event(1, loss=np.float32(0.5), bad=float("nan"), name="共鳴")
    assert path.read_text(encoding="utf-8") == '{"step": 1, "loss": 0.5, "bad": null, "name": "共鳴"}\n'
    sink.event(2)
    assert [event["step"] for event in read_events(path)] == [1, 2]
    sink.close()


def test_a_second_sink_appends(tmp_path: Path) -> None:
    write_steps(tmp_path / "e", 1, 2)
    write_steps(tmp_path / "e", 3)
    assert [event["step"] for event in read_events(tmp_path / "e")] == [1, 2, 3]


def test_resume_drops_the_steps_that_come_again(tmp_path: Path) -> None:
    path = tmp_path / "e"
    write_steps(path, 1, 2, 3, 4)
    kept = path.read_bytes().splitlines(keepends=True)[:2]
    sink = JsonlSink(path, last_step=2)
    assert path.read_bytes() == b"".join(kept)
    sink.event(3, loss=9.0)
    sink.close()
    assert read_events(path)[-1] == {"step": 3, "loss": 9.0}
    JsonlSink(path, last_step=10).close()
    assert len(read_events(path)) == 3
    JsonlSink(tmp_path / "new", last_step=10).close()
    assert read_events(tmp_path / "new") == []


@pytest.mark.parametrize("last_step", [None, 5])
def test_a_line_that_a_crash_cut_short_is_removed(tmp_path: Path, last_step: int | None) -> None:
    path = tmp_path / "e"
    write_steps(path, 1)
    with path.open("ab") as file:
        file.write(b'{"step": 2, "lo')
    assert len(read_events(path)) == 1
    sink = JsonlSink(path, last_step)
    sink.event(2)
    sink.close()
    assert [event["step"] for event in read_events(path)] == [1, 2]


def test_events_survive_a_kill(tmp_path: Path) -> None:
    code = "import os, sys; from kyomei.sinks import JsonlSink\n"
    code += "sink = JsonlSink(sys.argv[1]); sink.event(1, loss=0.5); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "e")], check=False)
    assert read_events(tmp_path / "e") == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"loss": 1}', '{"step": null}'])
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "e").write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(RunError, match=r"Expected an event with a step\. Found line 2 of .*Delete the damaged lines"):
        read_events(tmp_path / "e")


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self) -> None: ...

        def close(self) -> None: ...

    sink = JsonlSink(tmp_path / "e")
    sink._file.close()
    sink._file = Full()  # type: ignore[assignment]
    with pytest.raises(RunError, match="Expected space on the disk"):
        sink.event(1)


def test_fanout_passes_everything_on() -> None:
    one, two = Recorder(), Recorder()
    sink = Fanout(one, two)
    sink.event(3, loss=1.0)
    sink.close()
    assert one.calls == two.calls == [(3, {"loss": 1.0}), "closed"]


def test_missing_extras_say_how_to_install_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RecipeError, match=r"Run `pip install 'kyomei\[tensorboard\]'`"):
        TensorBoardSink(tmp_path)
    with pytest.raises(RecipeError, match=r"Run `pip install 'kyomei\[wandb\]'`"):
        WandbSink("project", "run")


def test_tensorboard_gets_numbers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int | None) -> None:
            calls.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def flush(self) -> None: ...

        def close(self) -> None:
            calls.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    sink = TensorBoardSink(tmp_path, last_step=4)
    sink.event(5, loss=np.float32(0.5), name="text", nothing=float("nan"))
    sink.close()
    assert calls == [(str(tmp_path), 5), ("loss", 0.5, 5), "closed"]


def test_tensorboard_for_real(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path)
    sink.event(7, loss=0.5)
    sink.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(scalar.step, scalar.value) for scalar in read.Scalars("loss")] == [(7, 0.5)]


def test_wandb_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Started:
        def log(self, values: dict[str, Any], step: int) -> None:
            calls.append((values, step))

        def finish(self) -> None:
            calls.append("finished")

    def init(**options: Any) -> Started:
        calls.append(options)
        return Started()

    module = types.ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    sink = WandbSink("project", "run-3", config={"path": Path("a")}, folder=tmp_path)
    sink.event(5, loss=np.float32(0.5))
    sink.close()
    options, logged, finished = calls
    assert options == {"project": "project", "id": "run-3", "resume": "allow", "config": {"path": "a"}, "dir": str(tmp_path)}
    assert logged == ({"loss": 0.5}, 5)
    assert finished == "finished"


def test_lines_are_json_for_any_reader(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "e")
    sink.event(1, values=[float("inf")], nested={"a": np.arange(2)})
    sink.close()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (line,) = (tmp_path / "e").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "values": [None], "nested": {"a": [0, 1]}}
