from types import SimpleNamespace

import numpy as np
import pytest

from keypoint_detection.train.time_shares import TimeShares, advise


@pytest.mark.parametrize(
    ("cores", "device", "workers", "cache", "parts", "expected"),
    [
        (2, "cpu", 0, object(), None, "a smaller --image_size"),
        (2, "cpu", 0, object(), (288, 288), "a smaller --train_crop_size"),
        (2, "cpu", 0, object(), (128, 288), "a smaller --train_crop_size"),
        (2, "cpu", 0, None, None, "--cache_images true, a smaller --image_size"),
        (8, "cpu", 2, object(), None, "more than --num_workers 2, a smaller --image_size"),
        (8, "cuda", 7, None, None, "more than --num_workers 7, --cache_images true, a smaller --image_size"),
        (8, "cuda", 7, None, (128, 128), "more than --num_workers 7, --cache_images true"),
    ],
)
def test_advice_names_what_is_left_to_try(monkeypatch, cores, device, workers, cache, parts, expected):
    assert advice(monkeypatch, cores, device, workers, cache, parts, (256, 256), [[640, 480]]) == expected


@pytest.mark.parametrize(
    ("image_size", "sizes", "expected"),
    [
        (None, [[64, 64], [0, 0], [100, 128]], ""),  # one of which the size is not known
        (None, [[64, 64], [129, 100]], "a smaller --image_size"),
        (None, [[0, 0]], "a smaller --image_size"),
        (None, [[64, 64]] * 1000 + [[640, 480]], "a smaller --image_size"),
        ((128, 256), [[300, 300]], ""),  # into a square of 128
        ((128, 256), [[300, 200]], "a smaller --image_size"),
    ],
)
def test_images_of_128_px_are_not_advised_to_be_smaller(monkeypatch, image_size, sizes, expected):
    assert advice(monkeypatch, 2, "cpu", 0, object(), None, image_size, sizes) == expected


def advice(monkeypatch, cores, device, workers, cache, parts, image_size, sizes):
    monkeypatch.setattr("keypoint_detection.train.time_shares.usable_cores", lambda: cores)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)  # whatever OMP_NUM_THREADS
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=SimpleNamespace(type=device)),
        datamodule=SimpleNamespace(train_sizes=np.array(sizes)),
    )
    dataset = SimpleNamespace(cache=cache, crop_size=parts, image_size=image_size)
    return advise(SimpleNamespace(num_workers=workers, dataset=dataset), trainer)


def test_advice_is_given_where_the_data_takes_long():
    shares = TimeShares()
    shares.seconds = {"data": 15.0, "step": 80.0, "evaluation": 5.0, "other": 0.1}
    assert shares.summary("some advice") == "time: data 15%, step 80%, evaluation 5% of 100 s"
    shares.seconds["data"] = 16.0
    assert shares.summary("some advice").endswith("of 101 s; to wait less for data: some advice")
    assert shares.summary("").endswith("of 101 s")


@pytest.mark.parametrize(("step", "is_advised"), [(19.9, False), (20.0, True)])
def test_a_training_of_less_than_half_a_minute_is_given_no_advice(step, is_advised):
    # What an epoch costs, and the first images of all, are much of it.
    shares = TimeShares()
    shares.seconds = {"data": 10.0, "step": step, "evaluation": 5.0, "other": 5.0}
    assert ("to wait less" in shares.summary("some advice")) is is_advised


def test_every_second_of_a_training_is_in_one_of_the_shares(monkeypatch):
    now = 0
    monkeypatch.setattr("keypoint_detection.train.time_shares.time.perf_counter", lambda: now)
    shares, trainer = TimeShares(), SimpleNamespace(sanity_checking=True)
    for hook in ("validation_start", "validation_end", "train_start"):  # what comes before the training is in none
        now += 100
        getattr(shares, f"on_{hook}")(trainer, None)
    trainer.sanity_checking = False
    hooks = 2 * ["train_epoch_start", "train_batch_start", "train_batch_end", "validation_start", "validation_end"]
    for seconds, hook in enumerate([*hooks, "train_end"], start=1):
        now += seconds
        getattr(shares, f"on_{hook}")(trainer, None)
    # The epochs begin after 1 and 6 seconds; 4, 9 and 11 pass before evaluations and at the end.
    assert shares.seconds == {"data": 2 + 7, "step": 3 + 8, "evaluation": 5 + 10, "other": 1 + 4 + 6 + 9 + 11}
    assert sum(shares.seconds.values()) == now - 300
