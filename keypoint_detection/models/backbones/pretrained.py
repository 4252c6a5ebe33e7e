"""Reads weights of encoders from files, whatever their library named them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keypoint_detection.errors import InputError
from keypoint_detection.wording import first_line

logger = logging.getLogger(__name__)

# Keys under which training scripts store the weights in a checkpoint, and prefixes that they add to names.
_NESTS = ("state_dict", "model_state_dict", "model", "model_ema")
_PREFIXES = ("module.", "backbone.", "encoder.", "model.")


def read_weights(path: str) -> dict[str, Tensor]:
    """Read a file of weights without running code from it.

    Args:
        path: A .safetensors file, or one that `torch.save` wrote.

    Returns:
        Weights by name, in the order of the file (safetensors files are sorted by name).

    Raises:
        InputError: when the file is missing or holds no weights, or when the extra `safetensors` is not installed.
    """
    if not Path(path).is_file():
        raise InputError(f"encoder_weights {path} does not exist")
    read = _reader(path)
    try:
        content = read(path)
    except Exception as error:  # the readers raise many kinds
        raise InputError(
            f"encoder_weights {path} cannot be read as .safetensors or .pth: {first_line(error)}"
        ) from error
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    entries = content.items() if isinstance(content, Mapping) else ()
    weights = {name: value for name, value in entries if isinstance(value, Tensor)}
    if not weights:
        raise InputError(f"encoder_weights {path} holds no weights, expected tensors by name")
    return weights


def _reader(path: str) -> Callable[[str], Any]:
    """The function that reads a file with this name."""
    if not path.endswith(".safetensors"):
        return partial(torch.load, map_location="cpu", weights_only=True)
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(
            f'encoder_weights {path} needs the extra safetensors: pip install "keypoint_detection[safetensors]"'
        ) from error
    return load_file


def copy_weights(encoder: nn.Module, weights: Mapping[str, Tensor], path: str) -> int:
    """Copy weights into an encoder, matched by name, or else by order and shape.

    Libraries name the weights of the same architecture differently. If names do not match but the file starts with the
    same shapes in the same order, it is the same architecture. Additional weights in the file (its classifier) are
    left out.

    Args:
        encoder: Module to copy into.
        weights: Weights by name.
        path: The file that they come from, for the error.

    Returns:
        Number of weights that were copied.

    Raises:
        InputError: when neither names nor shapes match; names a weight that is missing.
    """
    own = {name: value for name, value in encoder.state_dict().items() if not name.endswith("num_batches_tracked")}
    given = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    by_name = {_canonical(name): value for name, value in given.items()}
    found = {name: by_name.get(_canonical(name)) for name in own}
    missing = [name for name, value in found.items() if value is None or value.shape != own[name].shape]
    if missing:
        shapes = [value.shape for value in own.values()]
        in_order = list(given.values())[: len(own)]
        if [value.shape for value in in_order] != shapes:
            raise InputError(
                f"encoder_weights {path} does not fit the encoder: {len(missing)} of {len(own)} weights are missing or "
                f"have another shape, first {missing[0]!r}"
            )
        logger.info("matched the weights of %s by order and shape, since their names differ", path)
        found = dict(zip(own, in_order, strict=True))
    encoder.load_state_dict(found, strict=False)
    return len(found)


def _canonical(name: str) -> str:
    """Reduce a name to a form that is the same for a whole model and for its feature extractor."""
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                name, stripped = name.removeprefix(prefix), True
    return name.replace(".", "_")
