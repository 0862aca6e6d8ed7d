"""What Kyomei raises: every message says what was expected, what was found and what to do."""

from __future__ import annotations


class KyomeiError(Exception):
    """An error its reader can act on.

    Args:
        expected: what would have been right, as a noun phrase.
        found: what was there instead.
        do: what to do about it, as an imperative.
    """

    def __init__(self, expected: str, found: str, do: str) -> None:
        # What is quoted may hold lone surrogates, from bytes that are no text; no stream would print them.
        expected, found, do = (said.encode("utf-8", "backslashreplace").decode() for said in (expected, found, do))
        super().__init__(f"Expected {expected}. Found {found}. {do[:1].upper()}{do[1:]}.")
        self.expected = expected
        self.found = found
        self.do = do


class RecipeError(KyomeiError):
    """A recipe or an option is wrong."""


class DataError(KyomeiError):
    """Text, tokens or activations are unusable."""


class ModelError(KyomeiError):
    """A language model or a site in it cannot be used."""


class RunError(KyomeiError):
    """A run's folder cannot be used as asked."""


class AddressError(KyomeiError):
    """An address elsewhere does not answer; nothing is known of what lies there."""


class TrainingError(KyomeiError):
    """Training cannot go on, for instance because the loss is not finite."""


class EvidenceError(KyomeiError):
    """A figure was asked for without what makes it mean something."""


class Interrupted(KyomeiError):
    """Stopped by a signal; what was computed is on disk and can be resumed."""


def in_one_line(error: Exception) -> str:
    """The kind of a foreign error and the first line of what it says."""
    said = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return f"{type(error).__name__}: {said}"
