"""The wandb server fails in every way that it can: the training goes on, and its own files have everything."""

import subprocess

import pytest
import wandb
from configuration import DEFAULT_HYPERPARAMETERS
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from wandb_offline import read_runs
from wandb_session import LOSSES, PICTURE, log_all, log_losses, losses_of, own_messages, start, sync

from keypoint_detection import fit
from keypoint_detection.errors import InputError
from keypoint_detection.train import finish
from keypoint_detection.train.wandb_logger import finish_wandb

pytestmark = pytest.mark.usefixtures("fresh_wandb")


@pytest.mark.parametrize("fault", ["closed", "invalid key", "error", "drop", "malformed", "slow"])
def test_server_that_fails_at_the_start_does_not_stop_the_training(tmp_path, wandb_server, monkeypatch, caplog, fault):
    monkeypatch.setenv("WANDB_X_DISABLE_VIEWER", "true")
    if fault == "closed":
        wandb_server.stop()
    elif fault == "invalid key":
        monkeypatch.setenv("WANDB_API_KEY", "short")
    else:
        wandb_server.fault, wandb_server.fault_on, wandb_server.delay = fault, "RunResumeStatus", 5
    logger = start(tmp_path, wandb_init_timeout=0.5, resume_id="mine")
    log_all(logger, tmp_path)
    finish_wandb(logger)

    (run,) = read_runs(tmp_path)
    assert (run.id, run.folder.name[:8], run.complete, losses_of(run.history)) == ("mine", "offline-", True, LOSSES)
    (warning,) = own_messages(caplog)
    assert warning.startswith("wandb logs offline: ")
    assert warning.endswith(f"wandb sync {run.folder}")


@pytest.mark.parametrize("fault", ["dead", "error", "drop", "malformed"])
def test_server_that_fails_in_mid_run_loses_nothing(tmp_path, wandb_server, caplog, fault):
    logger = start(tmp_path, wandb_finish_timeout=1)
    (run_id,) = wandb_server.runs
    log_losses(logger)
    if fault == "dead":
        wandb_server.stop()
    else:
        wandb_server.fault = fault
    log_losses(logger, first_step=len(LOSSES))
    logger.log_image("validation/corner", [PICTURE], step=6)
    finish_wandb(logger)

    (run,) = read_runs(tmp_path)
    assert (run.complete, run.exit_code, losses_of(run.history)) == (True, 0, LOSSES * 2)
    assert own_messages(caplog) == [
        f"wandb could not upload the whole run. To upload it later: wandb sync --include-online {run.folder}"
    ]
    assert wandb_server.runs[run_id].state == "running"

    wandb_server.fault = None
    if fault == "dead":
        wandb_server.start()
    sync(run.folder)
    assert losses_of(wandb_server.runs[run_id].history) == LOSSES * 2
    assert wandb_server.runs[run_id].state == "finished"


def test_checkpoint_that_meets_a_dead_server_is_named_at_the_end(tmp_path, wandb_server, caplog, monkeypatch):
    monkeypatch.setattr(wandb.Api, "_HTTP_TIMEOUT", 1)  # instead of 19 s
    logger = start(tmp_path, wandb_finish_timeout=1)
    wandb_server.stop()
    checkpoint = log_all(logger, tmp_path)
    finish_wandb(logger)
    (run,) = read_runs(tmp_path)
    assert losses_of(run.history) == LOSSES
    assert own_messages(caplog) == [
        f"wandb could not upload the whole run. To upload it later (except {checkpoint}, which stays here): "
        f"wandb sync --include-online {run.folder}"
    ]


def test_slow_server_gets_everything(tmp_path, wandb_server, caplog):
    logger = start(tmp_path)
    wandb_server.fault, wandb_server.delay = "slow", 0.1
    log_all(logger, tmp_path)
    finish_wandb(logger)
    (run,) = wandb_server.runs.values()
    assert (losses_of(run.history), run.state, run.artifacts[0].committed) == (LOSSES, "finished", True)
    assert own_messages(caplog) == []


def test_server_that_comes_back_gets_everything(tmp_path, wandb_server, caplog):
    logger = start(tmp_path)
    wandb_server.stop()
    log_losses(logger)
    logger.log_image("validation/corner", [PICTURE], step=len(LOSSES))
    wandb_server.start()
    finish_wandb(logger)
    (run,) = wandb_server.runs.values()
    assert (losses_of(run.history), run.state) == (LOSSES, "finished")
    assert sum(name.startswith("media/images/validation/corner") for name in run.files) == 1
    assert own_messages(caplog) == []


def test_death_of_the_wandb_process_does_not_stop_the_training(tmp_path, monkeypatch, caplog):
    logger = start(tmp_path, "offline")
    calls = []

    def fail(*_, **__):
        calls.append(1)
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(logger.experiment, "log", fail)
    monkeypatch.setattr(logger.experiment, "finish", fail)
    log_all(logger, tmp_path)
    finish_wandb(logger)
    assert len(calls) == 2
    assert own_messages(caplog) == ["wandb's process has ended (Connection lost): training continues without it"]

    second = start(tmp_path, "offline")
    log_losses(second)
    finish_wandb(second)
    (run,) = [run for run in read_runs(tmp_path) if run.id == second.experiment.id]
    assert losses_of(run.history) == LOSSES


@pytest.mark.parametrize("mode", ["offline", "online"])
@pytest.mark.parametrize("moment", ["log_picture", "log_checkpoint_artifact", "log_report", "finish_wandb"])
def test_a_wandb_process_that_is_killed_costs_the_training_one_warning(
    tmp_path, monkeypatch, caplog, wandb_server, mode, moment
):
    started, popen, step = [], subprocess.Popen, getattr(finish, moment)

    def start_process(arguments, *others, **options):
        started.append(popen(arguments, *others, **options))
        return started[-1]

    def kill_before(*arguments):
        for process in started:
            if "wandb-core" in process.args[0] and process.poll() is None:
                process.kill()
                process.wait()
        return step(*arguments)

    monkeypatch.setattr(subprocess, "Popen", start_process)
    monkeypatch.setattr(finish, moment, kill_before)
    flags = DEFAULT_HYPERPARAMETERS | {"wandb_mode": mode, "max_epochs": 1}
    run = fit(**flags, run_dir=str(tmp_path / "run"), enable_progress_bar=False)
    assert run.best_checkpoint.exists()
    assert "best/meanAP" in run.metrics
    assert {path.name for path in run.run_dir.iterdir()} >= {"metrics.csv", "curves.png", "report.html"}
    of_wandb = [line for line in own_messages(caplog) if line.startswith("wandb") and ", as requested" not in line]
    assert len(of_wandb) == 1
    assert of_wandb[0].startswith("wandb's process has ended (")


@pytest.mark.parametrize("variable", [None, "online"])
def test_a_run_that_cannot_be_online_is_refused_before_the_data_is_read(tmp_path, monkeypatch, variable):
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    mode = {"wandb_mode": "auto" if variable else "online", "json_dataset_path": "missing.json"}
    with pytest.raises(InputError, match="'online', but there is no login"):
        fit(**DEFAULT_HYPERPARAMETERS | mode, run_dir=str(tmp_path / "run"))
    # Those of other processes have no run of their own, and their machine may have no login.
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with pytest.raises(InputError, match=r"missing\.json"):
        fit(**DEFAULT_HYPERPARAMETERS | mode, run_dir=str(tmp_path / "run"))
