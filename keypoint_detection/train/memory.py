"""How much memory an image takes, and what to change if there is too little memory for training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from keypoint_detection.errors import InputError, want_of_memory
from keypoint_detection.train.run_folder import RunFolder

# Tensors of the heatmaps' size that the network itself does not keep: the targets, and what the loss computes.
HEATMAPS = 4


def kept_bytes(network: nn.Module, size: tuple[int, int, int]) -> int:
    """Counts what a network and its loss keep of an image for the backward pass, in 32 bits, without running it.

    Args:
        network: The network. It is moved to the device `meta`.
        size: Channels, height and width of the image.

    Returns:
        The number of bytes.
    """
    network.to("meta")
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        heatmaps = network(torch.empty(1, *size, device="meta"))
    return sum(kept.values()) + HEATMAPS * heatmaps.nbytes


def explain_want_of_memory(error: BaseException, config: Mapping[str, Any], folder: RunFolder) -> InputError | None:
    """Explains in one line what needs less memory, and what to resume from; None for other kinds of errors.

    Args:
        error: The error that has ended training.
        config: A value for every flag, with `auto` replaced.
        folder: Folder of the run.

    Returns:
        The error to raise instead.
    """
    want = want_of_memory(error)
    if want is None:
        return None
    batch, needs_less = config["batch_size"], []
    if batch > 1:
        parts = next(number for number in range(2, batch + 1) if batch % number == 0)
        needs_less.append(
            f"a --batch_size below {batch} ({batch // parts} with --accumulate_grad_batches "
            f"{parts * config['accumulate_grad_batches']} for as many images per step)"
        )
    # Validation uses whole images, so smaller crops alone are not enough.
    needs_less.append("a smaller --image_size" + (" and --train_crop_size" if config["train_crop_size"] else ""))
    whole = config["precision"].startswith("32")
    if whole:
        needs_less.append("--precision bf16-mixed")
    *first, final = needs_less
    text = f"{want}: to use less, try {', '.join([*first, f'or {final}' if first else final])}"
    last = folder.checkpoints / "last.ckpt"
    if last.exists():
        text += (
            f"; {last} is intact: resume with the same flags and --resume {folder.path} where there is more memory"
            f"{' or with --precision bf16-mixed' if whole else ''}, or start from its weights with other flags and "
            f"--checkpoint {last}"
        )
    return InputError(text)
