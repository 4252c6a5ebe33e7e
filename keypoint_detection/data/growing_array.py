"""An array that grows in place, for columns whose length is not known in advance."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike


class GrowingArray:
    """A one-dimensional array to append values to; it is one block of memory at any time.

    Args:
        dtype: the type of its values.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self._values = np.empty(1024, dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def extend(self, values: np.ndarray) -> None:
        """Appends `values`, `(n,)`."""
        end = self._length + len(values)
        if end > len(self._values):
            # No other array refers to the block, so it may move.
            self._values.resize(max(end, len(self._values) * 3 // 2), refcheck=False)
        self._values[self._length : end] = values
        self._length = end

    def finish(self) -> np.ndarray:
        """Returns the array at its exact length; nothing may be appended after that."""
        self._values.resize(self._length, refcheck=False)
        return self._values
