"""The version of this library."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def library_version() -> str:
    """Version of this library, `0.0.0` if it runs without being installed."""
    try:
        return version("keypoint_detection")
    except PackageNotFoundError:
        return "0.0.0"
