"""A harvest on ranks that are killed, told to stop or run out of disk at random, and resumed on any number, loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

INJECTIONS = 9

# One interpreter loads the libraries once; ranks are forked from it. Each writes the error that ended it into a file.
SCRIPT = """
import errno, json, os, random, signal, socket, sys, time
from pathlib import Path
import torch, transformers
from kyomei.config import SourceRecipe
from kyomei.errors import KyomeiError
from kyomei.learning.mesh import Mesh
from kyomei.source.harvest import harvest
from kyomei.source.model import LanguageModel
from kyomei.source.text import Document, Tokens

torch.set_num_threads(1)
torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}

class Tokenizer:
    all_special_ids = [0]

model = LanguageModel(transformers.LlamaModel(transformers.LlamaConfig(vocab_size=64, **sizes)), Tokenizer(), "tiny")
ids = torch.randint(0, 64, (600, 64))
spans = torch.zeros_like(ids, dtype=torch.int32)
tokens = Tokens(ids, spans, spans, spans, [Document("a", "a")])
recipe = SourceRecipe(sites=("layers.0.mlp", "layers.1.mlp"), context=64, windows_per_batch=2, windows_per_shard=4)

def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]

def rank_of(number, size, port, folder, replaces):
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    replace, left = os.replace, [replaces]
    def limited(source, target):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)
    if replaces:
        os.replace = limited
    mesh = Mesh.side_by_side()
    harvest(model, tokens, Path(folder), recipe, ranks=mesh)
    mesh.leave()

def attempt(folder, size, kind, seconds, victim, said):
    port, children = free_port(), []
    for number in range(size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                rank_of(number, size, port, folder, int(1 + 60 * seconds) if kind == "full" and number == victim else 0)
                code = 0
            except KyomeiError as error:
                Path(said).open("a").write(str(error) + "\\n")
                code = 2
            finally:
                os._exit(code)
        children.append(child)
    began = time.monotonic()
    if kind in ("kill", "stop"):
        time.sleep(seconds)
        for child in [children[victim]] if kind == "kill" else children:
            os.kill(child, signal.SIGKILL if kind == "kill" else signal.SIGTERM)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return codes, time.monotonic() - began

undisturbed, disturbed, injections, said = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
draw = random.Random(0)
harvest(model, tokens, Path(undisturbed), recipe)
outcomes = []
for number in range(injections):
    size, kind = draw.choice((2, 3)), ("kill", "stop", "full")[number % 3]
    codes, seconds = attempt(disturbed, size, kind, draw.uniform(0.15, 0.8), draw.randrange(size), said)
    outcomes.append((kind, size, codes, round(seconds, 2)))
last, _ = attempt(disturbed, 2, "", 0, 0, said)
print(json.dumps({"outcomes": outcomes, "last": last}))
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_harvest_on_ranks_that_fail_at_random_gives_the_same_bytes(tmp_path: Path) -> None:
    folders, said = (tmp_path / "undisturbed", tmp_path / "disturbed"), tmp_path / "said"
    said.touch()
    command = [sys.executable, "-c", SCRIPT, *map(str, folders), str(INJECTIONS), str(said)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=alone, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    disturbed = [outcome for outcome in report["outcomes"] if any(outcome[2])]
    assert len(disturbed) >= INJECTIONS // 2, "too few attempts were disturbed to show anything"
    assert report["last"] == [0, 0]
    assert contents(folders[1]) == contents(folders[0])
    for line in said.read_text().splitlines():
        assert ("space on the disk" in line and "resume" in line) or ("a lost rank" in line and "--resume" in line), line
