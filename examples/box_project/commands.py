"""The library's commands for checkpoints with a backbone of this project: `python commands.py evaluate --flags`."""

from __future__ import annotations

import sys

import train  # noqa: F401  registers the backbones of this project

from keypoint_detection import cli

if __name__ == "__main__":
    sys.exit(cli.main())
