"""The command line: options in, one stage called, one table or JSON object out."""

from kyomei.cli import convert, encode, explore, goals, governance, pilot, runs, several, standalone, watch
from kyomei.cli.frame import app
from kyomei.views.console import speak_plainly

__all__ = [
    "app", "convert", "encode", "explore", "goals", "governance", "main", "pilot", "runs", "several", "standalone", "watch",
]  # fmt: skip


def main() -> None:
    """Run a verb: user errors become one message and exit code 2. Signals are its caller's, `kyomei.__main__`."""
    speak_plainly()
    app()
