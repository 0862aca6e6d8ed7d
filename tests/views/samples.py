"""What the stages of a small run would hand to the views."""

from __future__ import annotations

from typing import Any

HOSTILE = '<script>alert("1")</script>&amp;\' onmouseover=x </style></title>{{ 7*7 }}[/bold]'


def verdict(words: str = "") -> dict[str, Any]:
    said = {"name": "certified", "side": "for", "figure": "10 of 100", "meaning": "run `kyomei check`"}
    reason = {name: words or text for name, text in said.items()}
    return {"level": words or "partly", "headline": words or "Trust this dictionary in part: 10 of 100.", "reasons": [reason]}


def certificate(certified: int = 10, words: str = "") -> dict[str, Any]:
    """Of a dictionary of 100 latents; the certified ones carry 41 % of the explained variance."""
    rest = {"split": 0.2, "merged": 0.1, "unstable": 0.5, "dead": 0.2 - certified / 100}
    kinds = ("token", "position", words or "context-or-unexplained")
    origins = dict(zip(kinds, (0.6, 0.1, 0.3) if certified else (0.0, 0.0, 0.0), strict=True))
    heavy = {"split": 0.2, "merged": 0.09, "unstable": 0.3, "dead": 0.0}
    return {
        "mechanism": words or "gba",
        "width": 100,
        "num_rows": 2000,
        "rule": {"encoder": 0.7, "decoder": 0.72, "correlation": 0.7, "dense_encoder": 0.8, "dense_decoder": 0.9},
        "null": {"name": words or "Gaussian surrogate", "false_positive_rate": 0.004, "latents": 250},
        "fidelity": {"fvu": 0.2, "l0": 31.6, "dead": 0.1},
        "dense": {"latents": 0.05, "certified": 0.01, "explained": 0.4, "l0": 2.5},
        "shares": {
            by: {"status": {"certified": share, **others}, "origin of certified": origins}
            for by, share, others in (
                ("count", certified / 100, rest),
                ("activation", 0.3, heavy),
                ("explained variance", 0.41, heavy),
            )
        },
        "features": [feature(i, "certified" if i < certified else "unstable") for i in range(20)],
    }


def feature(index: int, status: str, words: str = " the") -> dict[str, Any]:
    origin = {"kind": "token", "r2": {"token": 0.4, "position": -0.1}, "mass": {"token": 0.93, "position": 0.0}, "firing": 0.5}
    return {
        "index": index,
        "status": status,
        "frequency": 0.01,
        "encoder_mcs": [0.93, 0.8],
        "decoder_mcs": [0.96, 0.95 if status == "certified" else 0.55],
        "correlation": [0.98, 0.97],
        "split_correlation": [0.2, 0.8],
        "merged_correlation": [0.1, 0.75],
        "origin": origin,
        "tokens": [[words, 0.61], [" a", 0.2]],
    }


def premises(words: str = "") -> dict[str, Any]:
    poor = {
        "name": words or "incoherence",
        "status": words or "not met",
        "estimate": 0.31,
        "interval": [0.28, 0.4],
        "interval_of": "features",
        "meaning": words or "near",
        "advice": words or "read them together",
    }
    met = {
        **poor,
        "name": words or "sparse structure",
        "status": "met",
        "estimate": 0.98,
        "interval": None,
        "interval_of": None,
    }
    unknown = {**poor, "name": words or "hierarchy", "status": "unknown", "estimate": None, "interval": [None, None]}
    return {
        "verdict": words or "partly",
        "expected_frr": None if words else 0.8,
        "interval": None if words else [0.7, 0.9],
        "premises": [met, poor, unknown],
        "statistics": {"why_unknown": words},
    }
