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
import errno, json, os, random, shutil, signal, socket, sys
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
ids = torch.randint(0, 64, (240, 64))
spans = torch.zeros_like(ids, dtype=torch.int32)
tokens = Tokens(ids, spans, spans, spans, [Document("a", "a")])
recipe = SourceRecipe(sites=("layers.0.mlp", "layers.1.mlp"), context=64, windows_per_batch=2, windows_per_shard=4)

def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}

def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]

def rank_of(number, size, port, folder, fault, replaces):
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    replace, left = os.replace, [replaces]
    def limited(source, target):
        left[0] -= 1
        if left[0] == 0:
            fault()
        replace(source, target)
    if fault:
        os.replace = limited
    mesh = Mesh.side_by_side()
    harvest(model, tokens, Path(folder), recipe, ranks=mesh)
    mesh.leave()

def full():
    raise OSError(errno.ENOSPC, "No space left on device")

def attempt(folder, size, kind, replaces, victim, said):
    # What goes wrong does so where a rank writes for the so-many-th time, however fast the machine is.
    heard, tells = os.pipe()
    faults = {"full": full, "kill": lambda: os.kill(os.getpid(), signal.SIGKILL), "stop": lambda: os.write(tells, b"x")}
    port, children = free_port(), []
    for number in range(size):
        child = os.fork()
        if child == 0:
            os.close(heard)
            code = 1
            try:
                rank_of(number, size, port, folder, faults.get(kind) if number == victim else None, replaces)
                code = 0
            except KyomeiError as error:
                Path(said).open("a").write(str(error) + "\\n")
                code = 2
            finally:
                os._exit(code)
        children.append(child)
    os.close(tells)
    if kind == "stop" and os.read(heard, 1):
        for child in children:
            os.kill(child, signal.SIGTERM)
    os.close(heard)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

undisturbed, disturbed, injections, said = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
draw = random.Random(0)
harvest(model, tokens, Path(undisturbed), recipe)
outcomes = []
for number in range(injections):
    size, kind = draw.choice((2, 3)), ("kill", "stop", "full")[number % 3]
    shutil.rmtree(disturbed, ignore_errors=True)
    codes = attempt(disturbed, size, kind, draw.randint(1, 12), draw.randrange(size), said)
    resumed = attempt(disturbed, draw.choice((2, 3)), "", 0, 0, said)
    outcomes.append((kind, codes, resumed, contents(disturbed) == contents(undisturbed)))
print(json.dumps(outcomes))
"""


@pytest.mark.slow
def test_a_harvest_on_ranks_that_fail_at_random_gives_the_same_bytes(tmp_path: Path) -> None:
    folders, said = (tmp_path / "undisturbed", tmp_path / "disturbed"), tmp_path / "said"
    said.touch()
    command = [sys.executable, "-c", SCRIPT, *map(str, folders), str(INJECTIONS), str(said)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=alone, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind, codes, resumed, same in json.loads(done.stdout):
        assert any(codes) and not any(resumed) and same, (kind, codes, resumed)
    lines = said.read_text().splitlines()
    assert lines, "who is refused says so"
    for line in lines:
        assert ("space on the disk" in line and "resume" in line) or ("a lost rank" in line and "--resume" in line), line
