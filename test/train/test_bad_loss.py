"""A loss that is no number ends a training without spoiling what it has."""

from pathlib import Path

import pytest
import torch
from configuration import DEFAULT_HYPERPARAMETERS, TEST_DATASET

from keypoint_detection import KeypointDetector, fit
from keypoint_detection.errors import InputError
from keypoint_detection.models import detector as module


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_training_stops_with_the_batch_saved(tmp_path, monkeypatch, bad):
    real, losses = module.evaluate_loss, []

    def fail_in_the_second_epoch(*arguments):
        found = real(*arguments)
        if arguments[2].requires_grad:
            losses.append(found[0].detach())
        return (found[0] * bad, found[1]) if len(losses) == 3 and arguments[2].requires_grad else found

    monkeypatch.setattr(module, "evaluate_loss", fail_in_the_second_epoch)
    flags = DEFAULT_HYPERPARAMETERS | {"wandb_mode": "disabled", "max_pictures": 0, "num_workers": 0, "ema_decay": 0}
    with pytest.raises(InputError) as error:
        fit(**flags, run_dir=str(tmp_path))
    text = str(error.value)
    assert text.startswith(f"the loss is {bad} in epoch 1, step 2; its batch is in {tmp_path / 'bad_batch.pt'} (")
    assert "\n" not in text
    saved = torch.load(tmp_path / "bad_batch.pt", weights_only=True)
    assert (saved["epoch"], saved["step"]) == (1, 2)
    assert str(saved["loss"]) == str(bad)
    assert saved["images"].shape == (2, 3, 128, 128)
    assert saved["keypoints"].shape[:2] == (2, 2)
    for path in saved["paths"]:
        assert path in text
        assert Path(path).parent == TEST_DATASET / "images"
    detector = KeypointDetector.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert all(value.isfinite().all() for value in detector.parameters())
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
