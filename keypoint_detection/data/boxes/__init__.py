"""Rendered cardboard boxes with labelled corners: as much data as you like for trying the library.

`python -m keypoint_detection.data.boxes --count 1000 --image_size 256 --output DIR --seed 0` writes images and an
`annotations.json`. Keypoints are the exact projections of the corners; hidden ones are not labelled.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from keypoint_detection.data.boxes.renderer import render
from keypoint_detection.data.boxes.scene import Scene, sample_scene
from keypoint_detection.data.geometry import parse_image_size
from keypoint_detection.errors import InputError
from keypoint_detection.files import check_given, make_folder, write_atomic, writing
from keypoint_detection.wording import counted

IMAGES_PER_WORKER = 10
# Sides of an image in pixels; larger ones take more memory than most machines have.
SMALLEST_SIDE, LARGEST_SIDE = 16, 4096

__all__ = ["generate", "label", "sample"]


def sample(
    index: int,
    image_size: tuple[int, int],
    seed: int = 0,
    negatives: float = 0.0,
    max_boxes: int = 1,
    clutter: float = 1.0,
    supersampling: int = 2,
) -> tuple[np.ndarray, Scene]:
    """Renders one image; its content depends on nothing but the arguments.

    Args:
        index: Number of the image.
        image_size: Height and width in pixels.
        seed: Seed of the data set.
        negatives: Share of images without any box.
        max_boxes: Largest number of boxes in an image.
        clutter: Amount of other things in the scene, 1 for the usual amount.
        supersampling: Rays per pixel and direction.

    Returns:
        The image `(H, W, 3)` uint8 and the scene that it shows.
    """
    rng = np.random.default_rng([seed, index])
    boxes = 0 if rng.random() < negatives else int(rng.integers(1, max_boxes + 1))
    scene = sample_scene(rng, image_size, boxes, clutter)
    return render(scene, supersampling, rng), scene


def label(scene: Scene) -> dict[str, list[list[float]]]:
    """The visible keypoints, as the JSON format expects them.

    Args:
        scene: The scene.

    Returns:
        For each channel a list of `[u, v, depth]`: u to the right and v up from the bottom left, both in [0, 1]
        (Blender's convention), and depth in metres along the optical axis.
    """
    height, width = scene.camera.size
    return {
        name: [[round(x / width, 7), round(1 - y / height, 7), round(depth, 5)] for x, y, depth in points.tolist()]
        for name, points in scene.visible_keypoints().items()
    }


def _write(index: int, folder: Path, **arguments: object) -> dict[str, object]:
    """Renders image `index` into a folder and returns its entry of the JSON file."""
    image, scene = sample(index, **arguments)
    name = f"images/{index:06d}.png"
    with writing(f"--output {folder}"):
        Image.fromarray(image).save(folder / name)
    return {"image_path": name, **label(scene)}


def generate(
    output: str | os.PathLike,
    count: int = 1000,
    image_size: int | str | tuple[int, int] = 256,
    seed: int = 0,
    negatives: float = 0.0,
    max_boxes: int = 1,
    clutter: float = 1.0,
    supersampling: int = 2,
    workers: int = -1,
) -> Path:
    """Renders cardboard boxes with labelled corners. The same arguments give the same files.

    Args:
        output: Folder to write to, with `annotations.json` and `images/`.
        count: Number of images.
        image_size: Side length of the images in pixels, or "height width".
        seed: Each image depends only on the seed and its number, so a larger count only adds images.
        negatives: Share of images without any box, 0 to 1.
        max_boxes: Maximum number of boxes in an image.
        clutter: Amount of other things in the scene: 0 for none, 1 for the usual amount.
        supersampling: Rays per pixel and direction; more give smoother edges and take longer.
        workers: Processes to render with; 0 renders in this process, -1 starts one per core.

    Returns:
        The path of `annotations.json`.

    Raises:
        InputError: If an argument is out of range, or the folder cannot be written to or holds images of a larger run.
    """
    size = parse_size(image_size)
    for name, value, low, high in (
        ("count", count, 1, 10**9),
        ("seed", seed, 0, 10**18),
        ("negatives", negatives, 0, 1),
        ("max_boxes", max_boxes, 1, 20),
        ("clutter", clutter, 0, 10),
        ("supersampling", supersampling, 1, 16),
        ("workers", workers, -1, 1024),
    ):
        if not low <= value <= high:
            raise InputError(f"{name} is {value}, expected a number from {low} to {high}")
    folder = _prepare_folder(output, count)
    write = partial(
        _write,
        folder=folder,
        image_size=size,
        seed=seed,
        negatives=negatives,
        max_boxes=max_boxes,
        clutter=clutter,
        supersampling=supersampling,
    )
    # A process takes seconds to start, so each one should have several images to render.
    workers = min(count // IMAGES_PER_WORKER, (os.cpu_count() or 1) if workers == -1 else workers)
    with _pool(workers) if workers > 1 else nullcontext() as pool:
        entries: Iterator[dict] = pool.map(write, range(count), chunksize=4) if pool else map(write, range(count))
        dataset = list(tqdm(entries, "rendering boxes", total=count, unit="image", disable=None))
        lines = ",\n".join(json.dumps(entry) for entry in dataset)
        content = f'{{"coordinates": "blender", "dataset": [\n{lines}\n]}}\n'
        with writing(f"--output {output}"):
            return write_atomic(folder / "annotations.json", content)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that render; if this process is interrupted, they finish their current images and stop."""
    # Ctrl-C reaches them too, but only this process should report it.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_folder(output: str | os.PathLike, count: int) -> Path:
    """Creates the folder of a data set of `count` images; refuses one that holds images of a larger data set."""
    check_given(os.fspath(output), "--output", "a folder")
    folder = Path(output)
    make_folder(folder / "images", f"--output {output}")
    numbered = [path for path in (folder / "images").iterdir() if re.fullmatch(r"\d{6,}\.png", path.name)]
    others = sorted(path.name for path in numbered if int(path.stem) >= count)
    if others:
        raise InputError(
            f"--output {output}: its folder images holds {counted(len(others), 'image')} of a larger data set, such as "
            f"{others[0]}; expected another folder, or one without them"
        )
    return folder


def parse_size(image_size: int | str | tuple[int, int]) -> tuple[int, int]:
    """Reads the size of an image.

    Args:
        image_size: Side in pixels, "height width", or both as a pair.

    Returns:
        Height and width.

    Raises:
        InputError: If it is none of these, or a side is not between `SMALLEST_SIDE` and `LARGEST_SIDE`.
    """
    size = parse_image_size(image_size)
    if min(size) < SMALLEST_SIDE or max(size) > LARGEST_SIDE:
        raise InputError(
            f'image_size is {image_size!r}, expected e.g. "256" or "240 320" (height width), each from '
            f"{SMALLEST_SIDE} to {LARGEST_SIDE}"
        )
    return size
