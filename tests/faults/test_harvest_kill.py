"""A harvest killed at random moments, and resumed each time, leaves the bytes of an undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 10

# One interpreter loads the libraries once; each attempt is a process of its own, forked from it and killed by the system.
SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch, transformers
from kyomei.config import SourceRecipe
from kyomei.source.harvest import harvest
from kyomei.source.model import LanguageModel
from kyomei.source.text import Document, Tokens

torch.set_num_threads(1)
torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}

class Tokenizer:
    all_special_ids = [0]

model = LanguageModel(transformers.LlamaModel(transformers.LlamaConfig(vocab_size=64, **sizes)), Tokenizer(), "tiny")
ids = torch.randint(0, 64, (360, 64))
spans = torch.zeros_like(ids, dtype=torch.int32)
tokens = Tokens(ids, spans, spans, spans, [Document("a", "a")])
recipe = SourceRecipe(sites=("layers.0.mlp", "layers.1.mlp"), context=64, windows_per_batch=2, windows_per_shard=6)

def shards(folder):
    return sum(name.startswith("shard-") for _, _, names in os.walk(folder) for name in names)

def attempt(folder, seconds, most=10**9):
    before, child = shards(folder), os.fork()
    if child == 0:
        code = 1
        try:
            harvest(model, tokens, Path(folder), recipe)
            code = 0
        finally:
            os._exit(code)
    began = time.monotonic()
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() - began > seconds or shards(folder) - before >= most:
            os.kill(child, signal.SIGKILL)
            done = os.waitpid(child, 0)
            break
        time.sleep(0.0005)
    return os.waitstatus_to_exitcode(done[1]), time.monotonic() - began

undisturbed, disturbed, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
first, seconds = attempt(undisturbed, 300)
draw = random.Random(int(sys.argv[4]))
# Moments are drawn from the time of a first, perhaps slower, run: no attempt may write so much that all of them end it.
most = shards(undisturbed) // (kills + 2)
codes = [attempt(disturbed, draw.uniform(0, seconds / (0.7 * kills)), most)[0] for _ in range(kills)]
left = sorted(path.name for path in Path(disturbed).rglob("*"))
codes.append(attempt(disturbed, 300)[0])
print(json.dumps({"first": first, "codes": codes, "left": left}))
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_harvest_killed_ten_times_gives_the_same_bytes(tmp_path: Path) -> None:
    folders = (tmp_path / "undisturbed", tmp_path / "disturbed")
    command = [sys.executable, "-c", SCRIPT, *map(str, folders), str(KILLS), "0"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=alone, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["first"] == 0
    assert set(report["codes"]) <= {0, -9}, done.stderr
    assert report["codes"].count(-9) >= KILLS // 2, "too few attempts were killed to show anything"
    assert report["codes"][-1] == 0
    assert "progress.json" in report["left"], "no attempt got as far as a shard"
    undisturbed, disturbed = map(contents, folders)
    assert len([name for name in undisturbed if "shard-" in name]) == 2 * 60
    assert disturbed == undisturbed
