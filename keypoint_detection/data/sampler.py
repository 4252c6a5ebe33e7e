"""The order in which the images of a data set are read, and by which process.

All samplers yield keys. A key and the seed of the data set determine every bit of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from keypoint_detection.errors import InputError


class Key(NamedTuple):
    """Determines a sample of a data set.

    Attributes:
        index: number of the image.
        epoch: number of the pass over the images, or `BLANK`.
        scale: factor of the size of training images, in (0, 1].
        augmented: whether training images are changed at random.
        partner: number of the image that training images may be mixed with; None for none.
    """

    index: int
    epoch: int = 0
    scale: float = 1.0
    augmented: bool = True
    partner: int | None = None


# The epoch of keys whose sample is a blank that counts neither in loss nor in metrics.
BLANK = -1


class TrainingSampler(Sampler[Key]):
    """A new order for every epoch, which is a pure function of seed and epoch; each process takes its share.

    All processes get the same number of samples: if the images do not divide evenly, the first ones of the order come
    twice. The first epoch may start in the middle, to resume after an interruption. A completed pass is followed by the
    next epoch, unless `set_epoch` chooses another one.
    """

    def __init__(
        self,
        n: int,
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        epoch: int = 0,
        batches_done: int = 0,
        curriculum: Callable[[int, int], tuple[float, bool]] | None = None,
    ) -> None:
        """Creates the sampler.

        Args:
            n: number of images.
            seed: seed of the order.
            batch_size: images per batch and process.
            rank: number of this process.
            world: number of processes.
            epoch: the first epoch.
            batches_done: how many batches of that epoch each process skips, because they were trained on before.
            curriculum: (epoch, number of a batch in it) -> (`scale`, `augmented`) of its keys; None for the defaults.
        """
        self.n = n
        self.seed = seed
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.epoch = self.first_epoch = epoch
        self.batches_done = batches_done
        self.curriculum = curriculum

    def __len__(self) -> int:
        """Samples of a whole epoch in this process, even if it starts in the middle."""
        return -(-self.n // self.world)

    def __iter__(self) -> Iterator[Key]:
        epoch = self.epoch
        order = np.random.default_rng((self.seed, epoch)).permutation(self.n)
        order = np.resize(order, len(self) * self.world)
        partners = self._partners(order)[self.rank :: self.world]
        order = order[self.rank :: self.world]
        begin = self.batches_done if epoch == self.first_epoch else 0
        for batch in range(begin, -(-len(self) // self.batch_size)):
            scale, augmented = (1.0, True) if self.curriculum is None else self.curriculum(epoch, batch)
            images = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            for index, partner in zip(order[images].tolist(), partners[images].tolist(), strict=True):
                yield Key(index, epoch, scale, augmented, partner)
        if self.epoch == epoch:  # Lightning may have chosen another one since.
            self.epoch += 1

    def _partners(self, order: np.ndarray) -> np.ndarray:
        """For each image of an epoch, the next one in its global batch (of all processes); for the last, the first.

        Partners therefore do not depend on how a global batch is divided among processes; with one process, they are
        read anyway. If a global batch has only one image, two batches count as one.
        """
        size = max(2, self.batch_size * self.world)
        following = np.roll(order, -1)
        ends = np.append(np.arange(size, len(order), size), len(order)) - 1
        following[ends] = order[ends // size * size]
        return following

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next pass, even if batches were read ahead. Called by Lightning."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """What the order of an epoch depends on."""
        return {"images": self.n, "seed": self.seed, "batch_size": self.batch_size, "processes": self.world}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Checks that an interrupted epoch can be resumed in the same order.

        Raises:
            InputError: if anything that the order depends on has changed.
        """
        for name, value in self.state_dict().items():
            if state.get(name, value) != value:
                raise InputError(
                    f"{name}: the interrupted training run had {state[name]}, expected the same to resume it, "
                    f"got {value}; --checkpoint PATH starts a new run from its weights"
                )


class EvaluationSampler(Sampler[list[Key]]):
    """Batches of `range(rank, n, world)` that hold images of one size only, so that no image is padded.

    Predictions then depend neither on what else is in the batch nor on the batch size or the number of processes. A
    process with fewer batches than another one ends with blank batches, because some strategies communicate once per
    batch.
    """

    def __init__(self, sizes: np.ndarray, batch_size: int, rank: int = 0, world: int = 1) -> None:
        """Creates the sampler.

        Args:
            sizes: `(N, 2)` int size of each image as it enters the network.
            batch_size: images per batch and process.
            rank: number of this process.
            world: number of processes.
        """
        shares = [_batches_of_one_size(sizes, range(other, len(sizes), world), batch_size) for other in range(world)]
        missing = max(map(len, shares)) - len(shares[rank])
        self.batches: list[list[Key]] = [[Key(index) for index in batch] for batch in shares[rank]]
        self.batches += [[Key(rank % len(sizes), BLANK)]] * missing

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)


def _batches_of_one_size(sizes: np.ndarray, indices: range, batch_size: int) -> list[list[int]]:
    """Splits images into batches of one size, in the order of the first image of each size."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, size in zip(indices, sizes[indices.start :: indices.step].tolist(), strict=True):
        groups.setdefault(tuple(size), []).append(index)
    return [
        group[start : start + batch_size] for group in groups.values() for start in range(0, len(group), batch_size)
    ]
