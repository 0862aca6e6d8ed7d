"""How large everything is that a recipe asks for: rows, matrices, memory here and on a GPU, room on the disk."""

from __future__ import annotations

from dataclasses import dataclass

from kyomei.config import Recipe
from kyomei.dictionary.kernels import SCORES_PER_BLOCK_ELSEWHERE
from kyomei.learning.fit import starts_from_resonance
from kyomei.learning.halves import held_bytes
from kyomei.learning.least_squares import GRAM_ADVANTAGE
from kyomei.learning.narrowing import widths
from kyomei.learning.placement import ANCHOR_ROWS, aimed_l0, selects
from kyomei.learning.resonance import CLARITY_ROWS
from kyomei.source.shards import RELEASE_BYTES
from kyomei.stages.hardware import LIBRARY_BYTES
from kyomei.stages.room import Room
from kyomei.stages.traffic import Traffic

NUM_NULLS = 2
TEXT_BYTES = 190e6
"""What text, tokens and a harvest's shards leave resident: what was missing, 184 to 211 MB, on three settings
(docs/results.md)."""


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    recipe: Recipe
    tokens: int
    dim: int
    width: int
    rows: int

    @classmethod
    def of(cls, recipe: Recipe, dim: int) -> Size:
        source = recipe.source
        rows = int(source.num_tokens * (1 - source.evidence_share) / source.replicas)
        # Without a width, resonance decides; four times the dimension is what it usually comes to.
        return cls(recipe, source.num_tokens, dim, recipe.dictionary.width or 4 * dim, rows)

    @property
    def evidence_rows(self) -> int:
        """Rows that no replica sees."""
        return int(self.tokens * self.recipe.source.evidence_share)

    @property
    def first_widths(self) -> list[int]:
        """Of the parts in which the dictionary is learnt before latents are placed."""
        placing = self.recipe.mechanism.placing
        return widths(self.width, self.dim, placing.widest) if placing.first_share else [self.width]

    @property
    def widest(self) -> int:
        """The width that training begins with."""
        return self.first_widths[0]

    def traffic(self, data: int, features: int, width: int) -> Traffic:
        """What a rank sends in a step at some width."""
        streamed = self.recipe.source.streamed_tokens > 0
        return Traffic.of(width, self.dim, self.recipe.train.batch_rows, data, features, streamed)

    @property
    def weights_bytes(self) -> float:
        """Encoder and decoder, their gradients and two moments of each, at the largest width."""
        moment = 4 if self.recipe.train.moments == "float32" else 2
        return 2.0 * self.first_widths[0] * self.dim * (4 + 4 + 2 * moment)

    @property
    def working_bytes(self) -> float:
        """Beyond the libraries and the language model: the largest of the parts of the work, and mapped shards."""
        sample = min(self.rows, ANCHOR_ROWS)
        l0 = aimed_l0(self.recipe, self.width)
        batch = self.recipe.train.batch_rows
        # Scores of a warm step, their positive part, its k largest as values, indices and mask.
        stepping = self.weights_bytes + batch * self.first_widths[0] * 10.0
        codes = sample * l0 * 60.0
        placed = self.weights_bytes * self.width / self.first_widths[0]
        # Pairs of latents are held where their Gram matrix is the cheaper way.
        pairs = self.width**2 * 24.0 if self.width <= GRAM_ADVANTAGE * sample * l0 / self.width else 0.0
        placing = placed + sample * (self.dim * 4 * 4 + 256 * 4 * 1.5) + codes + pairs
        judged, held = min(self.rows, CLARITY_ROWS), held_bytes(self.rows, self.dim)
        finding = held + judged * 256 * 4 * 1.5 + (0 if held and judged == self.rows else judged * self.dim * 4 * 3)
        mapped = min(RELEASE_BYTES, self.rows * self.dim * 4)
        phases = (stepping, placing, finding) if starts_from_resonance(self.recipe) else (stepping,)
        return max(phases) + mapped + TEXT_BYTES

    def gpu_bytes(self, data: int, features: int) -> float:
        """A GPU's part of weights and moments, of a matrix as products take it, and of a batch's scores."""
        recipe, width = self.recipe, self.first_widths[0]
        number = 2 if recipe.dtype == "bfloat16" else 4
        copied = width * self.dim * 2 if number == 2 else 0
        scores = recipe.train.batch_rows / data * width / features
        if not (selects(recipe) or starts_from_resonance(recipe)):  # those compare all scores of a row, others some at a time
            scores = min(scores, SCORES_PER_BLOCK_ELSEWHERE)
        return (self.weights_bytes + copied) / features + scores * number + LIBRARY_BYTES

    @property
    def room(self) -> Room:
        """On the disk, and at an address."""
        source, all_widths = self.recipe.source, [*self.first_widths, self.width]
        return Room.of(source, (self.tokens, self.dim), self.weights_bytes, all_widths, source.replicas + NUM_NULLS)
