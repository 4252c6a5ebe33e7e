"""Drives the real wandb client against the stand-in server, in this process."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from wandb_offline import read_runs
from wandb_server import WandbServer
from wandb_session import CONFIG, LOSSES, log_all, log_losses, losses_of, own_messages, start, sync

from keypoint_detection.errors import InputError
from keypoint_detection.train.wandb_logger import finish_wandb, log_checkpoint_artifact, sweep_overrides

pytestmark = pytest.mark.usefixtures("fresh_wandb")


def test_without_a_login_all_is_logged_offline_and_can_be_synced(tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = start("run")
    checkpoint = log_all(logger, Path("run"))
    finish_wandb(logger)

    (run,) = read_runs(tmp_path)
    assert (run.project, run.exit_code, run.complete) == ("keypoint-detection", 0, True)
    assert run.config.items() >= CONFIG.items()
    assert losses_of(run.history) == LOSSES
    assert run.values("trainer/global_step") == [0, 1, 2, 3]
    assert run.summary["train/loss"] == LOSSES[-1]
    (picture,) = run.pictures("validation/corner")
    assert picture.read_bytes().startswith(b"\x89PNG")
    (artifact,) = run.artifacts
    assert (artifact.name, artifact.type, sorted(artifact.aliases)) == (f"model-{run.id}", "model", ["best", "latest"])
    assert artifact.files == {"model.ckpt": checkpoint.absolute()}
    assert run.folder.parent == tmp_path / "run" / "wandb"
    assert own_messages(caplog) == [
        "wandb logs offline: there is no login (`wandb login` or WANDB_API_KEY). "
        f"To upload the run later: wandb sync {run.folder}"
    ]

    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        sync(run.folder)
        synced = server.runs[run.id]
        assert losses_of(synced.history) == LOSSES
        assert synced.state == "finished"
        assert synced.artifacts[0].files["model.ckpt"] == checkpoint.read_bytes()
        assert picture.read_bytes() in synced.files.values()


def test_online_run_arrives_at_the_server(tmp_path, wandb_server, caplog):
    logger = start(tmp_path, wandb_project="boxes", wandb_name="first")
    checkpoint = log_all(logger, tmp_path)
    run_id = logger.experiment.id
    finish_wandb(logger)

    run = wandb_server.runs[run_id]
    assert (run.project, run.name, run.state) == ("boxes", "first", "finished")
    assert run.config.items() >= CONFIG.items()
    assert losses_of(run.history) == LOSSES
    assert run.summary["train/loss"] == LOSSES[-1]
    (artifact,) = run.artifacts
    assert artifact.files["model.ckpt"] == checkpoint.read_bytes()
    assert artifact.committed
    assert sorted(artifact.aliases) == ["best", "latest"]
    (picture,) = read_runs(tmp_path)[0].pictures("validation/corner")
    assert run.files[f"media/images/validation/{picture.name}"] == picture.read_bytes()
    assert wandb_server.unknown_operations == []
    assert own_messages(caplog) == []


def test_checkpoint_stays_here_if_models_are_not_to_be_logged(tmp_path, wandb_server):
    logger = start(tmp_path, wandb_log_model=False)
    log_all(logger, tmp_path)
    finish_wandb(logger)
    assert wandb_server.artifacts == {}


def test_resumed_run_goes_on_where_it_ended(tmp_path, wandb_server):
    for attempt in range(2):
        logger = start(tmp_path, resume_id="same")
        log_losses(logger, first_step=3 * attempt)
        finish_wandb(logger)
    assert list(wandb_server.runs) == ["same"]
    history = wandb_server.runs["same"].history
    assert losses_of(history) == LOSSES * 2
    assert [row["_step"] for row in history] == list(range(6))


def test_failed_run_is_marked_as_failed(tmp_path, wandb_server):
    logger = start(tmp_path)
    finish_wandb(logger, exit_code=1)
    (run,) = wandb_server.runs.values()
    assert run.state == "failed"


@pytest.mark.parametrize(
    ("argument", "variable", "folders"),
    [
        ("auto", "offline", ["offline-run"]),
        ("auto", "dryrun", ["offline-run"]),
        ("offline", None, ["offline-run"]),
        ("offline", "online", ["offline-run"]),
        ("auto", "disabled", []),
        ("disabled", None, []),
        ("disabled", "online", []),
    ],
)
def test_explicit_mode_goes_before_a_login(tmp_path, wandb_server, monkeypatch, caplog, argument, variable, folders):
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    logger = start(tmp_path, argument)
    if logger is not None:
        log_checkpoint_artifact(logger, __file__)
    finish_wandb(logger)
    assert [run.folder.name.rsplit("-", 2)[0] for run in read_runs(tmp_path)] == folders
    assert wandb_server.requests == []
    assert own_messages(caplog) == []


@pytest.mark.parametrize(
    ("argument", "variable", "key", "complaint"),
    [
        ("online", None, "", "there is no login"),
        ("auto", "online", "", "there is no login"),
        ("online", None, "short", "the login is not valid"),
        ("online", None, "0" * 40, "did not start the run"),
        ("auto", "run", "0" * 40, "did not start the run"),
        ("online", "offline", "0" * 40, "WANDB_MODE is 'offline'"),
        ("auto", "sometimes", "", "expected one of online, run, offline"),
        ("offline", "", "", "WANDB_MODE is ''"),
    ],
)
def test_what_cannot_be_done_as_asked_is_an_error(tmp_path, monkeypatch, argument, variable, key, complaint):
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_X_DISABLE_VIEWER", "true")  # or wandb would ask for the user's name, three times for 5 s
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.raises(InputError, match=complaint) as caught:
        start(tmp_path, argument, wandb_init_timeout=0.5)
    assert "\n" not in str(caught.value)
    assert read_runs(tmp_path) == []


def test_run_that_is_open_already_is_an_error(tmp_path):
    run = wandb.init(mode="offline", dir=tmp_path)
    with pytest.raises(InputError, match=f"the wandb run {run.id} is already open"):
        start(tmp_path)
    assert wandb.run is run


@pytest.mark.parametrize(("rank", "node"), [(1, "0"), (0, "1")])
def test_only_rank_zero_starts_a_run(tmp_path, wandb_server, monkeypatch, rank, node):
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    monkeypatch.setenv("NODE_RANK", node)
    logger = start(tmp_path)
    log_checkpoint_artifact(logger, __file__)
    finish_wandb(logger)
    assert wandb_server.requests == []
    assert list(tmp_path.glob("wandb/*")) == []


def test_sweep_overrides_are_the_values_that_the_agent_wrote(tmp_path, monkeypatch):
    assert sweep_overrides() == {}
    path = tmp_path / "config.yaml"
    path.write_text("wandb_version: 1\n\nlr:\n  value: 1.0e-05\naugment_train:\n  value: true\nname:\n  value: null\n")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(path))
    assert sweep_overrides() == {}
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert sweep_overrides() == {"lr": 1e-5, "augment_train": True, "name": None}


@pytest.mark.parametrize("content", [None, "lr: 1\n", "- lr\n", "lr: {values: [1]}\n", "lr: [\n"])
def test_unreadable_sweep_parameters_are_an_error(tmp_path, monkeypatch, content):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    with pytest.raises(InputError, match=r"config\.yaml: expected the sweep's parameters"):
        sweep_overrides()


def test_terminal_is_not_asked_and_a_run_that_is_not_finished_is_whole(tmp_path):
    code = (
        "from keypoint_detection.train.wandb_logger import create_wandb_logger;"
        f"create_wandb_logger({str(tmp_path)!r}, {{}}).log_metrics({{'train/loss': 1}}, step=0)"
    )
    terminal, its_end = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "-c", code], stdin=its_end, stdout=its_end, stderr=its_end, timeout=200, check=True
        )
        output = os.read(terminal, 10_000).decode()
    finally:
        os.close(terminal)
        os.close(its_end)
    (run,) = read_runs(tmp_path)
    assert (losses_of(run.history), run.complete, run.exit_code) == ([1], True, 0)
    assert [line for line in output.splitlines() if "wandb" in line] == [
        "wandb logs offline: there is no login (`wandb login` or WANDB_API_KEY). "
        f"To upload the run later: wandb sync {run.folder}"
    ]


def test_a_killed_run_goes_on_below_a_program_that_uses_wandb_itself(tmp_path):
    (tmp_path / "own").mkdir()
    wandb.init(mode="offline", dir=tmp_path / "own").finish()
    assert "WANDB_SERVICE" in os.environ  # it serves what this process starts
    code = (
        "import os, sys;"
        "from keypoint_detection.train.wandb_logger import create_wandb_logger, finish_wandb;"
        f"logger = create_wandb_logger({str(tmp_path)!r}, {{}}, wandb_mode='offline', resume_id='abcd1234');"
        "sys.argv[1] == 'killed' and os.kill(os.getpid(), 9);"
        "finish_wandb(logger)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code, how], timeout=200, check=False) for how in ("killed", "goes on")
    ]
    assert [run.returncode for run in runs] == [-9, 0]
