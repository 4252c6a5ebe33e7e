import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from configuration import DEFAULT_HYPERPARAMETERS
from PIL import Image

from keypoint_detection import fit
from keypoint_detection.train.collapse import CollapseWarning


def shown_images(folder, are_noise):
    """Images with a keypoint each: in the middle of a white square on black, or anywhere in noise."""
    random = np.random.default_rng(0)
    entries = []
    for number in range(24):
        x, y = random.integers(4, 60, 2)
        pixels = random.integers(0, 256 if are_noise else 1, (64, 64, 3), dtype=np.uint8)
        if not are_noise:
            pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
        Image.fromarray(pixels).save(folder / f"{number}.png")
        entries.append({"image_path": f"{number}.png", "dot": [[(x + 0.5) / 64, 1 - (y + 0.5) / 64]]})
    path = folder / "dots.json"
    path.write_text(json.dumps({"dataset": entries}), encoding="utf-8")
    return DEFAULT_HYPERPARAMETERS | {
        "json_dataset_path": str(path), "image_dataset_path": str(folder), "keypoint_channels": "dot",
        "keypoint_channel_max_keypoints": None, "heatmap_sigma": 2.0, "max_epochs": 6, "augment_train": False,
        "run_dir": str(folder / "run"), "wandb_mode": "disabled", "max_pictures": 0,
    }  # fmt: skip


def warnings_of(caplog, flags):
    """What a training warns of, of whose evaluations the last one comes after 54 steps."""
    caplog.clear()
    fit(**flags)
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("changes", "advised"),
    [
        ({}, "Try a larger --heatmap_sigma, --loss focal, a larger --image_size, a lower --learning_rate or longer"),
        ({"loss": "focal"}, "Try a larger --heatmap_sigma, a larger --image_size, a lower --learning_rate or longer"),
        ({"learning_rate": 5.0}, "Try a lower --learning_rate than 5 first: the loss has risen from 0.0"),
    ],
)
def test_heatmaps_that_stay_near_zero_are_told_with_what_to_try(caplog, tmp_path, changes, advised):
    low, hardly = warnings_of(caplog, shown_images(tmp_path, are_noise=True) | changes)
    assert low.startswith("the heatmaps have been near zero everywhere for ")
    assert advised in low
    assert hardly.startswith("hardly learned: dot (")
    assert hardly.endswith(f"; try {low.partition('. Try ')[2]}")


def test_a_training_that_learns_is_not_warned(caplog, tmp_path):
    assert warnings_of(caplog, shown_images(tmp_path, are_noise=False) | {"learning_rate": 0.02}) == []


def test_what_was_seen_of_a_collapse_is_kept_when_a_training_goes_on(caplog, tmp_path):
    flags = shown_images(tmp_path, are_noise=True) | {"resume": "auto"}
    (hardly,) = warnings_of(caplog, flags | {"max_epochs": 5})  # 45 steps may be too few
    assert "; if the validation loss still falls" in hardly
    low, hardly = warnings_of(caplog, flags)
    assert "near zero everywhere for 6 evaluations" in low
    assert warnings_of(caplog, flags | {"max_epochs": 7}) == [hardly]  # told already


def evaluate(watch, highest, mean_ap, loss=0.05, trained=0.04, **changes):
    """Lets a batch of this loss, and an evaluation with these highest values of its batches' heatmaps, pass by."""
    trainer = SimpleNamespace(
        sanity_checking=False, state=SimpleNamespace(fn="fit"), is_global_zero=True, callbacks=[], max_epochs=-1,
        max_steps=-1, global_step=1000, accumulate_grad_batches=2,
        callback_metrics={"validation/meanAP": torch.tensor(mean_ap), "validation/loss": torch.tensor(loss)},
        strategy=SimpleNamespace(root_device="cpu", reduce=lambda value, reduce_op: value),
    )  # fmt: skip
    vars(trainer).update(changes)
    module = SimpleNamespace(hparams=SimpleNamespace(loss="mse", learning_rate=0.5))
    watch.on_train_batch_end(trainer, module, {"loss": torch.tensor(trained / 2)}, None, 0)
    watch.on_validation_start(trainer, module)
    for value in highest:
        watch.on_validation_batch_end(trainer, module, {"heatmaps": torch.tensor([[[[0.0, value]]]])})
    watch.on_validation_end(trainer, module)


