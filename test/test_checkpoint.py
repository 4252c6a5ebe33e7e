"""What a checkpoint says of itself, and its weights in a file without anything else."""

import errno
import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from keypoint_detection.calibration import Calibration, ChannelCalibration
from keypoint_detection.checkpoint import describe, store_calibration
from keypoint_detection.cli import main
from keypoint_detection.errors import InputError
from keypoint_detection.models.backbones import BACKBONES
from keypoint_detection.models.checkpoint_file import VERSION_KEY, load_checkpoint
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.predict import KeypointPredictor
from keypoint_detection.version import library_version

HEATMAPS = {"heatmap_sigma": 6.0, "heatmap_stride": 4, "learning_rate": 6e-3}


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint as Lightning writes it, of a small detector, and the detector."""
    backbone = {"backbone_type": "DilatedCnn", "backbone": {"n_channels": 4}}
    detector = KeypointDetector(["left", "right"], **HEATMAPS, **backbone)
    detector.score_thresholds.copy_(torch.tensor([0.25, float("nan")]))
    content = {"state_dict": detector.state_dict(), "hyper_parameters": dict(detector.hparams), "epoch": 7}
    detector.on_save_checkpoint(content)
    content |= {"global_step": 120, "validation_metrics": {"meanAP": 0.5}, "pytorch-lightning_version": "2.6.0"}
    torch.save(content, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt", detector


def test_info_says_what_is_in_the_file(checkpoint, capsys):
    path, detector = checkpoint
    found = describe(path)
    assert found["channels"] == ["left", "right"]
    assert found["score_thresholds"] == {"left": 0.25, "right": None}
    # With the defaults of that time: the file builds the same network after they have changed.
    assert found["backbone"] == {
        "type": "DilatedCnn", "n_channels_in": 3, "n_channels": 4, "kernel_size": 3,
        "dilations": [1, 2, 4, 8, 16, 2, 1],
    }  # fmt: skip
    assert found["parameters"] == sum(parameter.numel() for parameter in detector.parameters())
    assert (found["epoch"], found["step"], found["metrics"]) == (7, 120, {"meanAP": 0.5})
    assert found["version"] == library_version()
    assert main(["checkpoint", "info", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "channels         left, right" in lines
    assert "score thresholds left 0.25, right -" in lines
    assert "calibration      -" in lines
    assert main(["checkpoint", "info", str(path), "--as_json=true"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_info_leaves_out_the_digests_of_the_training_images(checkpoint):
    path, _ = checkpoint
    content = torch.load(path, weights_only=True)
    content["evaluation"] = {"distances": [2.0], "trained_images": {"digests": "0123456789abcdef", "below": "g"}}
    torch.save(content, path)
    assert describe(path)["evaluation"] == {"distances": [2.0]}


def test_info_downloads_no_pretrained_weights(checkpoint, monkeypatch):
    path, _ = checkpoint
    asked = []
    monkeypatch.setattr(BACKBONES["DilatedCnn"], "load_pretrained", lambda self: asked.append(self))
    assert describe(path)["parameters"]
    assert not asked


def test_exported_weights_are_those_of_the_checkpoint(checkpoint, tmp_path):
    path, detector = checkpoint
    output = tmp_path / "weights.safetensors"
    assert main(["checkpoint", "export-weights", str(path), str(output)]) == 0
    weights = load_file(output)
    state = detector.state_dict()
    assert weights.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(weights[name].nan_to_num(-1), value.nan_to_num(-1)), name
    with safe_open(output, "pt") as file:
        values = json.loads(file.metadata()["hyper_parameters"])
    assert values["keypoint_channels"] == ["left", "right"]
    rebuilt = KeypointDetector(**values)
    rebuilt.load_state_dict(weights)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(images), detector.eval()(images))


def test_exported_weights_keep_the_record_of_thresholds_with_a_promise(checkpoint, tmp_path, capsys):
    path, _ = checkpoint
    found = {
        "left": ChannelCalibration(0.125, images=30, keypoints=41, measured_recall=0.9),
        "right": ChannelCalibration(None, images=3, keypoints=4, measured_recall=1.0, problem="too little data"),
    }
    store_calibration(path, Calibration(0.8, 4.0, {"labels": "a.json", "fingerprint": "0a"}, found))
    output = tmp_path / "weights.safetensors"
    assert main(["checkpoint", "export-weights", str(path), str(output)]) == 0
    kept, before = describe(output), describe(path)
    assert kept["score_thresholds"] == {"left": 0.125, "right": None}
    assert kept["calibration"]["channels"]["left"]["threshold"] == 0.125
    assert kept["calibration"]["data"] == {"labels": "a.json", "fingerprint": "0a"}
    assert (kept["calibration"], kept["metrics"]) == (before["calibration"], before["metrics"])
    capsys.readouterr()
    assert main(["checkpoint", "info", str(output)]) == 0
    assert "calibration      recall 0.8 within 4 px" in capsys.readouterr().out


@pytest.mark.parametrize("output", ["best.ckpt", "linked.safetensors", "./folder/../best.ckpt"])
def test_exported_weights_never_take_the_place_of_the_checkpoint(checkpoint, tmp_path, output, monkeypatch, capsys):
    path, _ = checkpoint
    (tmp_path / "folder").mkdir()
    (tmp_path / "linked.safetensors").symlink_to(path)
    before = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    assert main(["checkpoint", "export-weights", str(path), output]) == 2
    expected = f"error: {output}: would overwrite an input file, expected another name\n"
    assert capsys.readouterr().err == expected
    assert path.read_bytes() == before


@pytest.mark.parametrize("output", ["w.bin", "w", "w.safetensors.ckpt"])
def test_weights_get_a_name_by_which_they_are_read(checkpoint, tmp_path, output, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["checkpoint", "export-weights", str(checkpoint[0]), output]) == 2
    assert capsys.readouterr().err == f"error: {output}: expected a name that ends with .safetensors\n"
    assert not Path(output).exists()


def test_export_without_the_extra_names_it(checkpoint, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert main(["checkpoint", "export-weights", str(checkpoint[0]), "weights.safetensors"]) == 2
    assert "keypoint_detection[safetensors]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "is_newer"), [("0.0.9", False), ("0.1.99", False), ("0.2.0", True), ("1.0", True), ("99.9rc1", True)]
)
def test_a_checkpoint_of_a_newer_version_is_refused(checkpoint, monkeypatch, version, is_newer):
    path, _ = checkpoint
    monkeypatch.setattr("keypoint_detection.models.checkpoint_file.library_version", lambda: "0.1.3")
    torch.save(torch.load(path, weights_only=True) | {VERSION_KEY: version}, path)
    if not is_newer:
        assert load_checkpoint(path)[VERSION_KEY] == version
        return
    with pytest.raises(InputError, match=rf"best\.ckpt was written by version {version}.*at most 0\.1\.3"):
        load_checkpoint(path)


def test_a_checkpoint_without_a_version_is_read(checkpoint):
    path, _ = checkpoint
    content = torch.load(path, weights_only=True)
    del content[VERSION_KEY]
    torch.save(content, path)
    assert describe(path)["version"] is None


def test_a_hyperparameter_that_only_another_version_knows_is_refused_by_all_that_build(checkpoint, monkeypatch):
    path, _ = checkpoint
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] |= {"flag_of_another_version": 1}
    torch.save(content | {VERSION_KEY: "0.1.9"}, path)
    monkeypatch.setattr("keypoint_detection.models.checkpoint_file.library_version", lambda: "0.1.3")
    expected = (
        "{}: version 0.1.3 of keypoint_detection does not know the hyperparameter "
        "'flag_of_another_version'; version 0.1.9 wrote the file"
    )
    with pytest.raises(InputError) as error:
        KeypointPredictor(path, device="cpu")
    assert str(error.value) == expected.format(f"checkpoint {path}")
    with pytest.raises(InputError) as error:
        KeypointDetector.load_from_checkpoint(path)
    assert str(error.value) == expected.format("the checkpoint")


def test_an_unknown_name_in_the_place_of_a_hyperparameter_of_the_checkpoint_is_refused(checkpoint):
    path, _ = checkpoint
    assert KeypointDetector.load_from_checkpoint(path, max_keypoints=50, heatmap_stride=4).hparams.max_keypoints == 50
    unknown = r"^KeypointDetector's hyperparameter 'max_keypoint' is unknown, .*\(did you mean 'max_keypoints'"
    with pytest.raises(InputError, match=unknown):
        KeypointDetector.load_from_checkpoint(path, max_keypoint=50)
    with pytest.raises(InputError, match="hyperparameter 'load_pretrained' is unknown"):
        KeypointDetector.load_from_checkpoint(path, load_pretrained=True)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"loss": "huber", "loss_arguments": {"huber_delta": 0.2}},
            "loss 'huber' is unknown, expected one of: bce, mse, focal, awing; register your own first: "
            "LOSSES['huber'] = ...",
        ),
        (
            {"backbone_type": "Mine", "backbone": {"mine_width": 9}},
            "backbone_type 'Mine' is unknown, expected one of: Unet, DilatedCnn, S3K, Smp; register your own first: "
            "BACKBONES['Mine'] = ...",
        ),
    ],
)
def test_a_checkpoint_of_a_loss_or_a_backbone_of_ones_own_says_how_to_register_it(checkpoint, values, said):
    path, _ = checkpoint
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] |= values
    torch.save(content, path)
    with pytest.raises(InputError) as error:
        KeypointDetector.load_from_checkpoint(path)
    assert str(error.value) == said


def test_a_detector_of_ones_own_loads_with_hyperparameters_of_its_own(tmp_path):
    class Mine(KeypointDetector):
        def __init__(self, keypoint_channels, learning_rate=0.1, mine=1):
            heatmaps = {"heatmap_sigma": 6.0, "heatmap_stride": 4}
            super().__init__(keypoint_channels, **heatmaps, learning_rate=learning_rate, backbone={"n_channels": 4})
            self.save_hyperparameters({"noted": 2})

    detector = Mine(["left"], mine=3)
    content = {"state_dict": detector.state_dict(), "hyper_parameters": dict(detector.hparams)}
    torch.save(content | {"pytorch-lightning_version": "2.6.0"}, tmp_path / "own.ckpt")
    loaded = Mine.load_from_checkpoint(tmp_path / "own.ckpt", learning_rate=0.5)
    assert (loaded.hparams.mine, loaded.hparams.noted, loaded.hparams.learning_rate) == (3, 2, 0.5)
    with pytest.raises(InputError, match="Mine's hyperparameter 'mien' is unknown"):
        Mine.load_from_checkpoint(tmp_path / "own.ckpt", mien=4)


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [({"load_pretrained": True}, True), ({"flag_of_another_version": 1}, False), ({"weight_decay": None}, False)],
)
def test_info_of_hyperparameters_that_this_version_does_not_take(checkpoint, changes, parameters, capsys):
    path, detector = checkpoint
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] |= changes
    torch.save(content, path)
    count = sum(parameter.numel() for parameter in detector.parameters())
    assert describe(path)["parameters"] == (count if parameters else None)
    assert main(["checkpoint", "info", str(path)]) == 0
    assert f"parameters       {f'{count:,}' if parameters else '-'}" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["info", "missing.ckpt"], "missing.ckpt"),
        (["info"], "path"),
        (["inform", "best.ckpt"], "inform"),
        (["info", "best.ckpt", "--colour=1"], "colour"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, named, capsys):
    assert main(["checkpoint", *arguments]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: ")
    assert named in error


def test_an_empty_checkpoint_is_refused_with_a_reason(tmp_path):
    (tmp_path / "empty.ckpt").touch()
    with pytest.raises(InputError, match=r"empty\.ckpt is not the checkpoint of .*: the file is empty$"):
        load_checkpoint(tmp_path / "empty.ckpt")


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.9999, 1])
def test_a_checkpoint_that_is_cut_off_is_said_to_be_so(checkpoint, tmp_path, share):
    whole, path = checkpoint[0].read_bytes(), tmp_path / "cut.ckpt"
    path.write_bytes(whole[: round(share * len(whole)) - 1])
    with pytest.raises(
        InputError, match=r"cut\.ckpt is not the checkpoint of a keypoint detector: the file is truncated$"
    ):
        load_checkpoint(path)


def other_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no weights")


def no_head(path):
    path.write_bytes(bytes(1000) + path.read_bytes()[1000:])


def compiled(path):
    torch.jit.save(torch.jit.script(torch.nn.Identity()), path)


@pytest.mark.parametrize("write", [other_archive, no_head, compiled])
def test_what_torch_did_not_save_is_told_in_a_few_words_and_without_advice_to_run_it(checkpoint, write):
    path, _ = checkpoint
    write(path)
    with pytest.raises(InputError) as error:
        load_checkpoint(path)
    text = "is not the checkpoint of a keypoint detector: it was not written by torch.save, or contains code"
    assert str(error.value) == f"checkpoint {path} {text}"


def test_want_of_memory_is_not_taken_for_another_file(checkpoint, monkeypatch):
    def refuse(*arguments, **more):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    monkeypatch.setattr("torch.load", refuse)
    with pytest.raises(InputError, match="DefaultCPUAllocator"):
        load_checkpoint(checkpoint[0])


def test_the_actions_are_listed(capsys):
    assert main(["checkpoint", "-h"]) == 0
    text = capsys.readouterr().out
    assert "info " in text
    assert "export-weights " in text
    with pytest.raises(SystemExit):
        main(["checkpoint", "info", "-h"])
    assert capsys.readouterr().out.startswith("usage: keypoint-detection checkpoint info PATH [--flag value ...]\n")


def test_a_checkpoint_still_loads_after_a_default_has_changed(tmp_path, monkeypatch):
    detector = KeypointDetector(["left"], **HEATMAPS, backbone={"n_channels": 4}, loss="focal")
    content = {"state_dict": detector.state_dict(), "hyper_parameters": dict(detector.hparams)}
    torch.save(content | {"pytorch-lightning_version": "2.6.0"}, tmp_path / "best.ckpt")
    constructor = BACKBONES["Unet"].__init__
    changed = {"n_downsampling_layers": 2, "kernel_size": 5}
    monkeypatch.setattr(constructor, "__kwdefaults__", constructor.__kwdefaults__ | changed)
    smaller = KeypointDetector(["left"], **HEATMAPS, backbone={"n_channels": 4})
    assert len(smaller.state_dict()) < len(detector.state_dict())
    loaded = KeypointDetector.load_from_checkpoint(tmp_path / "best.ckpt")
    assert all(torch.equal(value.nan_to_num(), loaded.state_dict()[name].nan_to_num())
               for name, value in detector.state_dict().items())  # fmt: skip


def test_weights_that_do_not_fit_are_one_line(checkpoint):
    path, _ = checkpoint
    content = torch.load(path, weights_only=True) | {"pytorch-lightning_version": "2.6.0"}
    content["hyper_parameters"]["backbone"]["n_channels"] = 8
    torch.save(content, path)
    with pytest.raises(InputError, match=r"best\.ckpt: its weights") as error:
        KeypointPredictor(path, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"a: [1\n b: 2", b"{}", b"(", b"0", b"G12", b"\x80\x02}q\x00."])
def test_other_files_are_no_checkpoints(tmp_path, content):
    path = tmp_path / "other.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"other\.ckpt is not the checkpoint of a keypoint detector: [^\n]+$"):
        load_checkpoint(path)


def test_the_folder_of_a_run_is_told_from_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"is a folder, expected a file such as .*best\.ckpt"):
        load_checkpoint(tmp_path)


def test_a_folder_of_checkpoints_is_told_the_one_for_use(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    with pytest.raises(InputError) as raised:
        load_checkpoint(folder)
    assert str(raised.value) == f"checkpoint {folder} is a folder, expected a file such as {folder}/best.ckpt"


@pytest.mark.parametrize("what", ["torch.load", "pathlib.Path.is_file"], ids=["the file", "its folder"])
@pytest.mark.parametrize(
    "command", [["checkpoint", "info"], ["predict", "image.png", "--output=f.json", "--checkpoint"]]
)
def test_a_checkpoint_that_must_not_be_read_is_one_line_and_exit_code_2(checkpoint, what, command, monkeypatch, capsys):
    def refuse(*arguments, **more):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.chdir(checkpoint[0].parent)
    Image.new("L", (8, 8)).save("image.png")
    monkeypatch.setattr(what, refuse)
    assert main([*command, str(checkpoint[0])]) == 2
    assert capsys.readouterr().err == f"error: checkpoint {checkpoint[0]} cannot be read: Permission denied\n"


def test_weights_that_need_an_extra_are_not_called_none_of_a_detector(tmp_path, monkeypatch):
    (tmp_path / "weights.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(InputError, match=r"^\S+weights\.safetensors needs the extra safetensors"):
        load_checkpoint(tmp_path / "weights.safetensors")


def test_weights_that_cannot_be_written_are_an_error_in_the_words_of_other_commands(checkpoint, capsys):
    output = checkpoint[0] / "weights.safetensors"  # below a file
    assert main(["checkpoint", "export-weights", str(checkpoint[0]), str(output)]) == 2
    assert capsys.readouterr().err == f"error: {output}: cannot be written (Not a directory)\n"
