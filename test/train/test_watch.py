from types import SimpleNamespace

import pytest

from keypoint_detection.data.loading import advise
from keypoint_detection.train.watch import CollapseWarning, TimeShares


@pytest.mark.parametrize(
    ("cores", "device", "workers", "cache", "parts", "expected"),
    [
        (2, "cpu", 0, object(), None, "a smaller --image_size"),
        (2, "cpu", 0, object(), (288, 288), "a smaller --train_crop_size"),
        (2, "cpu", 0, None, None, "--cache_images true, a smaller --image_size"),
        (8, "cpu", 2, object(), None, "more than --num_workers 2, a smaller --image_size"),
        (8, "cuda", 7, None, None, "more than --num_workers 7, --cache_images true, a smaller --image_size"),
    ],
)
def test_advice_names_what_is_left_to_try(monkeypatch, cores, device, workers, cache, parts, expected):
    monkeypatch.setattr("keypoint_detection.data.loading._cores", lambda: cores)
    monkeypatch.setattr("keypoint_detection.data.loading.torch.get_num_threads", lambda: 2)  # whatever OMP_NUM_THREADS
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=SimpleNamespace(type=device)))
    loader = SimpleNamespace(num_workers=workers, dataset=SimpleNamespace(cache=cache, crop_size=parts))
    assert advise(loader, trainer) == expected


def test_advice_is_given_where_the_data_takes_long():
    shares = TimeShares()
    shares.seconds = {"data": 15.0, "step": 80.0, "evaluation": 5.0, "other": 0.1}
    assert shares.summary("some advice") == "time: data 15%, step 80%, evaluation 5% of 100 s"
    shares.seconds["data"] = 16.0
    assert shares.summary("some advice").endswith("of 101 s; to wait less for data: some advice")


def test_every_second_of_a_training_is_in_one_of_the_shares(monkeypatch):
    now = 0
    monkeypatch.setattr("keypoint_detection.train.watch.time.perf_counter", lambda: now)
    shares, trainer = TimeShares(), SimpleNamespace(sanity_checking=False)
    hooks = ["train_start"]
    hooks += 2 * ["train_epoch_start", "train_batch_start", "train_batch_end", "validation_start", "validation_end"]
    for seconds, hook in enumerate([*hooks, "train_end"]):
        now += seconds
        getattr(shares, f"on_{hook}")(trainer, None)
    # The epochs begin after 1 and 6 seconds; 4, 9 and 11 pass before evaluations and at the end.
    assert shares.seconds == {"data": 2 + 7, "step": 3 + 8, "evaluation": 5 + 10, "other": 1 + 4 + 6 + 9 + 11}
    assert sum(shares.seconds.values()) == now


def test_an_ap_that_stays_zero_does_not_tell_why(caplog):
    # What is found may as well lie farther off than the distances of AP.
    watch, metrics = CollapseWarning(), {"validation/meanAP": 0.0}
    for epoch in range(7):
        metrics["train/loss"] = 0.1 / (epoch + 1)
        trainer = SimpleNamespace(sanity_checking=False, callback_metrics=metrics, current_epoch=epoch)
        watch.on_validation_end(trainer, None)
    (record,) = caplog.records
    assert "stayed 0 for 6 evaluations: either the heatmaps have collapsed to zero, or" in record.message
    assert "farther than --maximal_gt_keypoint_pixel_distances" in record.message


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        ([0.1, 0.09, 0.08, 0.07, 0.06, 0.055, 0.051], [0.0] * 7),  # a training that has hardly begun
        ([0.1, 0.05, 0.03, 0.02, 0.01, 0.01, 0.01], [0.0, 0.0, 0.0, 0.1, 0.0, 0.0, 0.0]),
    ],
)
def test_an_ap_of_zero_is_no_collapse_before_the_loss_has_halved_or_where_something_was_found(caplog, losses, found):
    watch = CollapseWarning()
    for epoch, (loss, mean_ap) in enumerate(zip(losses, found, strict=True)):
        metrics = {"train/loss": loss, "validation/meanAP": mean_ap}
        trainer = SimpleNamespace(sanity_checking=False, callback_metrics=metrics, current_epoch=epoch)
        watch.on_validation_end(trainer, None)
    assert not caplog.records
