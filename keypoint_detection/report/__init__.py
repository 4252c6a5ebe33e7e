"""`report.html`: one file that shows in any browser, offline, how good a detector is and where it fails.

Fill a `ReportData` and call `write_report`. The page itself is in `template/`.
"""

from __future__ import annotations

from keypoint_detection.report.data import EPOCH_AXIS, ReportData, ReportImage, run_information
from keypoint_detection.report.measured import worst_images
from keypoint_detection.report.page import build_report, write_report

__all__ = [
    "EPOCH_AXIS",
    "ReportData",
    "ReportImage",
    "build_report",
    "run_information",
    "worst_images",
    "write_report",
]
