"""Run every benchmark and print one table: `python benchmarks/run.py [NAME ...] [--json FILE]`."""

from collections.abc import Callable

import annotations
import average_precision
import decoding
import export
import freed_memory
import gpu
import inference
import loader
import loader_options
import options
import rendering
import training
import training_step
from harness import Row, main

# A new benchmark is a file with a function `run() -> list[Row]` and a line here.
BENCHMARKS: dict[str, Callable[[], list[Row]]] = {
    "rendering": rendering.run,
    "decoding": decoding.run,
    "average_precision": average_precision.run,
    "annotations": annotations.run,
    "loader": loader.run,
    "loader_options": loader_options.run,
    "training_step": training_step.run,
    "options": options.run,
    "gpu": gpu.run,
    "freed_memory": freed_memory.run,
    "training": training.run,
    "inference": inference.run,
    "export": export.run,
}

if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
