"""Runs every benchmark and prints one table: `python benchmarks/run.py [NAME ...] [--json FILE]`."""

from __future__ import annotations

from collections.abc import Callable

import average_precision
import decoding
import rendering
from harness import Row, main

# A new benchmark is a file with a function `run() -> list[Row]` and a line here.
BENCHMARKS: dict[str, Callable[[], list[Row]]] = {
    "rendering": rendering.run,
    "decoding": decoding.run,
    "average_precision": average_precision.run,
}

if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
