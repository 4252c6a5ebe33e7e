"""Whole sweeps, of a program that takes the flags of a training and writes metrics as one does."""

import csv
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from optuna.trial import TrialState
from PIL import Image

from keypoint_detection.cli import main
from keypoint_detection.sweep import study as memory
from keypoint_detection.sweep.sweep_file import read_sweep_file
from keypoint_detection.sweep.training import end, seems_not_logged

# Each evaluation is better by `rate`; the metric of the whole run is twelve times that.
PROGRAM = """
import csv, sys, time
from pathlib import Path
flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])
run_dir = Path(flags["run_dir"])
with (run_dir / "starts").open("a") as starts:
    starts.write(flags["resume"] + "\\n")
if flags.get("outcome") == "failure":
    sys.exit("some words\\nerror: out of luck")
with (run_dir / "metrics.csv").open("w") as file:
    writer = csv.writer(file)
    writer.writerow(["step", "score", "train/loss", "validation/meanAP"])
    for step in range(12):
        writer.writerow([step, "", 1, ""])
        value = "nan" if flags.get("outcome") == "nan" else float(flags["rate"]) * (step + 1)
        writer.writerow([step, value, "", ""])
        file.flush()
        time.sleep(float(flags.get("wait", 0)) / float(flags["rate"]))
"""
RATES = {"rate": {"values": [0.5, 0.25, 1.0]}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("keypoint_detection.sweep.training.SECONDS_BETWEEN_LOOKS", 0.02)
    return tmp_path


def write_sweep(parameters, method="grid", **changes):
    content = {
        "program": "program.py",
        "command": ["${interpreter}", "-ISE", "${program}", "${args}"],  # starts faster
        "method": method,
        "metric": {"name": "score", "goal": "maximize"},
        "parameters": parameters,
    }
    Path("mine.yaml").write_text(yaml.safe_dump(content | changes))
    return ["sweep", "mine.yaml"]


def rows(name="mine"):
    with Path("sweeps", name, "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def starts(run):
    path = Path("sweeps", "mine", f"run-{run:04d}", "starts")
    return path.read_text().split() if path.exists() else []


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_grid_ends_with_a_ranked_table_and_a_picture(folder, capsys):
    assert main(write_sweep({**RATES, "wait": {"value": 0}})) == 0
    text = capsys.readouterr().out
    table = [line.split() for line in text.splitlines() if line[:1].isdigit()]
    assert [line[:4] for line in table] == [
        ["1", "run-0002", "12.0000", "complete"],
        ["2", "run-0000", "6.0000", "complete"],
        ["3", "run-0001", "3.0000", "complete"],
    ]
    assert [line[-1] for line in table] == ["1", "0.5", "0.25"]
    assert "sweeps/mine/run-0002" in text
    assert [(row["run"], float(row["score"]), row["wait"]) for row in rows()] == [
        ("run-0002", 12.0, "0"), ("run-0000", 6.0, "0"), ("run-0001", 3.0, "0"),
    ]  # fmt: skip
    picture = np.asarray(Image.open("sweeps/mine/parallel_coordinates.png").convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    assert [starts(run) for run in range(3)] == [["auto"]] * 3


def test_a_metric_to_minimize_is_ranked_the_other_way(folder):
    assert main(write_sweep(RATES, metric={"name": "score"})) == 0
    assert [float(row["score"]) for row in rows()] == [0.25, 0.5, 1.0]  # the best evaluation of each is its first


def test_the_same_command_goes_on_and_a_higher_count_adds_runs(folder):
    command = write_sweep({"rate": {"min": 0.0, "max": 1.0}}, method="random")
    assert main([*command, "--count", "2"]) == 0
    first = {row["run"]: row["rate"] for row in rows()}
    assert main([*command, "--count", "4"]) == 0
    assert {row["run"]: row["rate"] for row in rows()}.items() >= first.items()
    assert len({row["rate"] for row in rows()}) == 4
    assert [starts(run) for run in range(4)] == [["auto"]] * 4
    # A run draws the same numbers in whichever process it is.
    assert main([*command, "--count", "4", "--sweep_dir", "sweeps/again"]) == 0
    assert rows("again") == [{**row, "seconds": new["seconds"]} for row, new in zip(rows(), rows("again"), strict=True)]


def test_no_run_beyond_those_that_are_asked_for_is_made(folder):
    command = write_sweep({"rate": {"min": 0.0, "max": 1.0}}, method="random")
    Path("sweeps/mine").mkdir(parents=True)
    study = memory.open_study(read_sweep_file("mine.yaml"), Path("sweeps/mine"), None, memory.NopPruner())
    memory.add_runs(study, 5)
    trial = study.ask()  # the first run, which waits behind all others after it was interrupted
    memory.put_back(study, study.trials[trial.number])
    study.tell(trial, state=TrialState.FAIL)
    assert main([*command, "--count", "2"]) == 0
    assert sorted(path.name for path in Path("sweeps/mine").glob("run-*")) == ["run-0000", "run-0001"]
    assert main([*command, "--count", "5"]) == 0
    assert [starts(run) for run in range(5)] == [["auto"]] * 5


def test_a_folder_with_runs_of_another_sweep_is_refused_and_stays_as_it_is(folder, capsys):
    assert main([*write_sweep(RATES), "--sweep_dir", "sweeps/shared"]) == 0
    before = {path: path.read_bytes() for path in Path("sweeps/shared").rglob("*.csv")}
    assert len(before) > 1
    other = [*write_sweep({"rate": {"values": [7, 8]}}, name="other"), "--sweep_dir", "sweeps/shared"]
    for _ in range(2):
        assert main(other) == 2
        assert "--sweep_dir sweeps/shared: holds runs of another sweep" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("sweeps/shared").rglob("*.csv")} == before
    assert main([*write_sweep(RATES), "--sweep_dir", "sweeps/shared"]) == 0


def test_a_failed_run_is_reported_and_the_sweep_goes_on(folder, capsys, caplog):
    caplog.set_level("INFO")
    assert main(write_sweep({"rate": {"value": 1}, "outcome": {"values": ["failure", "nan", "success"]}})) == 1
    states = {row["outcome"]: (row["state"], row["problem"]) for row in rows()}
    assert states["success"] == ("complete", "")
    assert states["failure"][1].startswith("out of luck (exit code 1, ")
    assert Path(states["failure"][1].split(", ")[1].rstrip(")")).read_text() == "some words\nerror: out of luck\n"
    assert states["nan"] == ("failed", "score was never finite")
    assert "2 of 3 runs failed" in capsys.readouterr().out
    assert "run 0 failed: out of luck" in caplog.text


def test_failed_runs_are_started_again_if_asked_with_their_parameters(folder, capsys):
    command = write_sweep({"rate": {"values": [1, 2]}, "outcome": {"value": "failure"}})
    assert main(command) == 1
    assert "2 of 2 runs failed" in capsys.readouterr().out
    Path("program.py").write_text(PROGRAM.replace('flags.get("outcome") == "failure"', "False"))
    assert main(command) == 1
    assert [starts(run) for run in range(2)] == [["auto"]] * 2, "failed runs are started again without being asked to"
    assert main([*command, "--retry_failed"]) == 0
    assert [starts(run) for run in range(2)] == [["auto"] * 2] * 2
    assert {(row["rate"], row["state"], row["problem"]) for row in rows()} == {
        ("1", "complete", ""), ("2", "complete", "")
    }  # fmt: skip


def test_failed_runs_that_two_processes_put_back_at_once_are_started_once(folder):
    command = write_sweep({"rate": {"values": [1, 2]}, "outcome": {"value": "failure"}})
    assert main(command) == 1
    Path("program.py").write_text(PROGRAM.replace('flags.get("outcome") == "failure"', "False"))
    study = memory.open_study(read_sweep_file("mine.yaml"), Path("sweeps/mine"), None, memory.NopPruner())
    failed = study.trials
    for trial in [*failed, *failed]:
        memory.put_back(study, trial)
    assert main(command) == 0
    assert [starts(run) for run in range(2)] == [["auto"] * 2] * 2
    assert {row["state"] for row in rows()} == {"complete"}


def test_a_sweep_of_failures_stops(folder, capsys):
    assert main(write_sweep({"rate": {"min": 1, "max": 9}, "outcome": {"value": "failure"}})) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: mine.yaml: the first 3 runs all failed: out of luck")
    assert [row["state"] for row in rows()] == ["failed"] * 3 + ["waiting"] * 6
    # Once the cause is gone, the same command goes on with the others; else it stops after as many failures again.
    assert main(["sweep", "mine.yaml"]) == 2
    assert [row["state"] for row in rows()] == ["failed"] * 6 + ["waiting"] * 3
    Path("program.py").write_text(PROGRAM.replace("out of luck", "").replace('== "failure"', "is None"))
    assert main(["sweep", "mine.yaml"]) == 1
    assert sorted(row["state"] for row in rows()) == ["complete"] * 3 + ["failed"] * 6


def test_a_metric_that_no_run_logs_stops_the_sweep(folder, capsys):
    assert main(write_sweep(RATES, metric={"name": "validation/mAP", "goal": "maximize"})) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    problem = "metric.name 'validation/mAP': the run did not log it (did you mean validation/meanAP?)"
    assert error == f"error: mine.yaml: {problem}"


def test_a_metric_that_the_first_evaluations_do_not_log_is_told_and_waited_for(folder, capsys, caplog):
    evaluated = PROGRAM.replace('"score"', '"validation/mine"').replace('[step, value, "", ""]', "row(step, value)")
    row = "row = lambda step, value: [step, value if step % 4 == 3 else None, None, value]\n"  # every fourth
    Path("program.py").write_text(row + evaluated)
    parameters = {"rate": {"value": 1}, "wait": {"value": 0.1}}
    assert main(write_sweep(parameters, metric={"name": "validation/mine", "goal": "maximize"})) == 0
    (ended,) = rows()
    assert (ended["state"], ended["validation/mine"], ended["evaluations"]) == ("complete", "12.0", "3")
    (warning,) = [record for record in caplog.records if "evaluations did not log" in record.message]
    assert warning.message.startswith("run-0000: the first evaluations did not log validation/mine")
    # One that never comes is told at once, and is an error at the end.
    command = write_sweep(parameters, metric={"name": "validation/mAP", "goal": "maximize"}, name="other")
    caplog.clear()
    assert main(command) == 2
    assert [record.message for record in caplog.records if "evaluations did not log" in record.message] == [
        "run-0000: the first evaluations did not log validation/mAP (did you mean validation/meanAP?); the "
        "run fails unless it is logged before the end"
    ]
    line = "mine.yaml: metric.name 'validation/mAP': the run did not log it (did you mean validation/meanAP?)"
    assert capsys.readouterr().err.strip().splitlines()[-1] == f"error: {line}"
    assert [row["state"] for row in rows("other")] == ["failed"]
    # The same command trains no more, and says why.
    assert main(command) == 1
    assert capsys.readouterr().out.strip().splitlines()[-2:] == [
        "1 of 1 runs failed; see their output.log, or try them again with --retry_failed", f"  run-0000  {line}",
    ]  # fmt: skip


MEAN_AP, LOSSES = {"validation/meanAP": 0.5}, {"train/loss": 1.0}


@pytest.mark.parametrize(
    ("metric", "logged", "expected"),
    [
        ("validation/mAP", [LOSSES, MEAN_AP, LOSSES, MEAN_AP], True),
        ("validation/mAP", [LOSSES, MEAN_AP, LOSSES], False),  # may come right behind it, from a callback of the user's
        ("validation/mAP", [MEAN_AP, {"validation/mAP": 0.1}, MEAN_AP], False),
        ("validation/mAP", [{"validation/loss": 0.5}] * 2, False),  # of a validation without metrics
        ("validation/mAP", [LOSSES, LOSSES], False),
        ("validation/mAP", [], False),
        ("best/mAP", [MEAN_AP, MEAN_AP], False),  # comes after the training
        ("my_score", [MEAN_AP, MEAN_AP], False),
    ],
)
def test_when_evaluations_show_that_a_metric_is_not_logged(metric, logged, expected):
    columns = dict.fromkeys((name for row in logged for name in row), "")
    assert seems_not_logged([columns | row for row in logged], metric) is expected


def test_of_many_failed_runs_some_say_why(folder, capsys):
    assert main(write_sweep({"rate": {"value": 1}, "outcome": {"values": ["nan", "success", "failure", "nan"]}})) == 1
    *_, count, first, second, third = capsys.readouterr().out.strip().splitlines()
    assert count.startswith("3 of 4 runs failed")
    assert (first, third) == ("  run-0000  score was never finite", "  run-0003  score was never finite")
    assert second.startswith("  run-0002  out of luck (exit code 1, ")


@pytest.mark.parametrize(
    ("flags", "changes", "state"),
    [
        ([], {}, "pruned"),
        (["--prune", "false"], {}, "complete"),
        (["--prune_after", "12"], {}, "complete"),
        ([], {"early_terminate": {"type": "hyperband", "min_iter": 20}}, "complete"),
    ],
)
def test_a_hopeless_run_is_stopped_and_leaves_its_folder(folder, monkeypatch, flags, changes, state):
    monkeypatch.setattr(memory, "RUNS_BEFORE_PRUNING", 2)
    parameters = {"rate": {"values": [1, 1.1, 0.1]}, "wait": {"value": 0.02}}
    assert main([*write_sweep(parameters, **changes), *flags]) == 0
    last = rows()[-1]
    assert (last["rate"], last["state"]) == ("0.1", state)
    assert int(last["evaluations"]) < 12 if state == "pruned" else int(last["evaluations"]) == 12
    assert Path("sweeps/mine/run-0002/metrics.csv").exists()
    assert {row["state"] for row in rows()[:-1]} == {"complete"}


def start(*command, **environment):
    program = "import keypoint_detection.sweep.study as m; m.HEARTBEAT_SECONDS, m.GRACE_SECONDS = 1, 2; "
    # A background job of a shell ignores Ctrl-C, and so would all that it starts.
    program += "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "import sys; from keypoint_detection.cli import main; sys.exit(main())"
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", program, *command],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_goes_on_with_its_parameters(folder, monkeypatch, how):
    monkeypatch.setattr(memory, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(memory, "GRACE_SECONDS", 2)
    command = write_sweep({"rate": {"min": 0.5, "max": 1.0}, "wait": {"value": 0.1}}, method="bayes", run_cap=2)
    process = start(*command)
    metrics = Path("sweeps/mine/run-0000/metrics.csv")
    wait_for(metrics.exists)
    process.send_signal(how)
    error = process.communicate(timeout=60)[1].strip().splitlines()[-1]
    if how != signal.SIGKILL:
        assert (process.returncode, error) == (130, "interrupted")
        assert [row["state"] for row in rows()] == ["waiting", "waiting"]
    size = metrics.stat().st_size
    assert main(command) == 0
    assert [starts(run) for run in range(2)] == [["auto", "auto"], ["auto"]]
    assert [row["state"] for row in rows()] == ["complete", "complete"]
    assert len({row["rate"] for row in rows()}) == 2
    assert metrics.stat().st_size > size


def test_of_two_processes_one_at_a_time_looks_for_a_waiting_run(tmp_path):
    storage = memory._open_database(f"sqlite:///{tmp_path / 'study.db'}")
    other = sqlite3.connect(tmp_path / "study.db", timeout=0.1)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("SELECT * FROM trials")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
    other.execute("BEGIN IMMEDIATE")
    other.close()


def test_two_processes_share_the_runs(folder):
    command = write_sweep({"rate": {"min": 1, "max": 8}, "wait": {"value": 0.1}})
    both = [start(*command) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert [starts(run) for run in range(8)] == [["auto"]] * 8
    for output, error in outputs:
        assert 1 <= error.count(": score ") <= 7
        assert output.splitlines()[2].split()[:4] == ["1", "run-0007", "96.0000", "complete"]


@pytest.mark.parametrize(
    ("flags", "changes", "named"),
    [
        (["--storage", "nowhere"], {}, "--storage nowhere"),
        (["--storage", "postgresql://me:secret@127.0.0.1:1/x"], {}, "postgresql://me:***@127.0.0.1:1/x"),
        (["--sweep_dir", "program.py"], {}, "--sweep_dir program.py"),
        (["--prune_after", "-1"], {}, "--prune_after -1"),
        (["--count", "0"], {}, "--count 0"),
        (["--cout", "3"], {}, "cout"),
        ([], {"early_terminate": {"type": "envelope"}}, "mine.yaml: early_terminate is"),
        ([], {"early_terminate": {"min_iter": 0}}, "min_iter or max_iter of at least 1"),
        ([], {"early_terminate": {"min_iter": 3, "eta": 1}}, "eta of at least 2"),
        ([], {"early_terminate": {"max_iter": 27, "s": 0}}, "s of at least 1"),
        ([], {"early_terminate": "hyperband"}, "early_terminate is 'hyperband'"),
        ([], {"early_terminate": {"type": "hyperband", "min_iter": 2, "max_itr": 9}}, "early_terminate is"),
        ([], {"early_terminate": {"type": "hyperband", "min_iter": 9, "max_iter": 3}}, "min_iter not above max_iter"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, flags, changes, named, capsys):
    assert main([*write_sweep(RATES, **changes), *flags]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: ")
    assert named in error
    assert "secret" not in error
    assert not Path("sweeps/mine/run-0000").exists()


def test_another_sweep_of_the_same_name_is_refused(folder, capsys):
    assert main(write_sweep(RATES)) == 0
    assert main(write_sweep({"rate": {"value": 3}})) == 2
    assert (
        "was started with a different parameters.rate; expected the same as then, or another --sweep_dir"
        in capsys.readouterr().err.splitlines()[-1]
    )
    assert len(rows()) == 3


def test_without_the_extra_its_name_is_said(folder, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(write_sweep(RATES)) == 2
    assert "keypoint_detection[sweep]" in capsys.readouterr().err


@pytest.mark.parametrize(("ends", "code"), [(True, -signal.SIGTERM), (False, -signal.SIGKILL)])
def test_ctrl_c_while_a_training_ends_is_not_lost(monkeypatch, ends, code):
    reaction = "SIG_DFL" if ends else "SIG_IGN"
    script = f"import signal, time; signal.signal(15, signal.{reaction}); print(flush=True); time.sleep(60)"
    command = [sys.executable, "-ISc", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, bufsize=0) as process:
        process.stdout.readline()  # it has come to its sleep
        wait = process.wait

        def interrupted(timeout=None):
            process.wait = wait
            if ends:  # as where the user was slower than the training
                wait()
            raise KeyboardInterrupt

        monkeypatch.setattr(process, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            end(process)
        assert process.returncode == code
