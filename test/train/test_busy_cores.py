"""Training on cores that others keep busy is told so."""

from types import SimpleNamespace

import pytest
import torch

from keypoint_detection.train import busy_cores
from keypoint_detection.train.busy_cores import BusyCores

CPU = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
GPU = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda")))


@pytest.mark.parametrize(
    ("trainer", "threads", "waiting", "said"),
    [
        (CPU, 2, 0.26, "training waited for a free CPU core for 26 % of its first 16 s"),
        (CPU, 2, 0.24, None),
        (CPU, 1, 0.9, None),
        (GPU, 2, 0.9, None),
    ],
)
def test_waiting_for_cores_is_said_once(monkeypatch, tmp_path, caplog, trainer, threads, waiting, said):
    file, now = tmp_path / "schedstat", 100.0
    monkeypatch.setattr(busy_cores, "SCHEDULE", file)
    monkeypatch.setattr(busy_cores.time, "monotonic", lambda: now)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)

    def pass_on(seconds):
        nonlocal now
        now += seconds
        file.write_text(f"123 {round(waiting * now * 1e9)} 45\n")

    callback = BusyCores()
    pass_on(0)
    callback.on_train_start(trainer, None)
    for _ in range(12):  # 48 s
        pass_on(4)
        callback.on_train_batch_end(trainer, None, None, None, 0)
    assert [message.partition(";")[0] for message in caplog.messages] == ([said] if said else [])


def test_a_system_that_does_not_tell_is_not_asked(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(busy_cores, "SCHEDULE", tmp_path / "missing")
    callback = BusyCores()
    monkeypatch.setattr(busy_cores, "SECONDS", 0)
    callback.on_train_start(CPU, None)
    callback.on_train_batch_end(CPU, None, None, None, 0)
    assert not caplog.messages
