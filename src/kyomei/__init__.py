"""Kyomei (共鳴, resonance): sparse dictionaries of language-model activations, and which of their features can be trusted.

The public names are loaded when first asked for, so that `import kyomei` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kyomei.config import Recipe
    from kyomei.dictionary.formats import load
    from kyomei.dictionary.sae import SparseAutoencoder
    from kyomei.errors import KyomeiError
    from kyomei.evidence.check.premises import Premises, check
    from kyomei.evidence.consistency import consistency
    from kyomei.evidence.recovery import recovery
    from kyomei.evidence.site import check_site
    from kyomei.learning.directions import Directions
    from kyomei.learning.fit import fit
    from kyomei.learning.resonance import resonate
    from kyomei.source.planted import Planted
    from kyomei.source.rows import open_rows
    from kyomei.stages.certify import certify
    from kyomei.stages.detect import detect
    from kyomei.views.attach import attach

__version__ = "0.1.0"

__all__ = [
    "Directions",
    "KyomeiError",
    "Planted",
    "Premises",
    "Recipe",
    "SparseAutoencoder",
    "__version__",
    "attach",
    "certify",
    "check",
    "check_site",
    "consistency",
    "detect",
    "fit",
    "load",
    "open_rows",
    "recovery",
    "resonate",
]

_MODULES = {
    "Directions": "kyomei.learning.resonance",
    "KyomeiError": "kyomei.errors",
    "Planted": "kyomei.source.planted",
    "Premises": "kyomei.evidence.check.premises",
    "Recipe": "kyomei.config",
    "SparseAutoencoder": "kyomei.dictionary.sae",
    "attach": "kyomei.views.attach",
    "certify": "kyomei.stages.certify",
    "check": "kyomei.evidence.check.premises",
    "check_site": "kyomei.evidence.site",
    "consistency": "kyomei.evidence.consistency",
    "detect": "kyomei.stages.detect",
    "fit": "kyomei.learning.fit",
    "load": "kyomei.dictionary.formats",
    "open_rows": "kyomei.source.rows",
    "recovery": "kyomei.evidence.recovery",
    "resonate": "kyomei.learning.resonance",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'kyomei' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
