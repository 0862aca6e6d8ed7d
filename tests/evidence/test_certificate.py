"""A certificate holds for data and for a rule, prints short, and says why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kyomei.errors import EvidenceError
from kyomei.evidence import reproduction
from kyomei.evidence.certificate import SCHEMA_VERSION, Certificate, rule_in_force
from kyomei.evidence.verdict import verdict


def feature(index: int, status: str, agreed: float = 0.9, frequency: float = 0.01) -> dict[str, Any]:
    return {
        "index": index,
        "status": status,
        "frequency": frequency,
        "encoder_mcs": [agreed, 0.95],
        "decoder_mcs": [0.95, 0.96],
        "correlation": [0.97, 0.98],
        "partner": [0, 0],
        "split_correlation": [0.8, 0.1],
        "merged_correlation": [0.1, 0.75],
        "q_value": 0.01,
        "origin": {"kind": "token", "r2": {"token": 0.8, "position": 0.0, "both": 0.8}},
        "tokens": [[" the", 0.7], [" a", 0.2]],
        "activation": 1.0,
        "explained variance": 0.01,
    }


def certificate(features: list[dict[str, Any]], **changes: Any) -> Certificate:
    made = Certificate(
        created="2026-01-01T00:00:00+00:00",
        mechanism="gba",
        site="model.layers.2.mlp",
        model="embedded",
        width=len(features),
        replicas=["replicas/0", "replicas/1", "replicas/2"],
        num_rows=1000,
        rule={"encoder": 0.7, "decoder": 0.72, "correlation": 0.7, "dense_encoder": 0.8, "dense_decoder": 0.9},
        null={"name": "Gaussian surrogate", "false_positive_rate": 0.002, "latents": 400},
        fidelity={"fvu": 0.2, "l0": 12.0, "dead": 0.05},
        shares={},
        features=features,
        data={"a": "1", "b": "2"},
        constants=rule_in_force(),
    )
    return replace(made, **changes)


MIXED = certificate(
    [
        feature(0, "certified", 0.8),
        feature(1, "certified", 0.94),
        feature(2, "certified", 0.99, frequency=0.4),
        *(feature(i, status) for i, status in enumerate(("split", "merged", "unstable", "dead"), start=3)),
        *(feature(i, "unstable") for i in range(7, 3000)),
    ]
)


def test_it_expires_with_its_data_and_with_its_rule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = {"a": "1", "b": "2"}
    MIXED.write(tmp_path / "certificate.json")
    written = Certificate.read(tmp_path / "certificate.json")
    assert written.changed(now) == []
    assert written.changed({"a": "1", "c": "3"}) == ["b", "c"]
    for name in ("MIN_COSINE", "MIN_CORRELATION", "NULL_QUANTILE", "DENSE_FREQUENCY"):
        with monkeypatch.context() as changed:
            changed.setattr(reproduction, name, 0.123)
            assert written.changed(now) == [f"the rule's reproduction.{name}"]
    with monkeypatch.context() as changed:
        changed.setattr("kyomei.evidence.certificate.RULE_VERSION", 99)
        assert written.changed(now) == ["the rule's version"]


def test_an_older_certificate_has_expired_and_is_no_error(tmp_path: Path) -> None:
    values = MIXED.to_dict()
    del values["constants"]
    (tmp_path / "old.json").write_text(json.dumps({**values, "schema_version": 1}))
    old = Certificate.read(tmp_path / "old.json")
    assert old.changed(MIXED.data) == ["the rule"] and old.certified == [0, 1, 2]
    (tmp_path / "new.json").write_text(json.dumps({**values, "schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(EvidenceError, match="Update Kyomei"):
        Certificate.read(tmp_path / "new.json")


def test_it_prints_in_ten_lines_that_open_with_the_verdict() -> None:
    lines = repr(MIXED).splitlines()
    assert len(lines) <= 10 and max(map(len, lines)) < 200
    assert lines[0] == verdict(MIXED.to_dict()).headline
    assert "3 certified, 1 split, 1 merged, 2994 unstable, 1 dead" in lines[2]
    # The dense feature agrees most, and stands last.
    assert [line.split("(")[0].split()[-1] for line in lines[-3:]] == ["1", "0", "2"] and "' the' ' a'" in lines[-1]
    answer = verdict(MIXED.to_dict(), {"verdict": "not met", "expected_frr": None, "interval": None})
    told = replace(MIXED, answer=answer)
    assert repr(told).startswith(answer.headline) and "answer" not in told.to_dict()
    assert repr(certificate([feature(0, "unstable")])).splitlines()[-1].endswith("no feature is certified")
