"""In which order, and in which process, the images of a set are read.

All samplers yield keys: with the seed of the data set they determine every bit of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from keypoint_detection.errors import InputError


class Key(NamedTuple):
    """What determines a sample of a data set.

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

    All processes have equally many samples: where the images do not divide, the first ones of the order come twice.
    The first epoch may begin in its middle, to go on after an interruption. A pass that has been completed is followed
    by the next epoch, unless `set_epoch` chooses another one.
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
            epoch: the epoch that is read first.
            batches_done: how many batches of that epoch are left out in each process, as they were read before.
            curriculum: epoch and number of a batch in it -> `scale` and `augmented` of its keys; None for the defaults.
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
        """Samples of a whole epoch in this process, whether or not it begins in its middle."""
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
        """For each image of an epoch the one after it in its batch of all processes; in the last place, the first.

        So they do not depend on the number of processes, and with one process they are read already. In batches of
        one, pairs of them count as a batch.
        """
        size = max(2, self.batch_size * self.world)
        following = np.roll(order, -1)
        ends = np.append(np.arange(size, len(order), size), len(order)) - 1
        following[ends] = order[ends // size * size]
        return following

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next pass, also where batches were read ahead. Lightning calls this."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """What the order of an epoch depends on."""
        return {"images": self.n, "seed": self.seed, "batch_size": self.batch_size, "processes": self.world}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Checks that an interrupted epoch can go on in the same order.

        Raises:
            InputError: if anything that the order depends on has changed.
        """
        for name, value in self.state_dict().items():
            if state.get(name, value) != value:
                raise InputError(
                    f"{name}: the interrupted training had {state[name]}, expected the same to go on with it, "
                    f"got {value}; --checkpoint PATH starts a new one from its weights"
                )


class EvaluationSampler(Sampler[list[Key]]):
    """Batches of `range(rank, n, world)` that hold images of one size only, so that no image is padded.

    Predictions then do not depend on what else is in the batch, on the batch size or on the number of processes. A
    process with fewer batches than another one ends with blank batches, because some strategies have to communicate
    once per batch.
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
