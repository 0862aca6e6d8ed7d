"""The explorer's index of a dictionary: what every latent is and fires on, in files that are queried without the model.

`build` makes it from evidence rows (docs/explorer-index.md describes the files); `kyomei.views.queries.Index` answers from it.
"""

from __future__ import annotations

from kyomei.views.index.build import build
from kyomei.views.index.state import IndexState, state_of
from kyomei.views.index.subject import Subject

__all__ = ["IndexState", "Subject", "build", "state_of"]
