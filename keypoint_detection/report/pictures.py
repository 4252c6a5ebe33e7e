"""Pictures inside a report: previews and heatmaps, small enough that hundreds of them fit into one file.

C channels, H W image, h w heatmap.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

PREVIEW_SIDE = 640  # longest side of a preview in pixels
HEATMAP_SIDE = 200  # longest side of an embedded heatmap in cells
# Longest side and JPEG quality, tried in turn until a preview is small enough. The last pair is accepted in any case.
_ATTEMPTS = ((PREVIEW_SIDE, 85), (PREVIEW_SIDE, 72), (512, 70), (400, 65), (320, 60))


def encode_preview(image: np.ndarray, max_bytes: int | None = None) -> bytes:
    """JPEG of an image, scaled so that its longest side is at most `PREVIEW_SIDE` pixels.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        max_bytes: Size not to exceed, if possible: first the quality is lowered, then the picture gets smaller. None
            means no limit.
    """
    picture = Image.fromarray(image)
    data = b""
    for side, quality in _ATTEMPTS:
        smaller = picture.copy()
        smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        smaller.save(stream, "JPEG", quality=quality, optimize=True)
        data = stream.getvalue()
        if max_bytes is None or len(data) <= max_bytes:
            break
    return data


def heatmap_payload(heatmaps: np.ndarray, extent: tuple[float, float, float, float]) -> dict[str, Any]:
    """Heatmaps as one gray PNG, channels stacked vertically, and the rectangle of the image that they cover.

    Large ones are reduced to the maxima of blocks, which keeps their peaks.

    Args:
        heatmaps: `(C, h, w)` float in [0, 1].
        extent: Left, top, right and bottom of the rectangle that they cover, in pixels of the image.
    """
    channels, height, width = heatmaps.shape
    block = -(-max(height, width) // HEATMAP_SIDE)
    rows, columns = -(-height // block), -(-width // block)
    if block > 1:
        padded = np.zeros((channels, rows * block, columns * block), heatmaps.dtype)
        padded[:, :height, :width] = heatmaps
        heatmaps = padded.reshape(channels, rows, block, columns, block).max((2, 4))
    gray = np.rint(np.nan_to_num(heatmaps, nan=0.0).clip(0, 1) * 255).astype(np.uint8)
    gray[gray < 3] = 0  # invisible noise, which would take up most of the file
    stream = io.BytesIO()
    Image.fromarray(gray.reshape(channels * rows, columns)).save(stream, "PNG")
    left, top, right, bottom = extent
    right = left + (right - left) * columns * block / width
    bottom = top + (bottom - top) * rows * block / height
    return {"source": data_url(stream.getvalue()), "extent": [left, top, right, bottom]}


def data_url(picture: bytes) -> str:
    """`data:` address of a JPEG or PNG."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
