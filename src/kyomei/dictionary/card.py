"""The card of a dictionary on the hub: what it is, how to load it, and what it is not, as Markdown with the hub's header."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from kyomei.dictionary.sae import SparseAutoencoder

CARD_FILE = "README.md"
_KEPT = {
    "relu": "scores less their thresholds (ReLU)",
    "jumprelu": "scores above their thresholds (JumpReLU)",
    "topk": "the {k} highest scores of a row (TopK)",
}
_LIMITS = (
    "- A dictionary describes the site of the model that it was trained on. On other rows it computes something, and means",
    "  nothing: `kyomei.check_site(sae, rows)` compares.",
    "- A latent is a direction that helps to rebuild activations. What it stands for is an interpretation, and so is a label.",
    "- A certificate says that training again, on other text from another seed, finds a latent again. It does not say that the",
    "  model uses it.",
)
_UNTESTED = (
    "No certificate travels with this dictionary: nobody has tested which of its latents another training would find again.",
    "Read nothing off a single latent before `kyomei certify` has.",
)
_NO_LICENCE = "Whoever published this dictionary has not said. The model and the text that it was trained on have licences too."


def card(sae: SparseAutoencoder, name: str | None = None, *, licence: str | None = None, sections: Sequence[str] = ()) -> str:
    """Markdown of a dictionary's card.

    Args:
        sae: the dictionary; its provenance says where it comes from.
        name: of the repository, OWNER/NAME, for the lines that load it; none: a placeholder for the folder.
        licence: as the hub writes it, such as "apache-2.0"; none: the card says that nobody has said.
        sections: Markdown between what it is and its limits: verdict, certificate, figures.
    """
    known = sae.provenance
    model = shown_model(known.get("model"))
    header: dict[str, Any] = {"library_name": "kyomei", "tags": ["sparse-autoencoder", "interpretability"]}
    header |= {"license": licence} if licence else {}
    # The hub links a model only where its address is one of its own.
    header |= {"base_model": model} if model is not None and model.count("/") == 1 else {}
    lines = [f"| {title} | {value} |" for title, value in _known(sae, model)]
    of = model or "a language model"
    code = (
        "import kyomei",
        "",
        f'sae = kyomei.SparseAutoencoder.from_pretrained("{name or "FOLDER"}")',
        f"z = sae.encode(rows)  # [rows, {sae.width}], from rows [rows, {sae.dim}]",
        "x_hat = sae.decode(z, rows)" if sae.unit_rows else "x_hat = sae.decode(z)",
    )
    untested = [] if known.get("certificate") else ["\n".join(("## Can it be trusted?", "", *_UNTESTED))]
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False).strip()}\n---",
        f"# {name or 'A sparse dictionary'}",
        f"A sparse autoencoder: it writes an activation of {of} as a sum of few of {sae.width:,} directions.",
        "\n".join(("| | |", "|---|---|", *lines)),
        "\n".join(("## How to load it", "", "```python", *code, "```")),
        *(sections or untested),
        "\n".join(("## Limits", "", *_LIMITS)),
        f"## Licence\n\n{licence or _NO_LICENCE}",
    ]
    return "\n\n".join(parts) + "\n"


def shown_model(model: Any) -> str | None:
    """A model's name for others: a path of this machine says nothing elsewhere, and may say too much."""
    if not isinstance(model, str):
        return None
    return Path(model).name if Path(model).is_absolute() or Path(model).exists() else model


def _known(sae: SparseAutoencoder, model: str | None) -> list[tuple[str, str]]:
    known = sae.provenance
    side = f" ({known['side']})" if known.get("side") else ""
    certificate = known.get("certificate") if isinstance(known.get("certificate"), dict) else {}
    rows: list[tuple[str, Any]] = [
        ("model", model),
        ("revision", known.get("revision")),
        ("site", f"`{known['site']}`{side}" if known.get("site") else known.get("hook_name")),
        ("text", known.get("dataset")),
        ("tokens in a window", known.get("context")),
        ("latents × dimensions", f"{sae.width:,} × {sae.dim:,}, {str(sae.encoder.dtype).removeprefix('torch.')}"),
        ("rows", "each divided by its norm first; reconstructions are in its own scale" if sae.unit_rows else None),
        ("active in a row", _KEPT[sae.activation].format(k=sae.k)),
        ("trained by", known.get("mechanism")),
        ("certified latents", f"{certificate['certified']:,}" if certificate and "certified" in certificate else None),
    ]
    return [(title, str(value)) for title, value in rows if value is not None]
