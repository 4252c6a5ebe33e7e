from types import SimpleNamespace

import pytest
import torch
from configuration import DEFAULT_HYPERPARAMETERS

from keypoint_detection import fit
from keypoint_detection.errors import InputError
from keypoint_detection.train.ema import ExponentialMovingAverage


@pytest.mark.parametrize(("count", "decay"), [(0, 0.0), (1, 2 / 11), (8, 0.5), (10_000, 0.9)])
def test_the_average_by_hand(count, decay):
    averaged, current = [torch.tensor([1.0, 2.0]), torch.tensor(4.0)], [torch.tensor([3.0, 2.0]), torch.tensor(0.0)]
    ExponentialMovingAverage(ema_decay=0.9)._average(averaged, current, count)
    torch.testing.assert_close(averaged, [torch.tensor([1 + 2 * (1 - decay), 2.0]), torch.tensor(4 * decay)])


def test_integers_are_those_of_the_current_model():
    averaged = [torch.tensor(3), torch.tensor(1.0)]
    ExponentialMovingAverage()._average(averaged, [torch.tensor(7), torch.tensor(1.0)], 5)
    assert averaged[0] == 7


def test_steps_are_averaged_once_each_and_counted_on_where_a_training_goes_on(monkeypatch):
    average = ExponentialMovingAverage()
    average._average_model = SimpleNamespace(module=torch.nn.Linear(1, 1), n_averaged=torch.tensor(5))
    seen = []
    monkeypatch.setattr(average, "_average", lambda averaged, current, updates: seen.append(updates))
    module = torch.nn.Linear(1, 1)
    average.on_train_start(None, module)
    for steps in (0, 1, 1, 2, 2, 3):  # after batches of which two make a step
        average.on_train_batch_end(SimpleNamespace(global_step=steps), module)
    assert seen == [5, 6, 7]
    assert average._average_model.n_averaged == 8


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(InputError, match="ema_decay"):
        ExponentialMovingAverage(decay)


def test_statistics_of_batch_normalisation_are_averaged_like_the_weights(tmp_path):
    flags = DEFAULT_HYPERPARAMETERS | {"wandb_mode": "disabled", "max_pictures": 0}
    folder = fit(**flags, run_dir=str(tmp_path)).run_dir
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    averaged, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    batches = [name for name in averaged if name.endswith("num_batches_tracked")]
    assert batches
    assert all(averaged[name] == current[name] == checkpoint["global_step"] for name in batches)
    statistics = [name for name in averaged if name.endswith(("running_mean", "running_var"))]
    assert not any(torch.equal(averaged[name], current[name]) for name in statistics)
    assert torch.equal(averaged["backbone.image_mean"], current["backbone.image_mean"])
