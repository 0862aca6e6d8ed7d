"""What a verb prints: on any terminal, with a legend for every column that needs one."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest
from tests.views.samples import HOSTILE, certificate, premises, verdict

from kyomei.views.console import show, speak_plainly, verdict_words
from kyomei.views.tables import (
    certify_notes,
    certify_tables,
    evidence_table,
    harvest_table,
    plan_table,
    planted_table,
    premises_table,
    train_table,
)

FIDELITY = [{"fvu": 0.2, "l0_mean": 30.0, "dead_share": 0.1}] * 2
AGREEMENT = {space: {"mcs_above_0.7": {"value": 0.4, "null": 0.01}} for space in ("whitened", "raw")}
EVIDENCE: dict[str, Any] = {
    "directions": {},
    "cross_entropy": {},
    "mechanisms": {
        name: {
            "width": 100,
            "fidelity": FIDELITY,
            "consistency": [AGREEMENT] * 2,
            "selections": {"Z-score": {"0.05": AGREEMENT["raw"], "0.2": AGREEMENT["raw"]}},
        }
        for name in ("gba", "some-mechanism-of-later")
    },
}
CERTIFIED = {
    "verdict": verdict(),
    "certificates": {"gba": certificate(), "baseline topk": certificate(0)},
    "best": {"gba": [1, 0], "baseline topk": []},
    "files": {"gba": "runs/first/certificate.json", "baseline topk": "runs/first/baselines/topk/certificate.json"},
}
TRAINED = {
    "arms": [
        {"folder": "replicas", "mechanism": "gba", "replicas": [{"width": 96, "directions": 28, "stable": 28, "used": 28}]},
        {
            "folder": "controls/gaussian/gba",
            "mechanism": "gba",
            "replicas": [{"width": 96, "directions": 5344, "stable": 3, "used": 28}],
        },
        {"folder": "baselines/topk", "mechanism": "topk", "replicas": [{"width": 96}]},
    ]
}
HARVESTED = {"rows": 10, "dropped_special": 1, "dropped_norm": 2}
TABLES = [
    *certify_tables(CERTIFIED, "runs/first"),
    evidence_table(EVIDENCE, "runs/first"),
    premises_table(premises()),
    train_table(TRAINED, "runs/first"),
    harvest_table({"sites": {"s": {"dim": 8, "parts": {"evidence": HARVESTED}}}}, "runs/first"),
    plan_table(
        {"seconds": {"harvest": 20.0, "resonance": 7000.0}, "total_seconds": 7020.0, "memory_bytes": 1e9, "disk_bytes": 2e9}
        | {"price": 3.0, "mesh": "1x1", "harvested_tokens": 1000, "read_rows": 500, "rows": 250},
        "here",
        3,
    ),
    planted_table(
        {"n_features": 8, "interval": [7, 9]}
        | {"recovery": {"gba": {"n_vectors": 8, "frr_0.8": 1, "frr_0.9": 1, "monosemantic_0.9": 1, "mcc": 1}}},
        8,
        4,
    ),
]


def test_like_stands_beside_like() -> None:
    """The null keeps every direction; beside the replicas' stable ones stand its stable ones."""
    rows = {row[0]: row for row in train_table(TRAINED, "runs/first").rows}
    assert rows["replicas/0"][3:] == ("28", "28")
    assert rows["controls/gaussian/gba/0"][3:] == ("3", "28")
    assert rows["baselines/topk/0"][3:] == ("–", "–")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title[:20])
def test_every_table_is_whole_and_explains_its_words(table: Any) -> None:
    assert table.rows and all(len(row) == len(table.header) for row in table.rows)
    named = {name for name, _ in table.legend}
    words = " ".join([*table.header, *(row[0] for row in table.rows)])
    terms = [
        "split",
        "merged",
        "FVU",
        "L0",
        "MCS",
        "whitened",
        "dense",
        "FRR",
        "MCC",
        "special",
        "massive",
        "mesh",
        "correlation",
    ]
    for term in (*terms, "stable directions", "correlation"):
        assert term not in words or any(term in name for name in named), term
    assert all(meaning for _, meaning in table.legend)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_any_terminal_takes_any_text(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"狐 žluť 🦊 – ≥ \udc80 {HOSTILE}"
    raw, errors = io.BytesIO(), io.BytesIO()
    for name, stream in (("stdout", raw), ("stderr", errors)):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding=encoding, errors="strict", write_through=True))
    speak_plainly()
    facts = {"text": "狐 ≥", "certificates": {text: certificate(words=text)}, "best": {text: [0]}, "files": {text: text}}
    shown = certify_tables(facts, text)
    show(facts, False, *shown, opening=verdict_words(verdict(text)), closing=certify_notes(facts))
    print(text, file=sys.stderr)
    assert (b"[/bold]" in raw.getvalue() and b">= ?" in errors.getvalue()) or encoding != "ascii"
    raw.seek(0), raw.truncate()
    show({"text": "狐 ≥"}, True)
    assert json.loads(raw.getvalue().decode(encoding)) == {"text": "狐 ≥"}


def test_certify_prints_the_verdict_the_best_features_and_the_files(capsys: pytest.CaptureFixture[str]) -> None:
    tables = certify_tables(CERTIFIED, "runs/first")
    show(CERTIFIED, False, *tables, opening=verdict_words(CERTIFIED["verdict"]), closing=certify_notes(CERTIFIED))
    said = capsys.readouterr().out
    assert said.startswith("Trust this dictionary in part: 10 of 100.\n")
    assert "' the' ' a'" in said and "10 (10 %)" in said
    assert "No feature of TopK, baseline is certified." in said
    assert "GBA: runs/first/certificate.json" in said
    json_only = {"a": 1}
    show(json_only, True, *tables, opening="x", closing=["y"])
    assert json.loads(capsys.readouterr().out) == json_only