def test_an_ap_that_stays_zero_with_high_heatmaps_is_told_in_other_words(caplog):
    watch = CollapseWarning()
    for _ in range(4):
        evaluate(watch, [0.75, 0.001], 0.0)
    (message,) = caplog.messages
    assert message.startswith("the AP has stayed 0 for 3 evaluations, with heatmaps of up to 0.75: detections are too")
    assert "Try larger --maximal_gt_keypoint_pixel_distances, --loss focal, " in message


@pytest.mark.parametrize(
    ("highest", "mean_ap", "changes"),
    [
        (0.049, math.nan, {}),  # there is nothing to find
        (0.049, 0.0, {"global_step": 999}),
        (0.049, 0.0, {"sanity_checking": True}),
        (0.049, 0.0, {"state": SimpleNamespace(fn="validate")}),  # of the best checkpoint
        (0.049, 0.0, {"max_steps": 2010}),  # less than half
        (0.049, 0.0, {"max_steps": 49, "global_step": 49}),
        (0.05, 0.001, {}),
    ],
)
def test_nothing_is_said_of_what_may_be_no_collapse(caplog, highest, mean_ap, changes):
    watch = CollapseWarning()
    ends = {"estimated_stepping_batches": changes.get("max_steps"), "num_training_batches": 10}
    for _ in range(5):
        evaluate(watch, [0.0, highest], mean_ap, **changes, **ends)
    assert not caplog.messages
    assert watch.advice is None


@pytest.mark.parametrize(("steps", "told"), [(49, False), (50, True)])
def test_a_collapse_is_told_from_half_of_a_training_and_fifty_steps_on(caplog, steps, told):
    ends = {"max_steps": 100, "estimated_stepping_batches": 100, "num_training_batches": 10}
    watch = CollapseWarning()
    for _ in range(3):
        evaluate(watch, [0.01], 0.0, global_step=steps, **ends)
    assert bool(caplog.messages) is told


@pytest.mark.parametrize(("loss", "has_risen"), [(0.121, True), (0.119, False)])
@pytest.mark.parametrize("name", ["train/loss", "validation/loss"])
def test_a_loss_of_three_times_the_first_one_has_risen(name, loss, has_risen):
    watch = CollapseWarning()
    values = {"validation/meanAP": torch.tensor(0.0), name: torch.tensor(loss)}  # the highest one, whenever it was
    evaluate(watch, [1.0], 0.0, callback_metrics=values)
    again = CollapseWarning()  # of the training that goes on, whose batches have other losses
    again.load_state_dict(watch.state_dict())
    for _ in range(3):
        evaluate(again, [0.01], 0.0, trained=0.001)
    assert again.advice.startswith("a lower --learning_rate than 0.5 first") is has_risen


def test_of_several_processes_the_first_one_tells(caplog):
    first, second = CollapseWarning(), CollapseWarning()
    for _ in range(3):
        evaluate(first, [0.01], 0.0, loss=0.2)
        evaluate(second, [0.01], 0.0, loss=0.2, is_global_zero=False)
    assert len(caplog.messages) == 1
    assert first.state_dict() == second.state_dict()
    assert first.advice.startswith("a lower --learning_rate than 0.5 first: the loss has risen from 0.04 to 0.2")


def test_an_evaluation_that_finds_something_begins_the_count_anew(caplog):
    watch = CollapseWarning()
    for highest, mean_ap in [(0.01, 0.0), (0.01, 0.0), (0.3, 0.2), (0.01, 0.0), (0.01, 0.0)]:
        evaluate(watch, [highest], mean_ap)
    assert not caplog.messages
    evaluate(watch, [0.01], 0.0)
    assert "near zero everywhere for 3 evaluations" in caplog.text


def test_heatmaps_that_another_process_found_high_are_not_near_zero(caplog):
    def reduce(value, reduce_op):
        return {"max": torch.amax, "mean": torch.mean}[reduce_op](torch.stack([value, torch.tensor(0.06)]))

    watch = CollapseWarning()
    for _ in range(4):
        evaluate(watch, [0.01], 0.001, strategy=SimpleNamespace(root_device="cpu", reduce=reduce))
    assert not caplog.messages
