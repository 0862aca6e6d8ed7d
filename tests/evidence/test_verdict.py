"""One answer from premises, certificate and control."""

from typing import Any

import pytest

from kyomei.evidence.verdict import FEW, MOST, verdict


def certificate(certified: int, width: int = 100, *, rate: float = 0.0, kind: str = "context-or-unexplained") -> dict[str, Any]:
    features = [
        {
            "status": "certified" if i < certified else "unstable",
            "frequency": 0.01,
            "explained variance": 0.01,
            "origin": {"kind": kind},
        }
        for i in range(width)
    ]
    return {"features": features, "null": {"name": "Gaussian surrogate", "false_positive_rate": rate, "latents": width}}


MET = {"verdict": "met", "expected_frr": 0.95, "interval": [0.9, 0.98]}
NOT_MET = {"verdict": "not met", "expected_frr": None, "interval": None}
RANDOM = certificate(5)


@pytest.mark.parametrize(
    ("certified", "premises", "control", "level"),
    [
        (None, None, None, "not tested"),
        (None, MET, None, "not tested"),
        (None, NOT_MET, None, "do not trust"),
        (0, MET, RANDOM, "do not trust"),
        (6, NOT_MET, None, "do not trust"),
        (6, MET, certificate(0), "do not trust"),
        (30, MET, RANDOM, "partly"),
        (30, NOT_MET, RANDOM, "partly"),
        (70, MET, RANDOM, "trust"),
        (70, NOT_MET, RANDOM, "partly"),
        (70, None, RANDOM, "partly"),
        (70, MET, None, "partly"),
        (70, MET, certificate(70), "partly"),
        (70, NOT_MET, certificate(70), "do not trust"),
    ],
)
def test_the_certificate_sets_the_level_and_premises_and_control_lower_it(certified, premises, control, level):
    found = verdict(None if certified is None else certificate(certified), premises, control)
    assert found.level == level
    assert found.headline.count(".") == 1 and found.headline.endswith(".")
    assert found.to_dict()["level"] == level


def test_what_passes_by_chance_is_not_trusted():
    assert verdict(certificate(60, rate=0.02), MET, RANDOM).level == "trust"
    assert verdict(certificate(60, rate=0.1), MET, RANDOM).level == "partly"
    assert verdict(certificate(60, rate=0.4), MET, RANDOM).level == "do not trust"


def test_dense_latents_count_for_nothing_in_the_explained_variance():
    values = certificate(60)
    for feature in values["features"][:60]:
        feature["frequency"] = 0.5
    assert verdict(values, MET, RANDOM).level == "partly"
    assert verdict(values).reasons[1].figure == "0 %"


def test_nothing_is_left_unsaid():
    empty = verdict(certificate(0))
    assert "not one of its 100 latents is certified" in empty.headline
    assert {reason.name: reason.figure for reason in empty.reasons} == {
        "certified": "0 of 100 latents (0 %)",
        "certified by explained variance": "0 %",
        "null": "0 % of its latents pass",
        "premises": "not checked",
        "random weights": "not tried",
    }
    few = verdict(certificate(6), NOT_MET)
    assert few.headline == (
        "Do not trust this dictionary: 6 of its 100 latents (6 %) are certified; read those and no others; "
        "the premises are not met, so others are missing or mixed."
    )
    assert len(str(few).splitlines()) == 1 + len(few.reasons)


def test_token_features_of_random_weights_do_not_count_against():
    assert verdict(certificate(70), MET, certificate(90, kind="token")).level == "trust"
    assert 0 < FEW < MOST < 1
