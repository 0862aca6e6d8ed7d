"""What is masked in every text of an index: addresses, numbers and keys that are somebody's, and what a user names."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from kyomei.atomic import write_atomic
from kyomei.errors import RecipeError, RunError
from kyomei.source.text import Tokens

MASK = "█"
FILE = "redaction.json"
_VERSION = 1
"""Raised when a pattern below changes: indices are then made anew."""

# Every pattern begins where its like cannot have begun before, and repeats a bounded number of times: no text makes it slow.
_EMAIL = r"(?<![\w.%+\-])[\w.%+\-]{1,64}@(?:[\w\-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w\-])"
_CARD = r"(?<![\d.])\d(?:[ \-]?\d){12,18}(?![\d])"
_PHONE = (
    r"(?<![\w+])\+\d{1,3}(?:[ .\-]?\(?\d{1,4}\)?){2,6}(?!\w)"
    r"|(?<!\w)\(\d{2,5}\) ?\d{2,4}[ .\-]\d{3,4}(?!\w)"
    r"|(?<![\w.\-])\d{3}[.\-]\d{3}[.\-]\d{4}(?![\w\-])"
    r"|(?<![\w.\-])0\d{1,4}-\d{1,4}-\d{3,4}(?![\w\-])"
)
_KEY = (
    r"(?<![A-Za-z0-9])(?:"
    r"(?:sk|pk|rk)[-_](?:live_|test_|proj-|ant-)?[A-Za-z0-9_\-]{20,200}"
    r"|gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255}|glpat-[A-Za-z0-9_\-]{20,64}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Z])|AIza[0-9A-Za-z_\-]{35}|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}"
    r"|xox[abeoprs]-[A-Za-z0-9\-]{10,250}"
    r"|eyJ[A-Za-z0-9_\-]{10,2000}\.eyJ[A-Za-z0-9_\-]{10,4000}\.[A-Za-z0-9_\-]{10,1000})"
    r"|-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY-----[A-Za-z0-9+/=\s:,\-]{0,10000}?-----END (?:[A-Z]+ ){0,3}PRIVATE KEY-----"
    r"|(?i:(?<![A-Za-z])(?:api|secret|access|auth)[_\-]?(?:key|token)[\"']?\s{0,4}[:=]\s{0,4}[\"']?)(?P<value>[A-Za-z0-9_\-/+=.]{16,200})"
)
KINDS = {"e-mail": _EMAIL, "card": _CARD, "phone": _PHONE, "key": _KEY}
"""Regular expressions by kind; a number is a card's if its check digit (Luhn) says so."""
USER = "pattern"


@dataclass(frozen=True)
class Redaction:
    """What is masked.

    Attributes:
        patterns: a user's own regular expressions, beside the built-in ones.

    Raises:
        RecipeError: a pattern is no regular expression.
    """

    patterns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise RecipeError("regular expressions to redact", f"{pattern!r}: {error}", "correct the pattern") from error

    @classmethod
    def read(cls, path: Path) -> Redaction:
        """Patterns from a file, one a line; blank lines and those that begin with # are left out.

        Raises:
            RecipeError: the file cannot be read, or a line is no regular expression.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            found = f"{path}: {type(error).__name__}"
            raise RecipeError("a file of regular expressions", found, "give a text file with one a line") from error
        return cls(tuple(line for line in lines if line.strip() and not line.startswith("#")))

    @classmethod
    def kept(cls, folder: Path) -> Redaction | None:
        """What `keep` wrote; none where nothing is masked.

        Raises:
            RunError: it cannot be read: nothing may then be shown as if it were masked.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            return cls(tuple(json.loads(path.read_bytes())["patterns"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            do = "say anew with --redact or --no-redact"
            raise RunError("what is to be redacted", f"{path}: {type(error).__name__}", do) from error

    def keep(self, folder: Path) -> None:
        """Let every index in a folder be made with this, until it is told otherwise."""
        write_atomic(folder / FILE, (json.dumps({"patterns": self.patterns}, ensure_ascii=False, indent=1) + "\n").encode())

    @property
    def sha256(self) -> str:
        """Digest of all that is masked."""
        return hashlib.sha256(json.dumps([_VERSION, KINDS, self.patterns]).encode()).hexdigest()

    def mask(self, text: str) -> tuple[str, Counter[str]]:
        """A text with every character of what is found masked but white space, and how often each kind was found.

        It is as long as before, so that the places of tokens stay right.
        """
        spans: list[tuple[int, int]] = []
        counts: Counter[str] = Counter()
        for kind, pattern in self._all():
            for found in re.finditer(pattern, text):
                span = found.span("value") if kind == "key" and found.group("value") else found.span()
                if span[0] == span[1] or (kind == "card" and not _is_card(found.group())):
                    continue
                spans.append(span)
                counts[kind] += 1
        if not spans:
            return text, counts
        letters = list(text)
        for first, last in spans:
            letters[first:last] = [c if c.isspace() else MASK for c in text[first:last]]
        return "".join(letters), counts

    def tokens(self, tokens: Tokens) -> tuple[Tokens, Counter[str]]:
        """The same tokens of masked documents, whose names are masked too, and how often each kind was found."""
        documents, counts = [], Counter[str]()
        for document in tokens.documents:
            name, in_name = self.mask(document.name)
            text, in_text = self.mask(document.text)
            documents.append(replace(document, name=name, text=text))
            counts += in_name + in_text
        return replace(tokens, documents=documents), counts

    def _all(self) -> Iterable[tuple[str, str]]:
        yield from KINDS.items()
        yield from ((USER, pattern) for pattern in self.patterns)


def _is_card(number: str) -> bool:
    """Whether the check digit of a card's number is right (Luhn), and it is not one digit over and over."""
    digits = [int(c) for c in number if c.isdigit()]
    total = sum(d if place % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for place, d in enumerate(reversed(digits)))
    return total % 10 == 0 and len(set(digits)) > 1
