"""What a watch shows: lines and tables on the console, figures for Prometheus, and streams for the explorer's page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from kyomei.errors import RunError
from kyomei.runs import plain
from kyomei.views.numbers import format_number, percent
from kyomei.views.speech import Speech
from kyomei.views.tables import Table

MOST_WINDOWS = 200
"""Windows of a stream that a page shows, the last ones."""
_TAIL_BYTES = 1 << 20
_KINDS = {
    "text": "text as a whole",
    "reconstruction": "reconstruction",
    "features": "features",
    "learnt": "a direction learnt on the stream",
    "goals": "goals",
}
_TEXT = {
    "distance": "distance of its firing rates",
    "activity": "active latents a row",
    "energy": "mean square of its rows",
    "axis 1": "first axis of its firing rates",
    "axis 2": "second axis of its firing rates",
}
_REASONS = {
    "files": "dictionary, replicas, rows or rule are others than those that were certified",
    "model": "the language model has other weights",
    "age": "it is too old",
    "drift": "the text is no longer like the evidence",
}


def event_words(event: Mapping[str, Any]) -> str:
    """An event in one line."""
    at = f"{event['documents']:,} documents, {event['tokens']:,} tokens"
    match event["event"]:
        case "start" | "resume":
            reference = event["reference"]
            begins = "watching" if event["event"] == "start" else f"watching goes on after {at}"
            share = event["least_share"]
            sees = "no turn of the text in 5 windows" if share is None else f"a turn of {percent(share)} of the text or more"
            of = f"{reference['documents']} documents of the reference; with so many, 5 windows can tell {sees}"
            return f"{begins}: held to {of}; {_power(event)}"
        case "window":
            strongest = max(event["evidence"], key=lambda one: one["log10_evidence"] - one["log10_threshold"])
            evidence = f"{_evidence(strongest['log10_evidence'])} of {_evidence(strongest['log10_threshold'])}"
            stands = f"ALARM since earlier: {', '.join(event['alarms'])}" if event["alarms"] else "quiet"
            unexplained = f"unexplained {percent(event['unexplained'])} (reference {percent(event['reference_unexplained'])})"
            return f"window {event['window']}: {at}; {unexplained}; most evidence {evidence}, {_name(strongest)}; {stands}"
        case "alarm":
            named = ", ".join([*(f"latent {latent}" for latent in event["latents"]), *event["goals"]])
            of = f"{_KINDS[event['kind']]}{f' ({named})' if named else ''}"
            return f"ALARM: {of} is no longer like the reference, at document {event['document']:,} of window {event['window']}"
        case "certificate":
            return f"the certificate has expired: {'; '.join(_REASONS[reason] for reason in event['reasons'])}"
        case _:
            return f"the stream has ended: {at}"


def _power(event: Mapping[str, Any]) -> str:
    """What so many documents of a reference saw where it was measured, and what more of them would."""
    most, share = max((int(count), share) for count, share in event["measured"].items())
    seen = event["seen_in_time"]
    said = "how often a turn of a tenth is seen was not measured with so few"
    if seen is not None:
        said = f"a turn of a tenth to C++ or prose was seen in {percent(seen)} of measured streams"
    if event["reference"]["documents"] >= most:
        return said
    return f"{said}, with {most} documents in {percent(share)} (more evidence: `--tokens` of the harvest)"


def status_tables(status: Mapping[str, Any]) -> list[Table]:
    """How a watch stands, as tables."""
    title = f"{status['run']}: {status['documents']:,} documents, {status['tokens']:,} tokens, {status['windows']:,} windows"
    rows = tuple(_row(_name(each), each) for each in status["evidence"])
    legend = (
        (
            "evidence",
            "how many times the stake a bet against \u201clike the reference\u201d has become; it may be read at any time",
        ),
        (
            "threshold",
            "what it reaches by chance in one stream of twenty at most, over all that is watched and all times together",
        ),
    )
    tables = [Table(title, ("what", "evidence", "highest", "threshold", "state"), rows, legend, words=(0, 4))]
    features = tuple(
        (
            str(each["latent"]),
            each["status"] or "–",
            percent(each["rate"]),
            percent(each["reference_rate"]),
            _evidence(each["log10_highest"]),
            "changed" if each["alarm"] else "–",
        )
        for each in status["features"]
    )
    header = ("latent", "certificate", "rate here", "in the reference", "highest evidence", "state")
    tables.append(Table("features with the most evidence", header, features, words=(1, 5)))
    if status["goals"]:
        goals = tuple((g["goal"], format_number(g["score"]), format_number(g["reference_score"])) for g in status["goals"])
        tables.append(Table("goals", ("goal", "mean score here", "in the reference"), goals))
    return tables


def certificate_words(validity: Mapping[str, Any]) -> str:
    """How the certificate stands, in one line."""
    if validity["state"] == "none":
        return "certificate: none; `kyomei certify` makes one"
    said = {"valid": f"valid until {(validity['until'] or '')[:10]}, unless something ends it before"}
    why = "; ".join(_REASONS[reason] for reason in validity["reasons"])
    unchecked = "".join(f" (not compared: {each})" for each in validity["unchecked"])
    return f"certificate: {said.get(validity['state'], f'expired: {why}')}{unchecked}"


def _row(name: str, each: Mapping[str, Any]) -> tuple[str, ...]:
    figures = (_evidence(each[key]) for key in ("log10_evidence", "log10_highest", "log10_threshold"))
    return (name, *figures, "ALARM" if each["alarm"] else "quiet")


def _name(each: Mapping[str, Any]) -> str:
    if each["kind"] == each["name"]:
        return _KINDS[each["kind"]]
    return f"text: {_TEXT[each['name']]}" if each["kind"] == "text" else f"goal {each['name']}"


def _evidence(log10: float) -> str:
    return format_number(10.0 ** min(log10, 300.0))


@final
class Metrics:
    """The figures of a watch for Prometheus, over HTTP: those of the last status.

    Args:
        host, port: where they are served.

    Raises:
        RunError: the address cannot be listened on.
    """

    def __init__(self, host: str, port: int) -> None:
        from prometheus_client import CollectorRegistry, start_http_server

        self._status: Mapping[str, Any] | None = None
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, _ = start_http_server(port, host, registry)
        except OSError as error:
            raise RunError(
                "a free address for Prometheus", f"{host}:{port}, {error.strerror}", "choose another port"
            ) from error

    @property
    def port(self) -> int:
        """Where they are served."""
        return int(self._server.server_port)

    def update(self, status: Mapping[str, Any]) -> None:
        """Show a newer status."""
        self._status = status

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def collect(self) -> Iterator[Any]:
        """What Prometheus asks for."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        status = self._status
        if status is None:
            return
        for name, about in (("documents", "Documents counted"), ("tokens", "Tokens counted"), ("windows", "Windows closed")):
            yield CounterMetricFamily(f"kyomei_watch_{name}", about, value=status[name])
        if status["unexplained"] is not None:
            yield GaugeMetricFamily("kyomei_watch_unexplained", "Share of squares left", value=status["unexplained"])
        evidence = GaugeMetricFamily(
            "kyomei_watch_evidence_log10", "Evidence against 'like the reference'", labels=["kind", "name"]
        )
        threshold = GaugeMetricFamily("kyomei_watch_threshold_log10", "Evidence that raises an alarm", labels=["kind", "name"])
        alarm = GaugeMetricFamily("kyomei_watch_alarm", "1 once there was an alarm", labels=["kind", "name"])
        for each in status["evidence"]:
            label = [each["kind"], each["name"]]
            evidence.add_metric(label, each["log10_evidence"])
            threshold.add_metric(label, each["log10_threshold"])
            alarm.add_metric(label, float(each["alarm"]))
        yield from (evidence, threshold, alarm)
        scores = GaugeMetricFamily("kyomei_watch_goal_score", "Mean score of a goal", labels=["goal"])
        for each in status["goals"]:
            scores.add_metric([each["goal"]], each["score"])
        yield scores
        changed = len(status["changed_features"])
        yield GaugeMetricFamily("kyomei_watch_changed_features", "Features that raised an alarm", value=changed)
        valid = float(status["certificate"]["state"] == "valid")
        yield GaugeMetricFamily("kyomei_watch_certificate_valid", "1 while the certificate holds", value=valid)


