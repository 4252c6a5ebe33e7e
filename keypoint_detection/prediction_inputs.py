"""Finds the images and videos to predict from the paths that the user gave."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from keypoint_detection.errors import InputError
from keypoint_detection.files import check_given

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
VIDEO_ENDINGS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}


def find_inputs(paths: Sequence[str], overlays: str | None = None) -> tuple[list[Path], list[str]]:
    """Expands files, folders (recursively, but without following links to folders) and globs to images and videos.

    Args:
        paths: Paths as the user typed them.
        overlays: Folder for pictures with keypoints drawn in; it is left out if it is inside one of the paths.

    Returns:
        Each file once, in the order of the paths and by name within a folder; and one line of text for each path that
        leads to nothing.

    Raises:
        InputError: If all paths lead to nothing, or `overlays` is an empty text.
    """
    if overlays is not None:
        check_given(overlays, "--overlays", "a folder")
    found: dict[Path, Path] = {}
    wrong: list[str] = []
    drawn = None if overlays is None else absolute(Path(overlays))
    for text in paths:
        path = Path(text)
        if len(paths) > 1 and drawn == absolute(path):  # e.g. a match of `images/*`
            continue
        try:
            candidates = _expand(text)
        except OSError as error:  # e.g. the name is too long
            wrong.append(f"{text}: cannot be read ({error.strerror})")
            continue
        candidates = [file for file in candidates if drawn not in absolute(file).parents] or candidates
        if not candidates and not glob.has_magic(text) and not (text and path.exists()):
            wrong.append(f"{text or repr(text)}: no such file or folder")
        elif not candidates:
            wrong.append(f"{text}: expected an image, a video, a folder with some, or a glob that matches some")
        for file in candidates:
            found.setdefault(absolute(file), file)
    if wrong and not found:
        others = f"; none of the {len(paths)} paths leads to an image or a video" if len(paths) > 1 else ""
        raise InputError(wrong[0] + others)
    if not found:
        raise InputError(f"{' '.join(paths)}: expected images outside the folder of --overlays")
    return list(found.values()), wrong


def _expand(text: str) -> list[Path]:
    """The images and videos that a path, a folder or a glob leads to."""
    path = Path(text)
    if not text:  # e.g. an unset shell variable; as a path, it would be the current folder
        return []
    if path.is_dir():
        return [file for file in sorted(path.rglob("*")) if _is_media(file)]
    if path.exists():
        return [path]
    if not glob.has_magic(text):
        return []
    matches = glob.glob(text, recursive=True)  # noqa: PTH207  Path.glob refuses absolute patterns
    return [file for file in map(Path, sorted(matches)) if _is_media(file)]


def absolute(path: Path) -> Path:
    """The absolute path without `..`; links are kept, except those before a `..`."""
    if path.name == "..":
        return path.resolve()
    return path.parent.resolve() / path.name if ".." in path.parts else path.absolute()


def _is_media(path: Path) -> bool:
    """Whether a file is an image or a video by its name; a broken link counts, so that it is reported as unreadable."""
    is_named = path.suffix.lower() in IMAGE_ENDINGS | VIDEO_ENDINGS
    return is_named and (path.is_file() or (path.is_symlink() and not path.exists()))


def is_video(path: Path) -> bool:
    """Whether a file is a video, by its file name extension."""
    return path.suffix.lower() in VIDEO_ENDINGS


def common_folder(paths: Sequence[Path]) -> Path:
    """The deepest folder that holds all files."""
    return Path(os.path.commonpath([absolute(path).parent for path in paths]))
