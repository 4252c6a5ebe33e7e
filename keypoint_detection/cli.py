"""The console script `keypoint-detection` and its subcommands."""

from __future__ import annotations

import importlib
import io
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any, TextIO

from keypoint_detection.errors import InputError, want_of_memory
from keypoint_detection.parent import end_with_first_process
from keypoint_detection.version import library_version
from keypoint_detection.wording import did_you_mean

# name -> (what it does, module with a `main(argv) -> int`); imported only when needed, because torch takes seconds
COMMANDS = {
    "train": ("train a detector on a JSON file and a folder of images", "keypoint_detection.train.train"),
    "sweep": ("run a wandb sweep file, without an account", "keypoint_detection.sweep.command"),
    "evaluate": ("measure a checkpoint on a labelled set", "keypoint_detection.evaluation.command"),
    "checkpoint": ("say what a checkpoint holds, or export its weights", "keypoint_detection.checkpoint"),
    "predict": ("find keypoints in images, folders and videos", "keypoint_detection.predict_command"),
    "export": ("write a checkpoint as one ONNX or .pt2 file, image to keypoints", "keypoint_detection.export.command"),
    "check": ("check a data set and draw some of it", "keypoint_detection.check"),
    "convert": ("write a data set in another format or convention", "keypoint_detection.convert"),
}


def usage() -> str:
    """The help text of the command without a subcommand."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (text, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: keypoint-detection COMMAND [--flag value ...]",
            "",
            *lines,
            "",
            "keypoint-detection COMMAND -h says more. keypoint-detection --version prints the version.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        arguments: The command line without the program's name; by default that of the process.

    Returns:
        The exit code: 0 success, 1 partial success, 2 bad input or out of memory, 130 interrupted, 141 if the reader of
        its output is gone.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"keypoint-detection {library_version()}")
        return 0
    if arguments[0] not in COMMANDS:
        hint = did_you_mean(arguments[0], COMMANDS)
        print(f"error: unknown command {arguments[0]!r}{hint}: expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return run(COMMANDS[arguments[0]][1], arguments[1:])


def run(module: str, arguments: Sequence[str]) -> int:
    """Runs the `main` of a module; bad input and lack of memory give one line on standard error and exit code 2.

    If the reader of a pipe is gone, as after `| head`, it ends silently.
    """
    try:
        code = _run(module, arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        gone = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
        if not gone:
            raise
        for stream in gone:  # Python flushes them once more when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141
    return code


def _is_unread(stream: TextIO) -> bool:
    """Whether a stream is a pipe that no longer has a reader."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # reports errors only
        return bool(poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no poll on this system, or the stream is not a file
        return False


def _run(module: str, arguments: Sequence[str]) -> int:
    # Only the first process of each machine logs, as all would say the same. The second variable is SLURM's.
    first = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"
    end_with_first_process(first)
    logging.basicConfig(level=logging.INFO if first else logging.ERROR, format="%(message)s", stream=sys.stderr)
    if not first:
        for reading in ("dataset", "images.attempts"):  # problems with images of its share, which only it knows about
            logging.getLogger(f"keypoint_detection.data.{reading}").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its messages itself
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # channel names may not be encodable for the terminal
    try:
        return _load(module).main(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        want = want_of_memory(error)
        if want is None:
            raise
        print(f"error: {want}: to use less, try a smaller --batch_size or smaller images", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        return 130


def _load(module: str) -> ModuleType:
    """Imports a module. Meanwhile, Ctrl-C ends the process at once: imports swallow it, or fail halfway through."""
    own = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # it is ignored in a shell's background jobs
    if not own or threading.current_thread() is not threading.main_thread():
        return importlib.import_module(module)
    signal.signal(signal.SIGINT, _end_at_once)
    try:
        return importlib.import_module(module)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_at_once(*_: Any) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
