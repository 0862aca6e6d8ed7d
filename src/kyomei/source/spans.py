"""Which characters of a document each token shows, so that together they show every character once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

_WHITESPACE = np.array([c for c in range(0x3001) if chr(c).isspace()], dtype=np.uint32)


def tiling_starts(
    text: str, start: Int64[np.ndarray, " tokens"], end: Int64[np.ndarray, " tokens"]
) -> Int64[np.ndarray, " tokens"]:
    """First character of each token once every character belongs to one token: token i shows [starts[i], starts[i + 1]).

    Tokenizers report spans that overlap (bytes of one emoji, a ligature that a normaliser took apart) or leave gaps (trimmed
    spaces, accents that a normaliser drops). A shared character goes to the first of its tokens; the others show nothing. In
    a gap, what stands before the first whitespace belongs to the token before it, the rest to the token after it.

    Args:
        text: what was tokenized.
        start, end: the span of each token as its tokenizer reports it, in characters.
    """
    starts = np.minimum(np.maximum.accumulate(start), len(text))
    if not len(starts):
        return starts
    reached = np.minimum(np.maximum.accumulate(np.maximum(end, starts))[:-1], len(text))
    following = starts[1:]
    if (following > reached).any():
        characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        places = np.where(np.isin(characters, _WHITESPACE), np.arange(len(text)), len(text))
        next_space = np.append(np.minimum.accumulate(places[::-1])[::-1], len(text))
        following = np.minimum(following, next_space[reached])
    starts[1:] = np.maximum(reached, following)
    starts[0] = 0
    return starts
