"""Divides groups of rows into chunks, so that each chunk can be padded to its largest group within bounded memory.

G groups, n kinds of rows, such as detections and true keypoints.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Maximum number of groups in a chunk, and of rows of each kind including padding, unless it is a single group.
_GROUPS_AT_ONCE = 2**13
_ROWS_AT_ONCE = 2**20
# Groups with fewer rows than this power of two, which are almost all groups, are not separated by size.
_SMALL = 6


def of_similar_size(counts: np.ndarray) -> Iterator[np.ndarray]:
    """Divide groups by their sizes, so that one with very many rows does not make all others be padded to its size.

    Args:
        counts: `(G, n)` number of rows of each kind.

    Yields:
        The indices of the groups of a chunk, ordered by their number of rows of the last kind. Each group is in one
        chunk.
    """
    # A group of a class has fewer than 2 ** size rows of each kind.
    sizes = np.maximum(np.frexp(counts)[1], _SMALL)
    order = counts[:, -1].argsort(kind="stable")
    if (sizes == _SMALL).all():
        classes = [order]
    else:
        order = order[np.lexsort(sizes[order].T)]
        classes = np.split(order, np.flatnonzero((np.diff(sizes[order], axis=0) != 0).any(axis=1)) + 1)
    for members in classes:
        if len(members):
            at_once = min(_GROUPS_AT_ONCE, max(1, _ROWS_AT_ONCE >> int(sizes[members[0]].max())))
            yield from (members[first : first + at_once] for first in range(0, len(members), at_once))


def padded_rows(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rows of all groups: `(G,)` first row and number of rows -> `(N, G)`, -1 where a group has fewer."""
    ranks = np.arange(counts.max())[:, None]
    rows = starts + ranks
    if counts.min() < len(ranks):
        np.copyto(rows, -1, where=ranks >= counts)
    return rows
