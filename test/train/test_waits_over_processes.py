"""How often several processes of a training ask one another something: on GPUs they wait for these each time."""

import os
import signal
from collections import Counter

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from configuration import DEFAULT_HYPERPARAMETERS
from pytorch_lightning.utilities import rank_zero_only
from two_processes import free_port, run_in_two_processes

from keypoint_detection import fit
from keypoint_detection.errors import InputError
from keypoint_detection.train import train

FLAGS = DEFAULT_HYPERPARAMETERS | {
    "wandb_mode": "disabled", "max_pictures": 0, "devices": 2, "strategy": "ddp", "batch_size": 1, "max_epochs": 8,
    "max_time": "00:01:00:00", "validation_split_ratio": 0.1, "limit_val_batches": 0, "enable_progress_bar": False,
    "normalization": "group",  # batch normalisation has its sums besides
}  # fmt: skip
QUESTIONS = ("all_reduce", "broadcast", "broadcast_object_list", "all_gather", "all_gather_object", "barrier")


class Recorder(pl.Callback):
    """Counts what is asked from the first batch of an epoch to the second."""

    def __init__(self):
        self.asked, self.steps = Counter(), []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx:
            self.steps.append(dict(self.asked))
        self.asked.clear()

    def count(self, name):
        ask = getattr(dist, name)

        def counted(*args, **kwargs):
            self.asked[name] += 1
            return ask(*args, **kwargs)

        setattr(dist, name, counted)


def start_as_torchrun_does(rank, port):
    """What torchrun tells one of two processes."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    rank_zero_only.rank = rank  # which Lightning reads when it is imported, here before they were set


def train_in_process(rank, port, folder, results):
    """Body of one of two processes."""
    start_as_torchrun_does(rank, port)
    recorder, build = Recorder(), train.build_callbacks
    train.build_callbacks = lambda *arguments: [*build(*arguments), recorder]
    for name in QUESTIONS:
        recorder.count(name)
    detector = fit(**FLAGS, run_dir=str(folder)).detector
    results.put((rank, (recorder.steps, [value.sum().item() for value in detector.parameters()])))


def test_a_step_asks_the_other_processes_for_their_losses_alone(tmp_path):
    found = run_in_two_processes(train_in_process, free_port(), tmp_path / "run")
    (steps, weights), (other_steps, other_weights) = found[0], found[1]
    assert len(steps) == 8
    # The first ten steps may be all that there are, and ask for the time each.
    assert steps[5:] == other_steps[5:] == [{"all_reduce": 1}] * 3
    assert weights == other_weights


class Killed(pl.Callback):
    """Ends the second process as the system does one that takes too much memory."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch == 2 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(rank, port, folder, results):
    """Body of one of two processes, of which the second is killed."""
    start_as_torchrun_does(rank, port)
    build = train.build_callbacks
    train.build_callbacks = lambda *arguments: [*build(*arguments), Killed()]
    try:
        fit(**FLAGS, run_dir=str(folder))
    except InputError as error:
        results.put(str(error))


def test_a_process_that_is_killed_ends_the_other_one_with_what_goes_on(tmp_path):
    context, port = torch.multiprocessing.get_context("spawn"), free_port()
    results = context.SimpleQueue()
    arguments = [(rank, port, tmp_path / "run", results) for rank in range(2)]
    processes = [context.Process(target=train_until_killed, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert processes[1].exitcode == -signal.SIGKILL
    assert not results.empty()  # or the error was another one
    assert results.get() == (
        "another process of the training run has ended, perhaps for lack of memory; resume with the same flags and "
        f"--resume {tmp_path / 'run'}"
    )
