"""A map of the latents: a place in the plane for each, near those whose directions are near."""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float64, Int64

from kyomei.views.index.relations import Neighbours

NEIGHBOURS = 30
"""Near directions that the map keeps together."""
FEWEST = 12
"""With fewer latents there is nothing to lay out: they stand in a row."""
FEW = 4096
"""Up to so many, forces are summed over a tree; beyond, on a grid, which costs the same however many there are."""


def layout(neighbours: Neighbours, numbers: Int64[np.ndarray, " live"], seed: int) -> Float64[np.ndarray, "live 2"]:
    """Places of live latents, by t-SNE on their nearest directions; the same for the same seed.

    Args:
        neighbours: of each live latent.
        numbers: of the live latents, ascending.
        seed: of the start.
    """
    live, count = neighbours.latent.shape
    if live < FEWEST:
        return np.stack([np.arange(live, dtype=np.float64), np.zeros(live)], axis=1)
    from openTSNE import TSNEEmbedding, affinity, nearest_neighbors

    # Chord length between unit vectors.
    distance = np.sqrt(np.maximum(2 - 2 * neighbours.cosine.astype(np.float64), 0))
    index = nearest_neighbors.PrecomputedNeighbors(np.searchsorted(numbers, neighbours.latent), distance)
    near = affinity.PerplexityBasedNN(perplexity=count / 3, knn_index=index)
    start = np.random.default_rng([seed, live]).normal(0, 1e-4, (live, 2))
    method = "bh" if live <= FEW else "fft"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        embedding = TSNEEmbedding(start, near, random_state=seed, n_jobs=1, negative_gradient_method=method, ints_in_interval=2)
        embedding.optimize(200, exaggeration=12, momentum=0.5, inplace=True)
        embedding.optimize(300, exaggeration=1, momentum=0.8, inplace=True)
    return np.asarray(embedding, dtype=np.float64)
