"""The path from text to report through the real command line, on the embedded model."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.warm import verb as kyomei

from kyomei.atomic import sha256_of

KYOMEI = [sys.executable, "-m", "kyomei"]
SMALL = {
    "source.num_tokens": 12_000,
    "source.context": 64,
    "source.windows_per_shard": 24,
    "source.replicas": 2,
    "source.spread": 2,
    "resonance.neurons": 64,
    "resonance.steps": 3,
    "resonance.frequencies": "[0.02]",
    "resonance.min_stability": 0.3,
    "dictionary.width": 96,
    "train.steps": 60,
    "train.batch_rows": 128,
    "train.checkpoint_every": 20,
}


def options_of(settings: dict[str, object]) -> list[str]:
    return ["--threads", "1", *(part for key, value in settings.items() for part in ("--set", f"{key}={value}"))]


OPTIONS = options_of(SMALL)


def interpreted(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A verb in an interpreter of its own."""
    return subprocess.run([*KYOMEI, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)


def tensors(run: Path) -> dict[str, str]:
    """Digests of all that a run made; of checkpoints the last, since a stop leaves one where it happened."""
    last = {max(folder.glob("step-*")) for folder in run.rglob("checkpoints")}
    made = (p for p in sorted(run.rglob("*.safetensors")) if "checkpoints" not in p.parts or p.parent in last)
    return {str(path.relative_to(run)): sha256_of(path) for path in made}


def train_through_sigterm(folder: Path, *options: str, run: str = ".") -> None:
    """Train a run, or a family, that is asked to stop at the first checkpoint of the run or a member, and go on with it."""
    process = subprocess.Popen(
        [*KYOMEI, "train", str(folder), *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + 200
    first = f"{run}/replicas/0/checkpoints/step-*"
    while not list(folder.glob(first)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "--resume" in said
    resumed = kyomei("train", folder, "--resume", "--threads", "1")
    assert resumed.returncode == 0, resumed.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    done = interpreted("train", folder, *OPTIONS)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_train_measure_report(run: Path) -> None:
    measured = interpreted("measure", run, "--json")
    assert measured.returncode == 0, measured.stderr
    evidence = json.loads(measured.stdout)
    own = evidence["mechanisms"]["gba"]
    assert 0 < own["fidelity"][0]["fvu"] < 1
    assert set(own["consistency"][0]["whitened"]["mcs_above_0.7"]) == {"value", "null"}
    assert evidence["cross_entropy"]["gba"]["original"] < evidence["cross_entropy"]["gba"]["zero_ablated"]
    assert interpreted("report", run).returncode == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "model.layers.2.mlp" in page and "http-equiv" in page
    outputs = json.loads((run / "manifest.json").read_text())["outputs"]
    assert outputs["report.html"] == sha256_of(run / "report.html")
    assert outputs["replicas/0/sae.safetensors"] == sha256_of(run / "replicas/0/sae.safetensors")


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    """A demo goes on from what is there, here a small harvest. The tutorial's lines of Python use it."""
    folder = tmp_path / "runs" / "demo"
    few = ["--set", "source.replicas=3", "--set", "source.spread=4", "--set", "train.steps=20"]
    assert kyomei("harvest", folder, *OPTIONS, *few).returncode == 0
    done = interpreted("demo", folder, "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("Trust ", "Do not trust ")) and "report.html" in done.stderr
    made = {path.name for path in folder.iterdir()}
    assert {"baselines", "certificate.json", "evidence.json", "premises.json", "report.html"} <= made
    before = tensors(folder)
    assert kyomei("demo", folder, "--threads", "1").stdout == done.stdout and tensors(folder) == before
    tutorial = (Path(__file__).parents[2] / "docs" / "guide" / "tutorial.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", tutorial, flags=re.DOTALL)
    used = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert used.returncode == 0, used.stderr


@pytest.mark.slow
def test_harvest_tells_what_it_read_and_skipped(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    body = "def area(width, height):\n    return width * height\n" * 40
    lines = [json.dumps({"text": f"# {n}\n{body}"}) for n in range(30)]
    with gzip.open(text / "code.jsonl.gz", "wt") as file:
        file.write("\n".join([*lines, '{"text": [1, 2, 3]}']))
    (text / "plot.png").write_bytes(b"\x89PNG")
    options = ["--text", text, *OPTIONS]
    refused = kyomei("harvest", tmp_path / "run", *options)
    assert refused.returncode == 2 and "token ids in code.jsonl.gz:31" in refused.stderr and not (tmp_path / "run").exists()
    done = kyomei("harvest", tmp_path / "run", "--skip-bad-records", *options)
    assert done.returncode == 0, done.stderr
    assert "text: 30 documents from 1 .jsonl (decompressed from .gz); skipped 1 file (no text): plot.png; " in done.stderr
    assert "left out 1 bad record, first token ids in code.jsonl.gz:31" in done.stderr
    corpus = json.loads((tmp_path / "run" / "manifest.json").read_text())["corpus"]
    assert corpus["documents"] == 30 and corpus["bad_records"]["count"] == 1
    assert corpus["skipped"] == {"no text": {"files": 1, "first": ["plot.png"]}}


@pytest.mark.slow
def test_certify(tmp_path: Path) -> None:
    """Own dictionary, a baseline and the random-weights control; the certificate expires when the data changes."""
    folder = tmp_path / "three"
    # A certificate asks for several documents among those that no replica saw.
    options = [*OPTIONS, "--set", "source.replicas=3", "--set", "source.spread=4", "--set", "train.steps=20"]
    assert kyomei("train", folder, *options).returncode == 0
    done = interpreted("certify", folder, "--baseline", "topk", "--random-weights", "--json", "--threads", "1")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert list(facts["certificates"]) == ["gba", "baseline topk", "random weights"]
    among_latents = facts["origin_difference"]["among latents"]
    assert among_latents["low"] <= among_latents["difference"] <= among_latents["high"]
    own = json.loads((folder / "certificate.json").read_text())
    counted = [f["status"] == "certified" and f["origin"]["kind"] == "context-or-unexplained" for f in own["features"]]
    assert among_latents["first"] == pytest.approx(sum(counted) / len(counted))
    assert own["width"] == len(own["features"]) == 96 and own["null"]["latents"] > 0
    assert sum(own["shares"]["count"]["status"].values()) == pytest.approx(1)
    statuses = {feature["status"] for feature in own["features"]}
    assert statuses <= {"certified", "split", "merged", "unstable", "dead"}
    live = max(own["features"], key=lambda feature: feature["activation"])
    assert len(live["encoder_mcs"]) == 2 and live["tokens"] and set(live["origin"]["r2"]) == {"token", "position", "both"}
    control = json.loads((folder / "controls/random-weights/manifest.json").read_text())
    assert control["split"] == json.loads((folder / "manifest.json").read_text())["split"]
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = manifest["outputs"].pop("certificate.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))  # as a kill leaves it after the certificate was written
    assert kyomei("certify", folder).returncode == 0
    assert json.loads((folder / "certificate.json").read_text()) == own  # one that still holds is read back
    assert json.loads((folder / "manifest.json").read_text())["outputs"]["certificate.json"] == digest
    index = folder / "activations/evidence/model.layers.2.mlp/index.json"
    index.write_text(index.read_text() + "\n")
    again = kyomei("certify", folder, "--threads", "1")
    assert again.returncode == 0 and "has expired: activations/evidence" in again.stderr
    kept = list((folder / "certificates").iterdir())
    assert len(kept) == 1 and json.loads(kept[0].read_text()) == own


@pytest.mark.slow
def test_two_replicas_are_too_few_to_certify(run: Path) -> None:
    done = kyomei("certify", run)
    assert done.returncode == 2 and "at least two other replicas" in done.stderr and "source.replicas" in done.stderr
    assert kyomei("certify", run, "--baseline", "magic").returncode == 2


@pytest.mark.slow
def test_consistency_is_asked_against_other_nulls(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "copy")
    done = kyomei("measure", folder, "--null", "frozen-decoder", "--null", "random-weights", "--json", "--threads", "1")
    assert done.returncode == 0, done.stderr
    against = json.loads(done.stdout)["mechanisms"]["gba"]["against"]
    assert set(against) == {"frozen-decoder", "random-weights"}
    for figures in against.values():
        assert set(figures["whitened"]["mcs_above_0.7"]) == {"value", "null"} and figures["survives"]
    unknown = kyomei("measure", folder, "--null", "shuffled")
    assert unknown.returncode == 2 and "random-weights" in unknown.stderr


@pytest.mark.slow
def test_same_recipe_and_seed_give_the_same_bytes_even_through_sigterm(run: Path, tmp_path: Path) -> None:
    train_through_sigterm(tmp_path / "again", *OPTIONS)
    ours, theirs = tensors(run), tensors(tmp_path / "again")
    assert ours == theirs and any(name.startswith("controls/") for name in ours)


@pytest.mark.slow
def test_a_family_that_is_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    options = options_of({**SMALL, "dictionary.width": "[48, 64]", "mechanism.name": "topk"})
    assert kyomei("train", tmp_path / "whole", *options).returncode == 0
    train_through_sigterm(tmp_path / "again", *options, run="members/width-64")
    ours, theirs = tensors(tmp_path / "whole"), tensors(tmp_path / "again")
    assert ours == theirs and sum(name.endswith("replicas/0/sae.safetensors") for name in ours) == 2


@pytest.mark.slow
def test_steps_may_stream_from_the_model(run: Path, tmp_path: Path) -> None:
    """Stored rows, directions and null are those of a run without; what is trained is not, and a stop does not show."""
    options = [*OPTIONS, "--set", "source.streamed_tokens=16000"]
    done = kyomei("train", tmp_path / "whole", *options)
    assert done.returncode == 0, done.stderr
    streamed, stored = tensors(tmp_path / "whole"), tensors(run)
    assert set(streamed) - set(stored) == {f"tokens/stream-{i}/tokens.safetensors" for i in range(2)}
    other = {name for name, digest in stored.items() if streamed[name] != digest}
    assert other and {"/".join(name.split("/")[:2]) for name in other} == {"replicas/0", "replicas/1"}
    assert not any(name.endswith("directions.safetensors") for name in other)
    train_through_sigterm(tmp_path / "again", *options)
    assert tensors(tmp_path / "again") == streamed


@pytest.mark.slow
def test_a_run_that_exists_needs_a_word(run: Path) -> None:
    again = kyomei("train", run, *OPTIONS)
    assert again.returncode == 2
    assert "--resume" in again.stderr and "--overwrite" in again.stderr
    other = kyomei("train", run, *OPTIONS, "--set", "train.lr=0.5", "--resume")
    assert other.returncode == 2 and "train.lr" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "train.stepps=5"], "unknown key 'train.stepps'. Did you mean 'train.steps'"),
        (["--set", "train.steps=many"], "'train.steps': Input should be a valid integer"),
        (["--set", "train.steps"], "key=value after --set"),
        (["--set", "mechanism.highest_frequency=1.5"], "less than 1"),
        (["--set", "resonance.frequencies=[0.1, 2]"], "must lie in (0, 1)"),
        (["--set", "dictionary.width=4", "--set", "mechanism.start=random"], "must be at least mechanism.groups"),
        (["--recipe", "no-such.yaml"], "nothing at no-such.yaml"),
        (["--device", "tpu"], "device"),
    ],
)
def test_wrong_options_are_explained(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = interpreted("train", tmp_path / "run", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_planted_prints_recovery_beside_random_directions() -> None:
    small = ["--features", "64", "--dim", "32", "--active", "3", "--rows", "20000"]
    sets = ["--set", "resonance.neurons=256", "--set", "resonance.frequencies=[0.02]", "--set", "train.steps=20"]
    done = kyomei("planted", *small, *sets, "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["recovery"]
    assert figures["resonance"]["frr_0.9"] > 0.9 > 0.2 > figures["random directions (null)"]["frr_0.9"]