def streams(folder: Path) -> list[dict[str, Any]]:
    """Every stream that is watched below a folder: its status, and its last windows.

    A file that is damaged, or just being made, is passed over.

    Args:
        folder: of a run's watches.

    Returns:
        Of each "name", "status" and "windows".
    """
    found = []
    for path in sorted(folder.glob("*/status.json")):
        try:
            status = json.loads(path.read_bytes())
            windows = _last_windows(path.with_name("events.jsonl"))
        except (OSError, ValueError):
            continue
        found.append({"name": path.parent.name, "status": plain(status), "windows": windows})
    return found


def watched_streams(found: Sequence[Mapping[str, Any]], speech: Speech) -> list[dict[str, Any]]:
    """Of every stream what a report says: "name", "told" with its "side", and "sentences".

    Args:
        found: as `streams` gives them; windows are not needed.
        speech: the language.
    """
    return [{"name": each["name"], **_told(each["status"], speech)} for each in found]


def _told(status: Mapping[str, Any], speech: Speech) -> dict[str, Any]:
    t, alarms, ended = speech.t, status["alarms"], status["certificate"]
    counted = {name: f"{status[name]:,}" for name in ("documents", "tokens", "windows")}
    lines = [t("watch.counted", **counted)]
    for kind, at in alarms.items():
        where = {"document": f"{at['document']:,}", "window": f"{at['window']:,}", "date": speech.date(at["time"])}
        latents = speech.listed([str(latent) for latent in at.get("latents", ())])
        key = "report.watch.latents" if latents else "report.watch.alarm"
        lines.append(t(key, kind=speech.named("watched", kind), latents=latents, **where))
    certificate = {
        "valid": t("watch.valid", until=speech.date(ended["until"] or "")),
        "expired": t("watch.expired", reasons=speech.listed([speech.named("expired", each) for each in ended["reasons"]])),
        "none": t("watch.no_certificate"),
    }
    if status["last"]:
        known = f"{status['reference']['documents']:,}"
        lines.append(t("report.watch.last", date=speech.date(status["last"]), documents=known))
    told = t("watch.alarm" if alarms else "watch.quiet")
    return {"told": told, "side": "against" if alarms else "for", "sentences": [*lines, certificate[ended["state"]]]}


def _last_windows(path: Path) -> list[dict[str, Any]]:
    """The last windows of a file of events, of which so much is read at most."""
    if not path.exists():
        return []
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        lines = file.read().splitlines()[1 if size > _TAIL_BYTES else 0 :]
    events = [json.loads(line) for line in lines if line.startswith(b'{"event": "window"')]
    return events[-MOST_WINDOWS:]
