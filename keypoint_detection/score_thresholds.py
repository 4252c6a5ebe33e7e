"""The scores from which a detection counts in prediction.

C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# For a channel whose best threshold no validation has found.
FALLBACK_THRESHOLD = 0.1
# Upper bound of the relative difference between scores of the same image in other batches, runtimes or machines.
ROUNDING = 1e-5
# The same for devices other than the CPU, which may convolve with a 10-bit mantissa (TF32).
ROUNDING_ON_DEVICE = 2e-3


def rounding_of(device: str) -> float:
    """Relative difference that a score on a kind of device, such as `cpu`, may have from that on another machine."""
    return ROUNDING if device == "cpu" else ROUNDING_ON_DEVICE


def usable_thresholds(stored: Sequence[float] | np.ndarray, rounding: float = ROUNDING) -> np.ndarray:
    """Score thresholds for prediction, from those that a checkpoint holds.

    Some equal the score of a detection that must count, so all are lowered by as much as rounding may change a score.

    Args:
        stored: `(C,)`, NaN if unknown.
        rounding: Relative difference that rounding may make to a score.

    Returns:
        `(C,)` float32, `FALLBACK_THRESHOLD` if unknown.
    """
    own = np.asarray(stored, dtype=np.float32)
    return np.where(np.isnan(own), FALLBACK_THRESHOLD, own * (1 - rounding)).astype(np.float32)
