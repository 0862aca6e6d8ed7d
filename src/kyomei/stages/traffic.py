"""What ranks of a mesh send in one training step, and how long that takes: a term for each large sum of `learning/step.py`."""

from __future__ import annotations

from dataclasses import dataclass

NUMBER_BYTES = 4
"""Sums are of float32."""
MACHINE_GPUS = 8
"""GPUs that the faster links of one machine join."""
LINK_SHARE = 0.7
"""Share of a link's stated rate that sums over ranks reach; not measured by us."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank adds to the sums of one step, and the rows that it is sent.

    Attributes:
        reconstructions: of its rows, summed over the ranks with other latents.
        gradients: of its latents, summed over the ranks with other rows.
        rows: streamed from the ranks whose passes made them; 0 where steps read stored rows.
        data, features: parts of the rows and of the latents.
    """

    reconstructions: float
    gradients: float
    rows: float
    data: int
    features: int

    @classmethod
    def of(cls, width: int, dim: int, batch_rows: int, data: int, features: int, streamed: bool = False) -> Traffic:
        """That of an untied dictionary [width, dim] on a mesh of data × features ranks."""
        own_rows = batch_rows / data * dim * NUMBER_BYTES
        reconstructions = own_rows if features > 1 else 0.0
        gradients = 2.0 * width / features * dim * NUMBER_BYTES if data > 1 else 0.0
        return cls(reconstructions, gradients, own_rows if streamed and data * features > 1 else 0.0, data, features)

    @property
    def sent_bytes(self) -> float:
        """What leaves a rank, where sums go around in a ring: each of n ranks sends 2 (n − 1) / n of what it adds."""
        ranks = self.data * self.features
        rings = ((self.reconstructions, self.features), (self.gradients, self.data))
        return sum(2 * (n - 1) / n * added for added, n in rings) + self.rows * (ranks - 1) / ranks

    def seconds(self, machine_gbs: float, network_gbs: float) -> float:
        """How long that takes over links of so many 10⁹ bytes a second, within a machine and between machines."""
        link = machine_gbs if self.data * self.features <= MACHINE_GPUS else network_gbs
        return self.sent_bytes / (LINK_SHARE * link * 1e9)
