"""Texts that are read together have the rows that each has by itself."""

from __future__ import annotations

import torch

from kyomei.config import SourceRecipe
from kyomei.source.model import LanguageModel
from kyomei.source.passages import Passages
from kyomei.source.text import Document

SITE = "model.layers.1.mlp"


def test_rows_do_not_depend_on_what_stands_beside_a_text() -> None:
    model = LanguageModel.load("embedded")
    source = SourceRecipe(context=16, windows_per_batch=3)
    texts = ["import os\n" * 12, "x = 3", " ", "def f(self):\n    return 1", "y = 4", "import os\n" * 5]
    passages = Passages(model, SITE, source)
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    batches = list(passages.batches(documents))
    assert [e.document.name for batch in batches for e in batch] == ["0", "1", "3", "4", "5"], "what is blank is left out"
    for batch in batches:
        read = list(passages.read(batch))
        for number, encoded in enumerate(batch):
            own = sorted((p for p in read if p.text == number), key=lambda p: p.first)
            assert torch.cat([p.ids for p in own]).tolist() == encoded.ids.tolist()
            alone = list(passages.read([encoded]))
            rows, wanted = torch.cat([p.rows for p in own]), torch.cat([p.rows for p in sorted(alone, key=lambda p: p.first)])
            torch.testing.assert_close(rows, wanted, rtol=1e-3, atol=1e-4)
            begin = [] if passages.packer.begin is None else [passages.packer.begin]
            first = torch.tensor([[*begin, *own[0].ids.tolist()]])
            torch.testing.assert_close(own[0].rows, model.capture(first, [SITE])[SITE][0, len(begin) :], rtol=1e-3, atol=1e-4)


def test_rows_that_a_harvest_drops_are_marked() -> None:
    model = LanguageModel.load("embedded")
    (batch,) = Passages(model, SITE, SourceRecipe()).batches([Document("a", "import os\nimport sys\n")])
    norms = torch.cat([p.rows for p in Passages(model, SITE, SourceRecipe()).read(batch)]).norm(dim=1)
    bound = float(norms.median())
    (passage,) = Passages(model, SITE, SourceRecipe(), bound).read(batch)
    assert torch.equal(passage.kept, norms <= bound) and 0 < int(passage.kept.sum()) < len(norms)
