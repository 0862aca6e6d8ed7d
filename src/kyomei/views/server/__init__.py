"""The explorer's server: what is shown of a run, answered as JSON to pages that stand in `views/web/`."""

from __future__ import annotations

from kyomei.views.server.app import app_for
from kyomei.views.server.explorer import Explored, Explorer, Options

__all__ = ["Explored", "Explorer", "Options", "app_for"]
