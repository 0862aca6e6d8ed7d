"""A dictionary at a site of the embedded model, made without training."""

from __future__ import annotations

import torch

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.source.model import LanguageModel
from kyomei.views.live import Live

SITE = "model.layers.2.mlp"
TEXT = "def main(self):\n    return self.value  # the end"
WIDTH = 96


def embedded() -> LanguageModel:
    return LanguageModel.load("embedded")


def talking() -> LanguageModel:
    """The embedded model with a template for conversations."""
    model = embedded()
    model.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[answer]{% endif %}"
    )
    return model


def dictionary(model: LanguageModel, site: str = SITE, width: int = WIDTH, seed: int = 0) -> SparseAutoencoder:
    """Random directions, each with the threshold that a twentieth or so of a text's rows pass."""
    ids = torch.tensor([model.tokenizer(TEXT * 6)["input_ids"][: model.max_context]])
    rows = model.capture(ids, [site])[site][0]
    center = rows.mean(dim=0)
    encoder = torch.nn.functional.normalize(
        torch.randn(width, rows.shape[1], generator=torch.Generator().manual_seed(seed)), dim=1
    )
    threshold = ((rows - center) @ encoder.T).quantile(0.9, dim=0)
    return SparseAutoencoder(encoder, None, threshold, center)


def live(model: LanguageModel | None = None) -> Live:
    model = model or embedded()
    return Live(model, dictionary(model), SITE)
