"""From which score a detection counts, when a detector is used.

C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Where no validation has found a channel's best score, nothing better is known.
FALLBACK_THRESHOLD = 0.1
# Scores of the same image differ by less, as a share of them, between batches, runtimes and machines.
ROUNDING = 1e-5
# The same on a device other than the CPU, which may convolve with 10 bits of mantissa (TF32).
ROUNDING_ON_DEVICE = 2e-3


def rounding_of(device: str) -> float:
    """Share by which a score may differ on a kind of device, such as `cpu`, from that of another machine."""
    return ROUNDING if device == "cpu" else ROUNDING_ON_DEVICE


def usable_thresholds(stored: Sequence[float] | np.ndarray, rounding: float = ROUNDING) -> np.ndarray:
    """Score thresholds to predict with, from those that a checkpoint holds.

    Some are scores of detections that are to count, so all are lowered by as much as rounding may change them.

    Args:
        stored: `(C,)`, NaN where none is known.
        rounding: Share of a score that rounding may change.

    Returns:
        `(C,)` float32, `FALLBACK_THRESHOLD` where none is known.
    """
    own = np.asarray(stored, dtype=np.float32)
    return np.where(np.isnan(own), FALLBACK_THRESHOLD, own * (1 - rounding)).astype(np.float32)
