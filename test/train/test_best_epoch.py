"""What a training says about the epoch that its best checkpoint is from."""

import logging

import pytest

from keypoint_detection.train.best_epoch import BestEpoch

AP, LOSS = "validation/meanAP", "train/loss"


def falling(count, start=None):
    """Curves of so many epochs, of which the third has the best AP, while the training loss falls by a half."""
    scores = [0.5, 0.6, 0.8] + [0.7] * (count - 3)
    epochs = [float(epoch) for epoch in range(count)]
    losses = (epochs, [1 - 0.5 * epoch / (count - 1) for epoch in epochs])
    before = ([], []) if start is None else ([-1.0], [start])
    return {AP: (before[0] + epochs, before[1] + scores), LOSS: losses}


@pytest.mark.parametrize(
    ("best", "text"),
    [
        (BestEpoch(3.0, 40.0, 7, falling(40)), "best.ckpt: the weights after 3 of 40 epochs"),
        (BestEpoch(2.25, 7.5, 7, {}), "best.ckpt: the weights after 2.25 of 7.5 epochs"),
        (BestEpoch(1 / 3, 1000.0, 7, {}), "best.ckpt: the weights after 0.33 of 1000 epochs"),
        (
            BestEpoch(3.0, 5.0, 7, falling(5, start=0.7)),
            "best.ckpt: the weights after 3 of 5 epochs, with a mean AP of 0.800 on 7 validation images; the weights "
            "of --checkpoint had 0.700",
        ),
        (
            BestEpoch(0.0, 5.0, 7, falling(5, start=0.9)),
            "best.ckpt: the unchanged weights of --checkpoint, with a mean AP of 0.900",
        ),
    ],
)
def test_the_end_of_a_training_says_which_epoch_is_the_best(best, text):
    mean_ap = 0.9 if best.epochs == 0 else 0.8
    assert best.text("best.ckpt", mean_ap) == text


def test_a_fine_tuning_that_comes_to_nothing_better_is_warned_of(caplog):
    assert BestEpoch(0.0, 5.0, 7, falling(5, start=0.9)).warn(collapsed=True)
    assert caplog.messages == [
        "no evaluation during training (of 5) was as good as the weights of --checkpoint, so best.ckpt holds those "
        "weights unchanged; a lower --learning_rate or more images may help"
    ]


def without_loss(curves):
    return {AP: curves[AP]}


def rising(curves):
    epochs, losses = curves[LOSS]
    return curves | {LOSS: (epochs, losses[::-1])}


@pytest.mark.parametrize(
    ("best", "warned"),
    [
        (BestEpoch(3.0, 30.0, 7, falling(30)), "30"),
        (BestEpoch(3.0, 30.0, 7, falling(30, start=0.7)), "30"),
        (BestEpoch(3.0, 29.0, 7, falling(29)), None),  # not in the first tenth
        (BestEpoch(3.0, 30.0, 7, falling(10)), None),  # of ten evaluations it is chance
        (BestEpoch(3.0, 30.0, 7, rising(falling(30))), None),  # it diverged
        (BestEpoch(3.0, 30.0, 7, without_loss(falling(30))), None),
        (BestEpoch(3.0, 30.0, 7, {}), None),
        (BestEpoch(0.0, 30.0, 7, {AP: ([-1.0], [0.9])}), None),  # without an evaluation while training
    ],
)
def test_an_early_best_epoch_is_told_as_overfitting_where_the_training_loss_says_so(best, warned, caplog):
    caplog.set_level(logging.WARNING)
    assert not best.warn(collapsed=True)
    assert best.warn() == bool(warned)
    assert caplog.messages == (
        [
            f"best.ckpt is from the first tenth of the epochs: of {warned} evaluations, no later one was as good, "
            "while the training loss fell from 0.966 to 0.5, which suggests overfitting; fewer epochs, more images or "
            "more augmentation may help"
        ]
        if warned
        else []
    )
