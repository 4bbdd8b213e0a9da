"""Which rows of a table show the same physical particle."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from cryoforum_plugin.particles.particle_set import FloatArray, IntArray

DUPLICATE_DISTANCE_PX = 4.0


def origin_labels(
    *keys: IntArray, micrograph: IntArray | None = None, position_px: FloatArray | None = None
) -> IntArray:
    """Label `(n,)` the rows that agree in any of `keys` `(n,)`, or were picked at the same place.

    position_px : `(n, 2)` coordinates in the micrograph; rows of one `micrograph` (-1 = unknown) closer
    than DUPLICATE_DISTANCE_PX are duplicates of one particle.
    """
    links = np.concatenate([_equal_neighbours(key) for key in keys])
    labels = _connected(links, len(keys[0]))
    if micrograph is None or position_px is None or not np.isfinite(position_px).all():
        return labels
    known = np.flatnonzero(micrograph >= 0)
    if not len(known):
        return labels
    apart = micrograph[known, None] * (2 * DUPLICATE_DISTANCE_PX)  # a third axis keeps micrographs apart
    places = _place_labels(np.concatenate([position_px[known], apart], axis=1))
    if _count(places) < _count(labels[known]) / 2:  # placeholders, not coordinates
        return labels
    return _connected(np.concatenate([links, known[_equal_neighbours(places)]]), len(labels))


def _place_labels(points: FloatArray) -> IntArray:
    """Label `(n,)` points `(n, 3)` that are linked by steps below DUPLICATE_DISTANCE_PX."""
    distinct, inverse = _distinct(points)
    pairs = cKDTree(distinct).query_pairs(DUPLICATE_DISTANCE_PX, output_type="ndarray").reshape(-1, 2)
    return _connected(pairs, len(distinct))[inverse]


def _distinct(points: FloatArray) -> tuple[FloatArray, IntArray]:
    """Distinct points, and the number `(n,)` of each of `points` `(n, 3)` among them."""
    order = np.lexsort(points.T)  # much faster than np.unique with an axis
    ordered = points[order]
    is_new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    inverse = np.empty(len(points), dtype=np.int64)
    inverse[order] = np.cumsum(is_new) - 1
    return ordered[is_new], inverse


def _count(labels: IntArray) -> int:
    """How many different labels there are, none negative and none large."""
    return int(np.count_nonzero(np.bincount(labels)))


def _connected(links: IntArray, n: int) -> IntArray:
    """Label `(n,)` rows by connected component of `links` `(m, 2)`."""
    graph = coo_array((np.ones(len(links), dtype=bool), (links[:, 0], links[:, 1])), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _equal_neighbours(key: IntArray) -> IntArray:
    """Pairs `(m, 2)` of rows that link all rows with equal `key` `(n,)` in a chain."""
    order = np.argsort(key, kind="stable")
    same = np.flatnonzero(key[order][1:] == key[order][:-1])
    return np.stack([order[same], order[same + 1]], axis=1)
