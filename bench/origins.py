"""Are planted origins told right? Token streams with latents of the token, the position and the context, at all frequencies.

    python bench/origins.py --seeds 5      (one core, about a minute; the table of docs/results.md)

Tokens are Zipf-distributed, documents have topics that favour some of them, and a quarter of the tokens follow from the one
before. A latent of the token fires on one to eight tokens: on a share of their occurrences, after some tokens only, or in some
documents only. One of the position fires at some positions or a range, at a share of their rows. One of the context fires in
some documents, stretches or topics, after given tokens, or by a hidden state that drifts. Strengths vary, and up to a tenth
more firings are noise.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import sparse

from kyomei.evidence.origin import EXPLAINED, ORIGINS, Origin, origin

VOCABULARY, TOPICS, TOPIC_TOKENS = 4000, 12, 100
ROWS = 60_000
LOWEST, HIGHEST, LEAST_FIRINGS = 1e-4, 0.3, 5


class Stream(NamedTuple):
    """For each row its token, its position in the window, its document and the document's topic."""

    token: np.ndarray
    position: np.ndarray
    document: np.ndarray
    topic: np.ndarray


class Planted(NamedTuple):
    """A stream, the code of latents on it, and for each latent its origin and frequency."""

    stream: Stream
    code: sparse.csr_array
    kind: np.ndarray
    frequency: np.ndarray


