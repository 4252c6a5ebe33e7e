"""The commands of `docs/clusters.md`, run with two processes on the CPU in the place of GPUs and machines."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from configuration import TEST_DATASET
from two_processes import free_port

from keypoint_detection.evaluation.command import evaluate
from keypoint_detection.parent import FIRST_PROCESS

ROOT = TEST_DATASET.parents[1]
PAGE = (ROOT / "docs" / "clusters.md").read_text()
ANNOTATIONS = str(TEST_DATASET / "annotations.json")

# Four images to validate on.
QUICK = {
    "json_validation_dataset_path": ANNOTATIONS, "max_epochs": 2, "batch_size": 1, "num_workers": 0,
    "wandb_mode": "offline", "accelerator": "cpu", "enable_progress_bar": False, "max_pictures": 1, "heatmap_sigma": 4,
    "n_channels": 4, "n_downsampling_layers": 2, "n_resnet_blocks": 1,
}  # fmt: skip
FLAGS = " ".join(f"--{name} {value}" for name, value in QUICK.items())


def command(name, **replaced):
    """A command of the page, with the replacements that fit it to this machine."""
    (text,) = re.findall(rf"<!-- command: {name} -->\n```sh\n(.*?)```", PAGE, re.DOTALL)
    for old, new in {"data/annotations.json": ANNOTATIONS, "--devices 4": "--devices 2", **replaced}.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def environment(**variables):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}


def start(text, folder, **variables):
    return subprocess.Popen(
        ["bash", "-c", text], cwd=folder, env=environment(**variables),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def logged(folder, name):
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def check_one_run(folder):
    """One process has written everything, once."""
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (folder / "report.html").read_text().count("data:image/jpeg;base64,") == 4
    assert len(logged(folder, "validation/loss")) == 2


def test_one_machine_and_evaluate(tmp_path):
    process = start(command("one machine", **{"--resume auto": f"--resume auto {FLAGS}"}), tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    # what both would say
    assert output.count("--learning_rate ") == output.count("time: data ") == output.count("hardly learned: ") == 1
    assert output.count("4 images in both train and validation") == 1
    folder = tmp_path / "runs" / "boxes"
    check_one_run(folder)

    replaced = {"--accelerator gpu": "--accelerator cpu"}
    process = start(command("evaluate", **replaced), tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.count("AP and localisation error") == 1  # the table, once
    alone = evaluate(folder / "checkpoints" / "best.ckpt", ANNOTATIONS, device="cpu")
    assert '"images": 4' in (tmp_path / "metrics.json").read_text()
    several = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    expected = {name: None if value != value else value for name, value in alone.metrics.items()}
    assert several == pytest.approx(expected, abs=1e-6)
    for name in ("meanAP", "median_distance"):
        assert logged(folder, f"best/{name}") == pytest.approx([alone.metrics[name]], nan_ok=True)


def test_torchrun_on_two_machines(tmp_path):
    replaced = {
        "--devices 4": "--devices 1", "--nproc_per_node 4": "--nproc_per_node 1", "first-machine": "127.0.0.1",
        "29500": str(free_port()), "--resume auto": f"--resume auto {FLAGS}",
    }  # fmt: skip
    first = command("torchrun", **replaced)
    second = first.replace("--node_rank 0", "--node_rank 1")
    processes = [start(text, tmp_path) for text in (first, second)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    check_one_run(tmp_path / "runs" / "boxes")


SRUN = """#!/bin/bash
export SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 SLURM_JOB_NUM_NODES=1 SLURM_NODELIST=localhost SLURM_JOB_NAME=boxes
SLURM_PROCID=1 SLURM_LOCALID=1 SLURM_NODEID=0 "$@" & second=$!
SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 "$@" & first=$!
( while [ ! -f runs/boxes/checkpoints/last.ckpt ]; do sleep 0.2; done; kill -TERM $first $second ) &
wait $second; code=$?; wait $first; other=$?
exit $(( code > other ? code : other ))
"""


def test_slurm_job_that_has_to_go_saves_and_queues_again(tmp_path):
    for name, text in (("srun", SRUN), ("scontrol", '#!/bin/bash\necho "queued: $@"\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    replaced = {
        "--num_nodes 2": "--num_nodes 1",
        "--resume auto": f"--resume auto {FLAGS} --max_epochs 200 --ap_epoch_freq 100 --checkpoint_every_n_steps 1",
    }
    job = command("slurm", **replaced)
    path = os.pathsep.join([str(tmp_path), environment()["PATH"]])
    process = start(job, tmp_path, PATH=path, SLURM_JOB_ID="7123")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 143, output
    assert output.count("--learning_rate ") == 1  # what both would say
    assert "stopped by SIGTERM after step" in output
    assert "queued: requeue 7123" in output
    assert "Traceback" not in output


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to be told")
@pytest.mark.parametrize(("starter", "ends"), [("$$", True), ("1", False)])
def test_a_process_does_not_wait_for_a_first_one_that_has_started_it_and_was_killed(tmp_path, starter, ends):
    """The second of two, whose first one is killed before they have met: it would wait for days.

    One that a shell of the user's has started does not end with that.
    """
    asked = (
        f"predict --checkpoint none.ckpt --devices 2 --accelerator cpu --output {tmp_path / 'found.json'} {tmp_path}"
    )
    variables = {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    text = f"export {FIRST_PROCESS}={starter}; {sys.executable} -m keypoint_detection.cli {asked} & echo $!; wait"
    first = start(text, tmp_path, MASTER_PORT=str(free_port()), **variables)
    second = int(first.stdout.readline())
    try:
        while runs(second) and "libtorch" not in Path(f"/proc/{second}/maps").read_text():  # it is at work
            time.sleep(0.1)
        assert runs(second)
        first.kill()
        first.wait()
        end = time.monotonic() + (20 if ends else 2)
        while runs(second) and time.monotonic() < end:
            time.sleep(0.1)
        assert runs(second) is not ends
    finally:
        if runs(second):
            os.kill(second, signal.SIGKILL)
        first.stdout.close()
