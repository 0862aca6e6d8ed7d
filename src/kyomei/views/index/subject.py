"""What an index is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.source.model import LanguageModel
from kyomei.source.shards import ShardFolder
from kyomei.source.text import Tokens
from kyomei.views.index.redaction import Redaction


@dataclass(frozen=True, eq=False)
class Subject:
    """A dictionary, the rows that it is shown on, and what is known of it.

    Attributes:
        name: of the dictionary, such as "replicas-0": the name of its index's folder.
        sae: the dictionary.
        rows: activations of its site that know which token each is of.
        tokens: the text that the rows are of.
        facts: model, site, side, mechanism and whatever else a page says of it, as JSON can hold it.
        made_from: digests by name of all that the index rests on: with others it is made anew.
        certificate: as `Certificate.to_dict` gives it; none: there is none that holds.
        certificate_state: "holds", "expired" or "none".
        seed: of the draws of examples and of the map.
        others: the other replicas by their names, which a dictionary without a certificate is compared with.
        redaction: what is masked in every text; none: nothing is.
        open_model: gives the language model, for the logits; none: it is not asked.
    """

    name: str
    sae: SparseAutoencoder
    rows: ShardFolder
    tokens: Tokens
    facts: Mapping[str, Any]
    made_from: Mapping[str, str]
    certificate: Mapping[str, Any] | None = None
    certificate_state: str = "none"
    seed: int = 0
    others: Mapping[str, SparseAutoencoder] = field(default_factory=dict)
    redaction: Redaction | None = None
    open_model: Callable[[], LanguageModel] | None = None
