"""Answers about an index, by DuckDB: what is asked is always a parameter, and nothing outside the index can be read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

import duckdb

from kyomei.errors import DataError
from kyomei.views.index.schema import DOCUMENTS, EXAMPLES, FEATURES
from kyomei.views.index.state import state_of

MOST_ROWS = 500
"""Of one page."""
LATENTS_AT_ONCE = 256
"""Whose examples are held at a time where those of all are read."""
MOST_CHARACTERS = 20_000
"""Of a document that are given at once."""
LISTED = (
    "latent",
    "status",
    "origin",
    "frequency",
    "max_activation",
    "mean_activation",
    "explained",
    "agreement",
    "top_tokens",
)
"""Columns of a row of the list."""
SORTS = {
    "latent": "latent",
    "frequency": "frequency",
    "max_activation": "max_activation",
    "mean_activation": "mean_activation",
    "explained": "explained",
    "status": "status_order",
    "agreement": "agreement",
}
"""What the list can be sorted by; the names of columns never come from a request."""
_STATUS_ORDER = ("certified", "split", "merged", "unstable", "not certified", "dead")


@final
class Index:
    """An index that is ready, for any number of threads.

    The list and the map lie in memory (some hundred bytes a latent); examples and documents are read from their files.

    Args:
        folder: of the index.

    Raises:
        DataError: there is no index, or it is unfinished, damaged or of another version.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        state = state_of(self.folder)
        if not state.is_ready:
            raise DataError("a whole index", f"{state.condition}: {state.reason}", "make it with `kyomei index`")
        self.facts = dict(state.facts)
        self._files = {name: str((self.folder / name).resolve()) for name in (FEATURES, EXAMPLES, DOCUMENTS)}
        self._connection = duckdb.connect(":memory:", config={"threads": 2})
        try:
            self._open()
        except duckdb.Error as error:
            self._connection.close()
            found = f"damage in {self.folder}: {str(error).splitlines()[0]}"
            raise DataError("a whole index", found, "make it anew with `kyomei index`") from error

    def _open(self) -> None:
        order = " ".join(f"WHEN '{name}' THEN {number}" for number, name in enumerate(_STATUS_ORDER))
        self._connection.execute(
            f"CREATE TABLE features AS SELECT *, CASE status {order} ELSE 9 END AS status_order "
            "FROM read_parquet(?) ORDER BY latent",
            [self._files[FEATURES]],
        )
        self._connection.execute("CREATE UNIQUE INDEX by_latent ON features (latent)")
        # From here on only the files of this index can be read, whatever a query says.
        self._connection.execute("SET allowed_paths = ?", [list(self._files.values())])
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")

    def close(self) -> None:
        """Let go of the files and of memory."""
        self._connection.close()

    def _rows(self, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Rows as plain values: NaN and infinity as None."""
        cursor = self._connection.cursor()
        try:
            answer = cursor.execute(query, list(parameters))
            names = [column[0] for column in answer.description or ()]
            return [{name: _plain(value) for name, value in zip(names, row, strict=True)} for row in answer.fetchall()]
        finally:
            cursor.close()

    def _columns(self, query: str, parameters: Sequence[Any] = ()) -> dict[str, list[Any]]:
        """Columns as plain values, which is faster than rows where there are many; missing values as None."""
        cursor = self._connection.cursor()
        try:
            return {name: values.tolist() for name, values in cursor.execute(query, list(parameters)).fetchnumpy().items()}
        finally:
            cursor.close()

    def overview(self) -> dict[str, Any]:
        """What the index is of (see index.json) and how its latents are spread.

        Returns:
            The facts of index.json without its digests; "live", "status" and "origin" (counts by name, origins of all live
            latents and "origin_certified" of the certified ones), "frequencies" (counts of live latents by tenths of a power
            of ten: {"from", "to", "count", "certified"}), "mapped" (whether latents have places on the map).
        """
        facts = {name: value for name, value in self.facts.items() if name not in ("files", "made_from")}
        (sums,) = self._rows("SELECT count(*) FILTER (frequency > 0) AS live, count(x) > 0 AS mapped FROM features")
        status = self._rows("SELECT status, count(*) AS n FROM features GROUP BY status, status_order ORDER BY status_order")
        origins = "SELECT origin, count(*) AS n FROM features WHERE origin IS NOT NULL AND {} GROUP BY origin ORDER BY origin"
        by_origin, certified = (self._rows(origins.format(of)) for of in ("frequency > 0", "status = 'certified'"))
        return {
            **facts,
            **sums,
            "status": {row["status"]: row["n"] for row in status},
            "origin": {row["origin"]: row["n"] for row in by_origin},
            "origin_certified": {row["origin"]: row["n"] for row in certified},
            "frequencies": self._frequencies(),
        }

    def _frequencies(self) -> list[dict[str, Any]]:
        counted = self._rows(
            "SELECT CAST(floor(log10(frequency) * 10) AS INTEGER) AS bin, count(*) AS n, "
            "count(*) FILTER (status = 'certified') AS certified FROM features WHERE frequency > 0 GROUP BY bin ORDER BY bin"
        )
        return [
            {
                "from": 10 ** (row["bin"] / 10),
                "to": 10 ** ((row["bin"] + 1) / 10),
                "count": row["n"],
                "certified": row["certified"],
            }
            for row in counted
        ]

    def features(
        self,
        *,
        q: str = "",
        status: Sequence[str] = (),
        origin: Sequence[str] = (),
        frequency: tuple[float | None, float | None] = (None, None),
        latents: Sequence[int] | None = None,
        named: Sequence[int] = (),
        order: tuple[str, bool] = ("status", False),
        page: tuple[int, int] = (1, 50),
    ) -> dict[str, Any]:
        """A page of the list of latents.

        Args:
            q: text that a latent's strongest tokens hold, whatever its case; a whole number also finds the latent itself.
            status: any of these; empty: all.
            origin: any of these; empty: all.
            frequency: least and largest share of rows; none: no bound.
            latents: only these; none: all.
            named: latents that `q` finds for another reason, such as their label.
            order: a key of `SORTS`, and whether it descends; equals are ordered by falling frequency, then by number.
                Latents without a value come last.
            page: its number, from 1, and its size, at most `MOST_ROWS`.

        Returns:
            "rows" with the columns of `LISTED`, "total" rows on all pages, "page", "size".

        Raises:
            DataError: an unknown order.
        """
        where, parameters = _conditions(q, status, origin, frequency, latents, named)
        key, descending = order
        if key not in SORTS:
            raise DataError(f"an order among {', '.join(SORTS)}", repr(key), "choose one of them")
        number, size = max(1, page[0]), max(1, min(MOST_ROWS, page[1]))
        way = "DESC" if descending else "ASC"
        by = f"{SORTS[key]} {way} NULLS LAST, frequency DESC, latent"
        # Numbers are sorted alone: whole rows are read for the page only.
        found = self._columns(f"SELECT latent FROM features WHERE {where} ORDER BY {by}", parameters)["latent"]
        shown = found[(number - 1) * size : number * size]
        rows = self._rows(
            f"SELECT {', '.join(LISTED)} FROM features WHERE latent IN (SELECT unnest(?::INTEGER[])) ORDER BY {by}", [shown]
        )
        return {"rows": rows, "total": len(found), "page": number, "size": size}

    def matching(
        self,
        *,
        q: str = "",
        status: Sequence[str] = (),
        origin: Sequence[str] = (),
        frequency: tuple[float | None, float | None] = (None, None),
        named: Sequence[int] = (),
    ) -> list[int]:
        """Numbers of all latents that `features` would list, ascending."""
        where, parameters = _conditions(q, status, origin, frequency, None, named)
        return self._columns(f"SELECT latent FROM features WHERE {where} ORDER BY latent", parameters)["latent"]

    def feature(self, latent: int) -> dict[str, Any] | None:
        """Every column of a latent, the certificate's entry as a dict; none where there is no such latent."""
        found = self._rows("SELECT * EXCLUDE (status_order) FROM features WHERE latent = ?", [latent])
        if not found:
            return None
        held = found[0]["certificate"]
        return {**found[0], "certificate": None if held is None else json.loads(held)}

    def activity(self) -> dict[str, list[Any]]:
        """Columns of all latents in order: "frequency" and "mean_activation", as features.parquet has them."""
        return self._columns("SELECT frequency, mean_activation FROM features ORDER BY latent")

    def searched_texts(self) -> dict[int, str]:
        """The text that `q` looks in, by latent."""
        return {row["latent"]: row["token_text"] for row in self._rows("SELECT latent, token_text FROM features")}

    def examples(self, latent: int, kind: str | None = None, decile: int | None = None) -> list[dict[str, Any]]:
        """Examples of a latent in their order: the strongest ones, then samples of its deciles, the strongest decile first.

        Args:
            latent: its number.
            kind: "top" or "decile"; none: both.
            decile: of the samples, 0 to 9; none: all.
        """
        return self._rows(
            "SELECT * FROM read_parquet(?) WHERE latent = ? AND (? IS NULL OR kind = ?) AND (? IS NULL OR decile = ?) "
            "ORDER BY kind DESC, decile DESC, rank",
            [self._files[EXAMPLES], latent, kind, kind, decile, decile],
        )

    def examples_of_all(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Every latent with its examples, as `examples` gives them; the file is read once."""
        for first in range(0, self.facts["width"], LATENTS_AT_ONCE):
            last = min(first + LATENTS_AT_ONCE, self.facts["width"])
            found: dict[int, list[dict[str, Any]]] = {latent: [] for latent in range(first, last)}
            query = (
                "SELECT * FROM read_parquet(?) WHERE latent >= ? AND latent < ? ORDER BY latent, kind DESC, decile DESC, rank"
            )
            for row in self._rows(query, [self._files[EXAMPLES], first, last]):
                found[row["latent"]].append(row)
            yield from found.items()

    def example(self, latent: int, example: int) -> dict[str, Any] | None:
        """One example of a latent by its number (the row that it is of); none where there is no such."""
        query = "SELECT * FROM read_parquet(?) WHERE latent = ? AND example = ? ORDER BY kind DESC LIMIT 1"
        found = self._rows(query, [self._files[EXAMPLES], latent, example])
        return found[0] if found else None

    def document(self, document: int, around: int = 0, size: int = 2000) -> dict[str, Any] | None:
        """A stretch of a document's text; none where there is no such document.

        Args:
            document: its number.
            around: the character that stands in the middle.
            size: characters, at most `MOST_CHARACTERS`.

        Returns:
            "document", "name", "text" (none where text was not kept), "start" of the stretch in characters, "length" of all.
        """
        size = max(1, min(MOST_CHARACTERS, size))
        start = max(0, around - size // 2)
        # DuckDB's substring counts code points, as Python does.
        found = self._rows(
            "SELECT document, name, substring(text, ?, ?) AS text, length(text) AS length FROM read_parquet(?) "
            "WHERE document = ?",
            [start + 1, size, self._files[DOCUMENTS], document],
        )
        return {**found[0], "start": start} if found else None

    def map(self) -> dict[str, list[Any]]:
        """Columns of the latents that have a place on the map: "latent", "x", "y", "status", "origin", "frequency"."""
        found: dict[str, list[Any]] = json.loads(self.map_json)
        return found

    @cached_property
    def map_json(self) -> bytes:
        """The map as JSON. It is of all latents, so that DuckDB writes it, once."""
        columns = ", ".join(
            f"{name}: coalesce(list({shown} ORDER BY latent), [])"
            for name, shown in {
                **{name: name for name in ("latent", "status", "origin", "frequency")},
                **{name: f"round({name}::DOUBLE, 3)" for name in ("x", "y")},
            }.items()
        )
        (row,) = self._rows(f"SELECT to_json({{{columns}}}) AS map FROM features WHERE x IS NOT NULL")
        return str(row["map"]).encode()


def _conditions(
    q: str,
    status: Sequence[str],
    origin: Sequence[str],
    frequency: tuple[float | None, float | None],
    latents: Sequence[int] | None,
    named: Sequence[int],
) -> tuple[str, list[Any]]:
    """Conditions of a query and their parameters; whatever was asked is among the parameters."""
    conditions: list[str] = ["true"]
    parameters: list[Any] = []

    def add(condition: str, *values: Any) -> None:
        conditions.append(condition)
        parameters.extend(values)

    if q.strip():
        text = q.strip().lower()
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
        add("(contains(token_text, ?) OR latent = ? OR latent IN (SELECT unnest(?::INTEGER[])))", text, number, list(named))
    if status:
        add("list_contains(?::VARCHAR[], status)", list(status))
    if origin:
        add("list_contains(?::VARCHAR[], origin)", list(origin))
    low, high = frequency
    if low is not None:
        add("frequency >= ?", float(low))
    if high is not None:
        add("frequency <= ?", float(high))
    if latents is not None:
        add("latent IN (SELECT unnest(?::INTEGER[]))", list(latents))
    return " AND ".join(conditions), parameters


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value
