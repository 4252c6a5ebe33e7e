"""A loss that is no number ends a training without spoiling what it has."""

import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from configuration import DEFAULT_HYPERPARAMETERS, TEST_DATASET

from keypoint_detection import KeypointDetector, fit
from keypoint_detection.batch import Batch
from keypoint_detection.errors import InputError
from keypoint_detection.models import detector as module
from keypoint_detection.train.bad_loss import StopAtBadLoss


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


@pytest.mark.parametrize(("rank", "loss", "error"), [(0, 1.0, InputError), (1, float("nan"), SystemExit)])
def test_of_several_processes_the_first_one_alone_ends_with_an_error(tmp_path, monkeypatch, caplog, rank, loss, error):
    trainer = SimpleNamespace(world_size=2, is_global_zero=rank == 0, global_step=7)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flag: flag.fill_(1))
    monkeypatch.setattr(StopAtBadLoss, "_save", lambda *_: "where the batch is")
    callback = StopAtBadLoss(tmp_path)
    callback.on_before_backward(trainer, None, torch.tensor(loss))
    with pytest.raises(error) as raised:
        callback.on_after_backward(trainer, None)
    if rank == 0:
        assert str(raised.value) == "the loss of another process is NaN or infinite at step 7"
    else:
        assert raised.value.code == 0
        assert caplog.messages == ["where the batch is"]


@pytest.mark.parametrize(
    ("indices", "named"),
    [
        ([1, -1], "second.png"),
        ([0, 1, 2], "first.png, second.png, last.png"),
        ([2, 1, 0, -1, 0, 1], "last.png, second.png, first.png and 2 more"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_each_names_its_images_without_the_blanks_that_fill_up_a_batch(
    tmp_path, indices, named, rank
):
    names = ["first.png", "second.png", "last.png"]
    annotations = SimpleNamespace(path=lambda index: Path(names[index]))
    trainer = SimpleNamespace(
        world_size=2, global_rank=rank, current_epoch=3, global_step=7,
        datamodule=SimpleNamespace(train_annotations=annotations),
    )  # fmt: skip
    callback = StopAtBadLoss(tmp_path)
    others = dict.fromkeys(set(Batch._fields) - {"indices"})
    callback.on_train_batch_start(trainer, None, Batch(indices=torch.tensor(indices), **others))
    text = callback._save(trainer, float("nan"))
    assert f"bad_batch-{rank}.pt ({named}), and" in text
    saved = torch.load(tmp_path / f"bad_batch-{rank}.pt", weights_only=True)
    assert saved["paths"] == [None if index < 0 else names[index] for index in indices]


@pytest.mark.parametrize("hook", ["on_validation_batch_end", "on_train_batch_end"])
def test_an_error_leaves_no_worker_that_the_process_would_wait_for(tmp_path, monkeypatch, hook):
    def fail(_, trainer, *others):
        if trainer.global_step:
            raise ZeroDivisionError

    monkeypatch.setattr(StopAtBadLoss, hook, fail)
    flags = DEFAULT_HYPERPARAMETERS | {"wandb_mode": "disabled", "max_pictures": 0, "num_workers": 1}
    with pytest.raises(ZeroDivisionError) as raised:
        fit(**flags, run_dir=str(tmp_path))
    assert raised.tb is not None  # which keeps all that it names alive, as at the end of Python
    assert multiprocessing.active_children() == []
