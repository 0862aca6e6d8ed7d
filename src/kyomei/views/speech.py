"""One of the two languages: its words from the catalogue, and numbers, dates and times as it writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from kyomei.errors import DataError
from kyomei.views.numbers import Figure, format_number, percent, span
from kyomei.views.strings import LANGUAGES, STRINGS

_SAID = "said."


@dataclass(frozen=True)
class Speech:
    """What is said and written in one language.

    Attributes:
        language: "en" or "ja".

    Raises:
        DataError: it is another one.
    """

    language: str = "en"

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise DataError(f"a language among {', '.join(LANGUAGES)}", repr(self.language), "choose one of them")

    @property
    def is_english(self) -> bool:
        """Whether nothing needs to be translated."""
        return self.language == LANGUAGES[0]

    def t(self, key: str, **values: object) -> str:
        """The string of a key, with values put in as text.

        Raises:
            KeyError: the catalogue has no such key, or the string a place that no value fills.
        """
        # After a full-width bracket Japanese leaves no space.
        return STRINGS[key][LANGUAGES.index(self.language)].format(**values).replace("） ", "）")

    def named(self, family: str, name: str) -> str:
        """The name of something, or what it is called where the catalogue does not know it."""
        found = STRINGS.get(f"{family}.{re.sub('[ -]', '_', name)}")
        return name if found is None else found[LANGUAGES.index(self.language)]

    def said(self, text: str) -> str:
        """What a run's files say in English, in this language; as it is where the catalogue does not know it."""
        if self.is_english or not text:
            return text
        for pattern, sentence in _sentences(self.language):
            found = pattern.fullmatch(text)
            if found:
                parts = [self.said(part) for part in found.groups()]
                return re.sub(r"\{(\d)\}", _filler(parts), sentence)
        return self.written(text)

    def written(self, text: str) -> str:
        """Text whose numbers are written as this language writes them."""
        if self.is_english:
            return text
        text = re.sub(r"(?<=\d)\u202f(?=\d{3})", ",", text)
        text = re.sub(r"(?<=\d) %", "%", text)
        return re.sub(r"(?<=[\d%])–(?=[−\d])", "〜", text)

    def joined(self, sentences: Sequence[str]) -> str:
        """Sentences one after the other."""
        return (" " if self.is_english else "").join(sentences)

    def listed(self, names: Sequence[str]) -> str:
        """Names in a row."""
        return self.t("list.comma").join(names)

    def number(self, value: Figure) -> str:
        """A number in three significant digits; words in this language, a dash for none."""
        return self.said(value) if isinstance(value, str) else self.written(format_number(value))

    def percent(self, share: float | None) -> str:
        """A share as a percentage; a dash for none."""
        return self.written(percent(share))

    def span(self, values: Sequence[float]) -> str | None:
        """Smallest to largest; none for a single value."""
        found = span(values)
        return None if found is None else self.written(found)

    def date(self, moment: str) -> str:
        """A day from a time as ISO 8601 writes it; as it is where it is none."""
        try:
            day = datetime.fromisoformat(moment)
        except ValueError:
            return moment
        month = self.t("date.months").split()[day.month - 1]
        return self.t("date.day", day=day.day, month=month, year=day.year)

    def duration(self, seconds: float) -> str:
        """Seconds, minutes or hours, whichever reads best."""
        unit, length = ("seconds", 1) if seconds < 90 else ("minutes", 60) if seconds < 5400 else ("hours", 3600)
        value = f"{seconds / length:.{int(unit == 'hours')}f}"
        return self.t("time.second" if (unit, value) == ("seconds", "1") else f"time.{unit}", value=value)

    def size(self, num_bytes: float) -> str:
        """Bytes as megabytes or gigabytes."""
        return f"{format_number(num_bytes / 1e9)} GB" if num_bytes >= 1e9 else f"{format_number(num_bytes / 1e6)} MB"


ENGLISH = Speech()


def _filler(parts: Sequence[str]) -> Callable[[re.Match[str]], str]:
    return lambda place: parts[int(place.group(1)) - 1]


@cache
def _sentences(language: str) -> list[tuple[re.Pattern[str], str]]:
    """What matches each sentence of the catalogue; those that say most themselves are looked for first."""
    column = LANGUAGES.index(language)
    known = [(key.removeprefix(_SAID), both[column]) for key, both in STRINGS.items() if key.startswith(_SAID)]
    known.sort(key=lambda pair: -len(re.sub(r"\{\d\}", "", pair[0])))
    return [(re.compile("(.+?)".join(map(re.escape, re.split(r"\{\d\}", english))), re.DOTALL), own) for english, own in known]
