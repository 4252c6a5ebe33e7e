import logging

import torch
import torch._dynamo
from configuration import DEFAULT_HYPERPARAMETERS

from keypoint_detection import fit

SHORT = DEFAULT_HYPERPARAMETERS | {"wandb_mode": "disabled", "max_steps": 1, "max_epochs": 1, "max_pictures": 0}


def test_training_goes_on_where_nothing_can_be_compiled(tmp_path, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler found\nlong traceback")

    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level(logging.INFO, logger="keypoint_detection"):
        result = fit(**SHORT, compile=True, run_dir=str(tmp_path))
    assert result.best_checkpoint.exists()
    assert "not compiled, because torch.compile failed here: no C++ compiler found" in caplog.text
    # The line at the end that says where the time went.
    assert "time: data" in caplog.text
    assert "evaluation" in caplog.text


def test_compiling_is_chosen_by_a_flag(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: module)
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **options: compiled.append((type(module).__name__, options))
    )
    limits = torch._dynamo.config
    with limits.patch(recompile_limit=8):  # pytest's own way to patch would leave none behind
        fit(**SHORT, run_dir=str(tmp_path / "plain"))
        assert compiled == []
        assert limits.recompile_limit == 8
        fit(**SHORT, compile=True, run_dir=str(tmp_path / "compiled"))
        # A graph for all sizes, torch's own choice once images grow, does not compile.
        assert compiled == [("Unet", {"dynamic": False})]
        assert limits.recompile_limit >= 20, "five sizes, to train and to validate on, whole and last batches"
