"""Divides groups of rows, so that each division can be padded to its largest group within bounded memory.

G groups, n kinds of rows, such as detections and true keypoints.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Groups, and rows of each kind with what is padded, that a division holds at most, unless it is a single group.
_GROUPS_AT_ONCE = 2**13
_ROWS_AT_ONCE = 2**20
# Groups with fewer rows than this power of two, nearly all that there are, stay together.
_SMALL = 6


def of_similar_size(counts: np.ndarray) -> Iterator[np.ndarray]:
    """Divide groups by their sizes: one with very many rows is not to make room for as many in all others.

    Args:
        counts: `(G, n)` number of rows of each kind.

    Yields:
        The indices of some groups, in ascending order of the last kind of rows; each group is in one division.
    """
    # A group of a class has less than 2 ** size rows of each kind.
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
