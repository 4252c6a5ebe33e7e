"""When a training that is sized in time ends, and what its profilers leave."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from configuration import DEFAULT_HYPERPARAMETERS
from pytorch_lightning.callbacks import Timer

from keypoint_detection import fit
from keypoint_detection.train.trainer import PROFILERS, SharedTimer

SHORT = DEFAULT_HYPERPARAMETERS | {"max_pictures": 0, "wandb_mode": "disabled"}


def test_several_processes_ask_whether_the_time_is_over_every_tenth_step_but_for_the_first_ones():
    asked = []
    trainer = SimpleNamespace(
        world_size=2, should_stop=False, strategy=SimpleNamespace(broadcast=lambda over: asked.append(over) or over)
    )
    timer, steps = SharedTimer(duration=timedelta(hours=1), verbose=False), []
    for trainer.global_step in range(1, 35):
        before = len(asked)
        timer.on_train_batch_end(trainer, None)
        steps += [trainer.global_step] * (len(asked) - before)
    assert steps == [*range(1, 11), 20, 30]
    assert not trainer.should_stop


def test_the_time_of_a_checkpoint_is_where_lightnings_own_timer_leaves_it():
    timer = Timer(duration=timedelta(hours=1))
    assert SharedTimer(duration=timedelta(hours=1)).state_key == timer.state_key


@pytest.mark.parametrize("profiler", PROFILERS)
def test_a_profiler_writes_where_the_time_of_steps_went_and_its_files_are_named(tmp_path, profiler):
    flags = {"profiler": profiler, "max_epochs": 1, "max_pictures": 0, "wandb_mode": "disabled"}
    named = fit(**DEFAULT_HYPERPARAMETERS | flags, run_dir=str(tmp_path)).where_to_look().splitlines()
    tables = [tmp_path / "fit-profile.txt", tmp_path / "validate-profile.txt"]
    assert "SingleDeviceStrategy.training_step" in tables[0].read_text(encoding="utf-8")
    traces = sorted(path for path in tmp_path.glob("*.json") if path.name not in ("run.json", "split.json"))
    assert [path.name.split("-")[0] for path in traces] == (["fit", "validate"] if profiler == "pytorch" else [])
    expected = [*map(str, tables), *(f"{path} (opens in ui.perfetto.dev)" for path in traces)]
    assert [line.strip() for line in named if "-profile" in line] == expected


def test_a_trial_of_a_batch_is_not_said_to_take_minutes(tmp_path, caplog):
    caplog.set_level("INFO")
    fit(**SHORT | {"max_epochs": None, "fast_dev_run": 1}, run_dir=str(tmp_path))
    assert "1 batch" in caplog.text
    assert "5 minutes" not in caplog.text
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1


@pytest.mark.parametrize(("changes", "said"), [({}, 0), ({"limit_val_batches": 0}, 1)])
def test_a_plateau_before_the_first_validation_is_nothing_to_warn_of(tmp_path, recwarn, changes, said):
    flags = {"learning_rate_schedule": "plateau", "check_val_every_n_epoch": 2, "max_epochs": 2}
    fit(**SHORT | flags | changes, run_dir=str(tmp_path))
    assert sum("ReduceLROnPlateau conditioned on" in str(warning.message) for warning in recwarn) == said
