import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keypoint_detection.data.sampler import BLANK, EvaluationSampler, Key, TrainingSampler
from keypoint_detection.errors import InputError


@given(st.integers(1, 50), st.integers(1, 5), st.integers(0, 3), st.integers(0, 2**40))
def test_training_covers_every_image_and_all_processes_have_equally_many(n, world, epoch, seed):
    samplers = [
        TrainingSampler(n, seed=seed, batch_size=2, rank=rank, world=world, epoch=epoch) for rank in range(world)
    ]
    shares = [list(sampler) for sampler in samplers]
    assert [len(share) for share in shares] == [len(sampler) for sampler in samplers]
    assert len({len(share) for share in shares}) == 1
    keys = [key for share in shares for key in share]
    assert {key.index for key in keys} == set(range(n))
    assert {key.epoch for key in keys} == {epoch}
    assert {key.scale for key in keys} == {1.0}
    assert len(keys) - n < world


def test_order_depends_on_seed_and_epoch_only():
    def order(seed, epoch):
        return [key.index for key in TrainingSampler(100, seed=seed, batch_size=4, epoch=epoch)]

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_what_its_images_are_like_is_asked_for_once_per_batch():
    asked = []

    def curriculum(epoch, batch):
        asked.append((epoch, batch))
        return 1 / (1 + batch), batch < 2

    keys = list(TrainingSampler(5, seed=0, batch_size=2, epoch=2, batches_done=1, curriculum=curriculum))
    assert asked == [(2, 1), (2, 2)]
    assert [key.scale for key in keys] == [1 / 2, 1 / 2, 1 / 3]
    assert [key.augmented for key in keys] == [True, True, False]


def test_an_epoch_goes_on_in_its_middle_and_the_next_one_is_whole():
    whole = TrainingSampler(11, seed=3, batch_size=2, epoch=5)
    resumed = TrainingSampler(11, seed=3, batch_size=2, epoch=5, batches_done=3)
    rest = list(whole)[6:]
    assert list(resumed) == rest
    assert len(resumed) == 11
    resumed.set_epoch(5)
    assert list(resumed) == rest
    for sampler in (whole, resumed):
        sampler.set_epoch(6)
    assert list(resumed) == list(whole)
    assert len(list(whole)) == 11


def test_every_complete_pass_is_the_next_epoch():
    sampler = TrainingSampler(6, seed=3, batch_size=2, epoch=4, batches_done=2)
    passes = [list(sampler) for _ in range(3)]
    assert [{key.epoch for key in keys} for keys in passes] == [{4}, {5}, {6}]
    assert [len(keys) for keys in passes] == [2, 6, 6]
    assert passes[1] == list(TrainingSampler(6, seed=3, batch_size=2, epoch=5))
    first = next(iter(sampler))
    assert next(iter(sampler)) == first  # a pass that was not completed begins again
    assert first.epoch == 7


def test_who_chooses_epochs_gets_those_though_batches_are_read_ahead():
    # As Lightning does with worker processes: it reads, and then says which epoch it is.
    sampler = TrainingSampler(6, seed=3, batch_size=2, epoch=4, batches_done=2)
    ahead = list(sampler)
    sampler.set_epoch(4)
    assert list(sampler) == ahead
    running = iter(sampler)
    next(running)
    sampler.set_epoch(7)
    assert len(list(running)) == 5  # of epoch 5, which ends when 7 is chosen already
    assert {key.epoch for key in sampler} == {7}
    assert all(one == other for one, other in itertools.zip_longest(sampler, sampler))
    assert {key.epoch for key in sampler} == {9}


def test_a_changed_order_is_refused_in_mid_epoch():
    sampler = TrainingSampler(11, seed=3, batch_size=2)
    sampler.load_state_dict(TrainingSampler(11, seed=3, batch_size=2, epoch=9).state_dict())
    with pytest.raises(InputError, match=r"batch_size: .* had 4, .* got 2"):
        sampler.load_state_dict(TrainingSampler(11, seed=3, batch_size=4).state_dict())
    with pytest.raises(InputError, match="processes"):
        sampler.load_state_dict(TrainingSampler(11, seed=3, batch_size=2, world=2).state_dict())


@given(
    st.lists(st.sampled_from([(10, 20), (20, 10), (0, 0)]), min_size=1, max_size=30),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_evaluation_takes_each_image_once_in_batches_of_one_size(sizes, batch_size, world):
    samplers = [EvaluationSampler(np.array(sizes), batch_size, rank, world) for rank in range(world)]
    seen = []
    for rank, sampler in enumerate(samplers):
        batches = list(sampler)
        assert len(batches) == len(sampler) == len(samplers[0])
        for batch in batches:
            real = [key.index for key in batch if key.epoch != BLANK]
            assert len(real) in (0, len(batch))
            assert len(batch) <= batch_size
            assert len({sizes[index] for index in real}) <= 1
            assert all(index % world == rank for index in real)
            seen += real
    assert sorted(seen) == list(range(len(sizes)))


def test_evaluation_of_equal_sizes_keeps_the_order():
    sampler = EvaluationSampler(np.full((7, 2), 64), batch_size=3)
    assert list(sampler) == [[Key(0), Key(1), Key(2)], [Key(3), Key(4), Key(5)], [Key(6)]]


def test_a_process_without_images_gets_blanks():
    sampler = EvaluationSampler(np.full((2, 2), 64), batch_size=1, rank=2, world=3)
    ((key,),) = sampler
    assert key.epoch == BLANK
    assert 0 <= key.index < 2  # it is read all the same
