"""Labels: time and memory of loading 10^3 to 10^6 images x 4 channels x 4 keypoints, and what 8 workers add.

Each measurement runs in a process of its own. Memory is proportional (PSS): a page that n processes share counts as 1/n
in each of them.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from harness import Row, main

from keypoint_detection.data.annotations import Annotations
from keypoint_detection.data.formats import read_annotations

COUNTS = (1_000, 10_000, 100_000, 1_000_000)
CHANNELS, KEYPOINTS = 4, 4
WORKERS = 8
BASELINE_COUNT = 100_000


def write_file(path: Path, count: int) -> None:
    """Write a data set of `count` images, with as many digits as a renderer writes."""
    rng = random.Random(0)

    def channel(number: int) -> str:
        points = [[rng.random(), rng.random()] for _ in range(KEYPOINTS)]
        return f'"channel_{number}": {json.dumps(points)}'

    bodies = [", ".join(map(channel, range(CHANNELS))) for _ in range(1000)]
    with path.open("w", encoding="utf-8") as file:
        file.write('{"dataset": [')
        for number in range(count):
            start = ", " if number else ""
            file.write(f'{start}{{"image_path": "images/{number:07d}.jpg", {bodies[number % len(bodies)]}}}')
        file.write("]}")


def proportional_memory() -> float:
    """Megabytes of this process, with its share of shared pages."""
    return megabytes("smaps_rollup", "Pss")


def megabytes(file: str, field: str) -> float:
    """Megabytes in one field of a file of this process in `/proc`."""
    lines = Path("/proc/self", file).read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def use(annotations: Annotations, ready: Connection, measure: Connection) -> None:
    """A worker: reads the labels of the images as a loader does, then waits until all other workers have too."""
    torch.set_num_threads(1)  # As in the workers of torch's loader; threads do not survive a fork.
    for index in range(0, len(annotations), max(1, len(annotations) // 20_000)):
        annotations.keypoints(index, 640, 480)
        annotations.path(index)
    float(annotations.xy.sum() + annotations.offsets.sum() + annotations.names.characters.sum())
    ready.send(True)
    measure.recv()
    ready.send(proportional_memory())
    measure.recv()


def memory_of_workers(annotations: Annotations, method: str) -> float:
    """Megabytes of this process and its workers together."""
    context = multiprocessing.get_context(method)
    pipes = [(context.Pipe(), context.Pipe()) for _ in range(WORKERS)]
    workers = [context.Process(target=use, args=(annotations, a[1], b[1])) for a, b in pipes]
    for worker in workers:
        worker.start()
    for ready, _ in pipes:
        ready[0].recv()
    for _, measure in pipes:
        measure[0].send(True)
    total = sum(ready[0].recv() for ready, _ in pipes) + proportional_memory()
    for _, measure in pipes:
        measure[0].send(True)
    for worker in workers:
        worker.join()
    return total


def measure(how: str, path: Path) -> dict[str, float]:
    """Load a file and measure it; runs in a process of its own."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # Reset the peak, which includes the imports.
    before, resident_before = proportional_memory(), megabytes("status", "VmRSS")
    start, start_of_work = time.perf_counter(), time.process_time()
    data = read_annotations(path, path.parent) if how == "library" else json.loads(path.read_text(encoding="utf-8"))
    seconds, busy = time.perf_counter() - start, time.process_time() - start_of_work
    gc.collect()
    result = {
        "seconds": seconds,
        "busy": busy,
        "kept": proportional_memory() - before,
        "peak": megabytes("status", "VmHWM") - resident_before,
    }
    if how == "library":
        result |= {method: memory_of_workers(data, method) for method in ("fork", "spawn")}
    return result


def measured(how: str, path: Path) -> dict[str, float]:
    """`measure` in a new process."""
    command = [sys.executable, __file__, "--measure", how, str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def described(result: dict[str, float]) -> str:
    """Processor time and memory of a measurement."""
    return f"{result['busy']:.2f} s busy, {result['kept']:.0f} MB kept, {result['peak']:.0f} MB at most"


def run() -> list[Row]:
    rows: list[Row] = []
    base: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in COUNTS:
            path = Path(folder) / f"{count}.json"
            write_file(path, count)
            result = measured("library", path)
            base = base or result
            added = ", ".join(f"{how} {result[how] - base[how]:.0f} MB" for how in ("fork", "spawn"))
            note = described(result)
            note += f"; with {WORKERS} workers more than at {COUNTS[0]} images: {added}" if count > COUNTS[0] else ""
            row = Row("labels", f"{count} images", 1000 * result["seconds"], note=note)
            if count == BASELINE_COUNT:
                plain = measured("plain", path)
                row = Row(
                    "labels",
                    row.work,
                    row.milliseconds,
                    "json.loads into lists and dictionaries",
                    1000 * plain["seconds"],
                    note=f"{note}; baseline {described(plain)}",
                )
            rows.append(row)
            path.unlink()
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]))))
    else:
        main({"annotations": run}, __doc__)