def stream(rng: np.random.Generator, rows: int, context: int) -> Stream:
    """Documents of topics, cut into windows."""
    share = 1 / (np.arange(VOCABULARY) + 2.7)
    share /= share.sum()
    successor = rng.permutation(VOCABULARY)
    favoured = [rng.choice(VOCABULARY, TOPIC_TOKENS, replace=False) for _ in range(TOPICS)]
    lengths = np.clip(rng.lognormal(5.3, 0.8, size=rows // 20), 20, 3000).astype(int)
    document = np.repeat(np.arange(len(lengths)), lengths)[:rows]
    topic = rng.integers(TOPICS, size=len(lengths))[document]
    token = rng.choice(VOCABULARY, size=rows, p=share)
    for number, tokens in enumerate(favoured):
        here = np.flatnonzero((topic == number) & (rng.random(rows) < 0.3))
        token[here] = rng.choice(tokens, size=len(here), p=share[tokens] / share[tokens].sum())
    for i in np.flatnonzero(rng.random(rows - 1) < 0.25) + 1:
        token[i] = successor[token[i - 1]]
    return Stream(token, np.arange(rows) % context, document, topic)


def of_token(rng: np.random.Generator, s: Stream, frequency: float) -> np.ndarray:
    """On one to eight tokens, at a share of their occurrences, after some tokens only or in some documents only."""
    size, firing = int(rng.choice([1, 1, 1, 2, 3, 5, 8])), rng.uniform(0.25, 1)
    size = max(size, min(8, math.ceil(40 * frequency)))  # no token is as frequent as the highest frequency
    occurrence = np.bincount(s.token, minlength=VOCABULARY) / len(s.token)
    wanted = frequency / firing / size
    near = np.argsort(np.abs(np.log(occurrence.clip(1e-9) / wanted)), kind="stable")
    on: np.ndarray = np.isin(s.token, rng.choice(near[: 2 * size], size, replace=False))
    before, document = np.roll(s.token, 1), s.document
    of: list[Callable[[], np.ndarray]] = [
        lambda: rng.random(len(on)) < firing,
        lambda: (rng.random(VOCABULARY) < firing)[before],
        lambda: (rng.random(document.max() + 1) < firing)[document],
    ]
    on &= of[rng.integers(3)]()
    return on


def of_position(rng: np.random.Generator, s: Stream, frequency: float) -> np.ndarray:
    """At up to four positions or at a range of them, at a share of their rows that gives the frequency, 5 % or more."""
    context = int(s.position.max()) + 1
    least, most = max(1, math.ceil(frequency * context)), max(1, min(context // 2, int(20 * frequency * context)))
    size = int(rng.integers(least, max(least, most) + 1))
    start = int(rng.integers(context - size + 1))
    chosen = rng.choice(context, size, replace=False) if size <= 4 and rng.random() < 0.5 else np.arange(start, start + size)
    firing = max(0.05, min(1.0, frequency * context / size))
    on: np.ndarray = np.isin(s.position, chosen) & (rng.random(len(s.token)) < firing)
    return on


def of_context(rng: np.random.Generator, s: Stream, frequency: float) -> np.ndarray:
    """In some documents, stretches or topics, after given tokens, or where a hidden state is high."""
    rows = len(s.token)
    kind = int(rng.integers(5))
    if kind < 2:
        place = s.document if kind == 0 else np.arange(rows) // int(rng.integers(5, 40))
        share = rng.uniform(max(frequency, 0.03), 1)
        on: np.ndarray = (rng.random(place.max() + 1) < share)[place] & (rng.random(rows) < frequency / share)
    elif kind == 2:
        on = np.isin(s.topic, rng.choice(TOPICS, rng.integers(1, 4), replace=False))
        on &= rng.random(rows) < frequency / on.mean()
    elif kind == 3:
        occurrence = np.bincount(s.token, minlength=VOCABULARY) / rows
        order = rng.permutation(np.flatnonzero((occurrence > 0) & (occurrence <= frequency)))
        last = int(np.searchsorted(np.cumsum(occurrence[order]), frequency)) + 1
        on = np.isin(np.roll(s.token, int(rng.integers(1, 4))), order[:last])
    else:
        state = np.convolve(rng.standard_normal(rows), np.ones(15) / 15, "same")
        on = state > np.quantile(state, 1 - frequency)
    return on


def planted(seed: int, each: int = 150, rows: int = ROWS) -> Planted:
    """As many latents of each origin, their frequencies log-uniform."""
    rng = np.random.default_rng([11, seed])
    s = stream(rng, rows, int(rng.choice([64, 128, 256])))
    columns, frequencies = [], []
    for draw in (of_token, of_position, of_context):
        count = 0
        while count < each:
            on = draw(rng, s, math.exp(rng.uniform(math.log(LOWEST), math.log(HIGHEST))))
            if on.sum() < LEAST_FIRINGS:
                continue
            on[rng.integers(rows, size=int(rng.choice([0, 0.02, 0.05, 0.1]) * on.sum()))] = True
            strength = rng.lognormal(0, rng.uniform(0.1, 0.7), size=rows)
            columns.append(sparse.csc_array((on * strength)[:, None]))
            frequencies.append(on.mean())
            count += 1
    return Planted(s, sparse.hstack(columns, format="csr"), np.repeat(ORIGINS, each), np.array(frequencies))


def by_variance(found: Origin, latent: int) -> str:
    """The rule without masses."""
    token, position = found.token[latent], found.position[latent]
    if max(token, position, found.both[latent]) < EXPLAINED:
        return ORIGINS[2]
    return ORIGINS[0] if token >= position else ORIGINS[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parts = []
    for seed in range(parser.parse_args().seeds):
        p = planted(seed)
        found = origin(p.code, p.stream.token, p.stream.position, p.stream.document)
        told = [(found.kind(i), by_variance(found, i)) for i in range(len(p.kind))]
        parts.append((p.kind, p.frequency, *np.array(told).T))
    kind, frequency, now, before = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    decade = np.clip(np.floor(np.log10(frequency)), -4, -1).astype(int)
    print("| planted | frequency | latents | told right | by R² alone |\n|---|---|---|---|---|")
    for name in ORIGINS:
        for label, here in [("all", decade < 0), *((f"from 1e{d}", decade == d) for d in range(-4, 0))]:
            chosen = here & (kind == name)
            if chosen.any():
                shares = " | ".join(f"{np.mean(told[chosen] == name):.3f}" for told in (now, before))
                print(f"| {name} | {label} | {chosen.sum()} | {shares} |")


if __name__ == "__main__":
    main()
