"""A training that starts from the weights of another one."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from configuration import DEFAULT_HYPERPARAMETERS
from data_sets import write_data_set

from keypoint_detection import KeypointDetector, fit
from keypoint_detection.cli import main
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.trained_images import TrainedImages
from keypoint_detection.errors import InputError
from keypoint_detection.train.build import check_detector
from keypoint_detection.train.fine_tune import TrainedWeights, find_trained_weights
from keypoint_detection.train.flags import build_parser

SHORT = DEFAULT_HYPERPARAMETERS | {
    "wandb_mode": "disabled",
    "max_epochs": 1,
    "max_pictures": 0,
    "keypoint_channels": "corner_keypoints",
    "keypoint_channel_max_keypoints": None,
}
BACKBONE = {"n_channels": 6, "n_downsampling_layers": 2, "n_resnet_blocks": 0}


@pytest.fixture
def trained(tmp_path):
    """A detector with another stride and backbone than the flags have, in a file."""
    torch.manual_seed(7)
    detector = KeypointDetector(
        ["corner_keypoints", "nose"], backbone=BACKBONE, heatmap_sigma=4.0, heatmap_stride=2, learning_rate=6e-3
    )
    content = {"state_dict": detector.state_dict(), "hyper_parameters": dict(detector.hparams)}
    torch.save(content, tmp_path / "trained.ckpt")
    return detector, tmp_path / "trained.ckpt"


def without(names):
    return {name: value for name, value in SHORT.items() if name not in names}


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_frozen_parts_stay_and_the_rest_learns(tmp_path, trained, caplog, suffix):
    detector, path = trained
    if suffix == ".safetensors":
        assert main(["checkpoint", "export-weights", str(path), str(path.with_suffix(suffix))]) == 0
        path = path.with_suffix(suffix)
    caplog.set_level(logging.INFO, "keypoint_detection")
    flags = without(BACKBONE) | {"checkpoint": str(path), "freeze_encoder_epochs": -1, "ema_decay": 0}
    found = fit(
        **flags | {"keypoint_channels": "flap_corner_keypoints corner_keypoints"}, run_dir=str(tmp_path / "run")
    )
    own = found.detector
    assert {name: own.hparams.backbone[name] for name in BACKBONE} == BACKBONE
    assert own.hparams.heatmap_stride == 2
    for name, value in detector.backbone.encoder.named_parameters():
        assert torch.equal(value, own.backbone.encoder.get_parameter(name)), name
    changed = [
        not torch.equal(value, own.backbone.decoder.get_parameter(name))
        for name, value in detector.backbone.decoder.named_parameters()
    ]
    assert sum(changed) > len(changed) / 2
    # The row of the channel that both know has moved a little, the other one is nowhere near.
    new, known = ((own.head.weight[row] - detector.head.weight[0]).abs().max() for row in (0, 1))
    assert 0 < known < 0.006 < new
    text = caplog.text
    count = len(detector.state_dict()) - 1
    assert f"--checkpoint {path}: loaded {count} of {count} weights" in text
    assert "continued channels: corner_keypoints" in text
    assert "--progressive_resizing 0.0 (auto: from weights that know 1 of 2 channels)" in text
    assert "new channels: flap_corner_keypoints" in text
    encoder = sum(value.numel() for value in detector.backbone.encoder.parameters())
    assert f"; the {encoder:,} of the encoder are frozen\n" in text


def test_weights_of_unknown_training_images_are_not_said_to_be_known_whole(tmp_path):
    path = write_data_set(tmp_path, [(20, 10)] * 2, [{"a": [[1, 2]]}] * 2)
    weights = TrainedWeights("older.ckpt", {"state_dict": {}, "hyper_parameters": {}})
    images = read_annotations(path, tmp_path)
    record = TrainedImages.of(images).joined(weights.images)
    assert record.tell(images) == "at least 2 of 2 images (first: 000.png)"
    assert not record.is_complete


def test_a_channel_is_continued_under_a_new_name(tmp_path, trained, caplog):
    detector, path = trained
    caplog.set_level(logging.INFO, "keypoint_detection")
    flags = without(BACKBONE) | {"checkpoint": str(path), "ema_decay": 0}
    names = "corner=corner_keypoints flap_corner_keypoints"
    found = fit(**flags | {"keypoint_channels": names}, run_dir=str(tmp_path / "run"))
    continued, new = ((found.detector.head.weight[row] - detector.head.weight[0]).abs().max() for row in (0, 1))
    assert 0 < continued < 0.006 < new
    assert f"--checkpoint {path}: continues its channel corner_keypoints as corner" in caplog.messages
    assert "  continued channels: corner" in caplog.messages
    assert "  new channels: flap_corner_keypoints" in caplog.messages
    assert "  unused channels: nose" in caplog.messages
    assert "--progressive_resizing 0.0 (auto: from weights that know 1 of 2 channels)" in caplog.text


@pytest.mark.parametrize(
    ("known", "asked_for", "named"),
    [
        (["paw", "nose"], None, ["paw", "nose"]),
        (["paw", "nose"], "nose", ["paw", "nose"]),
        (["paw", "nose"], "nose foot=paw", ["foot", "nose"]),
        (["paw", "nose"], ["left foot=paw", "nose"], ["left foot", "nose"]),
        (["paw", "nose"], "foot=hand=paw", ["foot", "nose"]),
        (["paw", "foot"], "foot=paw", ["paw", "foot"]),  # two that are merged: the own name tells which
        (["paw", "hand"], "foot=paw=hand", ["paw", "hand"]),  # nothing tells which
        (["paw", "foot=paw"], "foot=paw", ["paw", "foot=paw"]),  # a name with an equals sign
        (["paw", "nose"], "foot=paw paw=hand", ["foot", "nose"]),
    ],
)
def test_weights_call_their_channels_as_the_new_run_does(tmp_path, known, asked_for, named):
    detector = KeypointDetector(known, backbone=BACKBONE, heatmap_sigma=4.0, heatmap_stride=2, learning_rate=6e-3)
    content = {"state_dict": detector.state_dict(), "hyper_parameters": dict(detector.hparams)}
    torch.save(content, tmp_path / "trained.ckpt")
    weights = find_trained_weights(str(tmp_path / "trained.ckpt"))
    assert weights.renamed(asked_for).channels({}) == named
    assert weights.channels({}) == known


@pytest.mark.parametrize(
    ("given", "warning"),
    [
        ({}, None),
        ({"freeze_encoder_epochs": -1}, "--freeze_encoder_epochs -1"),
        ({"freeze_encoder_epochs": 2, "backbone_type": "S3K"}, "--freeze_encoder_epochs 2"),
        ({"encoder_learning_rate_factor": 0.0}, "--encoder_learning_rate_factor 0.0"),
        ({"encoder_learning_rate_factor": 0.1}, None),
        ({"freeze_encoder_epochs": -1, "checkpoint": "best.ckpt"}, None),
        ({"freeze_encoder_epochs": -1, "backbone_type": "Smp"}, "--freeze_encoder_epochs -1"),
        ({"freeze_encoder_epochs": -1, "backbone_type": "Smp", "pretrained": True}, None),
        ({"freeze_encoder_epochs": -1, "backbone_type": "Smp", "encoder_weights": "a.pth"}, None),
    ],
)
def test_an_encoder_that_is_frozen_at_random_weights_is_warned_of(given, warning, caplog):
    config = build_parser().parse_object({"json_dataset_path": "a.json", "encoder": "resnet18"} | given)
    check_detector(config.as_dict())
    said = "an encoder with neither pretrained weights nor --checkpoint keeps its random weights"
    while_frozen = " for 2 epochs" if warning and warning.endswith(" 2") else ""
    assert caplog.messages == ([f"{warning}: {said}{while_frozen}"] if warning else [])


def test_a_resumed_training_is_not_thrown_back_to_the_start(tmp_path, trained):
    flags = without(BACKBONE) | {"checkpoint": str(trained[1]), "run_dir": str(tmp_path / "run"), "resume": "auto"}
    fit(**flags)
    longer = fit(**flags | {"max_epochs": 2})
    assert torch.load(longer.run_dir / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_images_of_the_weights_are_trained_on_again_and_stay_on_record(tmp_path, caplog):
    path = write_data_set(tmp_path, [(16, 16)] * 40, [{"a": [[3, 4]]}] * 40)
    images = read_annotations(path, tmp_path)
    content = json.loads(path.read_text())
    content["dataset"] = content["dataset"][:20]
    (tmp_path / "old.json").write_text(json.dumps(content))
    flags = SHORT | {"keypoint_channels": "a", "image_dataset_path": str(tmp_path), "validation_split_ratio": 0.25}
    first = fit(**flags | {"json_dataset_path": str(tmp_path / "old.json")}, run_dir=str(tmp_path / "first"))
    trained = set(json.loads((first.run_dir / "split.json").read_text())["train"])
    flags |= {"json_dataset_path": str(path), "checkpoint": str(first.best_checkpoint), "resume": "auto"}
    second = fit(**flags, run_dir=str(tmp_path / "second"))
    split = json.loads((second.run_dir / "split.json").read_text())
    assert len(split["validation"]) == 6  # a quarter of the 25 that are new
    assert not trained & set(split["validation"])
    content = json.loads(path.read_text())
    content["dataset"] = [entry for entry in content["dataset"] if entry["image_path"] not in trained][:20]
    (tmp_path / "new.json").write_text(json.dumps(content))
    flags |= {"json_dataset_path": str(tmp_path / "new.json"), "checkpoint": str(second.best_checkpoint)}
    flags |= {"json_validation_dataset_path": str(tmp_path / "old.json"), "run_dir": str(tmp_path / "third")}
    third = fit(**flags)
    assert "validation: --checkpoint was trained on " in caplog.text
    before = torch.load(third.run_dir / "checkpoints" / "last.ckpt", weights_only=True)["evaluation"]
    expected = trained | set(split["train"]) | {entry["image_path"] for entry in content["dataset"]}
    found, _ = TrainedImages.from_record(before["trained_images"]).recognise(images)
    assert {images.name(index) for index in np.flatnonzero(found)} == expected
    caplog.clear()
    resumed = fit(**flags | {"max_epochs": 2})
    assert "--checkpoint was trained on" not in caplog.text
    after = torch.load(resumed.run_dir / "checkpoints" / "last.ckpt", weights_only=True)["evaluation"]
    assert after == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"checkpoint": "nowhere.ckpt"}, "checkpoint nowhere.ckpt does not exist"),
        ({"checkpoint": "us/boxes/model-x:best"}, "us/boxes/model-x:best: no such file, and as a wandb artifact"),
        ({"backbone_type": "S3K"}, "has backbone_type Unet, expected S3K; pass --backbone_type Unet"),
        ({"n_channels": 5}, "none of its weights fits"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing_behind(tmp_path, trained, changes, named):
    flags = without(BACKBONE) | {"checkpoint": str(trained[1])} | changes
    with pytest.raises(InputError) as error:
        fit(**flags, run_dir=str(tmp_path / "run"))
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_backbone_that_is_not_registered_is_not_asked_for(tmp_path, trained):
    content = torch.load(trained[1], weights_only=True)
    content["hyper_parameters"]["backbone_type"] = "Mine"
    torch.save(content, tmp_path / "mine.ckpt")
    with pytest.raises(InputError) as error:
        fit(**SHORT, checkpoint=str(tmp_path / "mine.ckpt"))
    assert str(error.value) == (
        f"--checkpoint {tmp_path}/mine.ckpt needs the backbone Mine, which is not registered: add it to its registry "
        "before loading"
    )


def test_without_a_checkpoint_everything_starts_anew():
    assert find_trained_weights(None) is None


def test_weights_come_from_a_wandb_artifact(tmp_path, trained, monkeypatch):
    detector, path = trained
    asked = []

    class Artifact:
        files = ("model.ckpt",)

        def download(self, root):
            for name in self.files:
                shutil.copy(path, Path(root) / name)

    class Api:
        def artifact(self, name, type):
            asked.append((name, type))
            return Artifact()

    monkeypatch.setattr("keypoint_detection.train.fine_tune.login_trouble", lambda: None)
    monkeypatch.setattr("keypoint_detection.train.fine_tune.wandb.Api", Api)
    found = find_trained_weights("someone/boxes/model-1:best")
    assert asked == [("someone/boxes/model-1:best", "model")]
    assert torch.equal(found.content["state_dict"]["head.weight"], detector.head.weight)
    Artifact.files = ("a.ckpt", "b.ckpt")
    with pytest.raises(InputError, match=r"expected one \.ckpt or \.safetensors file in it, found a\.ckpt, b\.ckpt"):
        find_trained_weights("someone/boxes/model-1:best")


@pytest.mark.parametrize(("given", "known"), [({}, 2), ({"n_channels": 6}, 2), ({"n_channels": 8}, 0)])
def test_a_network_that_few_weights_fit_knows_no_channel(trained, given, known):
    weights = find_trained_weights(str(trained[1]))
    flags = dict.fromkeys(BACKBONE) | {"backbone_type": "Unet", "heatmap_stride": "auto"} | given
    assert weights.channels(weights.inherit(flags)) == ["corner_keypoints", "nose"][:known]


def test_weights_fit_the_flags_of_their_own_network(tmp_path):
    detector = KeypointDetector(
        ["nose"], backbone_type="DilatedCnn", backbone={"n_channels": 4, "dilations": (1, 2)},
        heatmap_sigma=4.0, heatmap_stride=2, learning_rate=6e-3,
    )  # fmt: skip
    content = {"state_dict": detector.state_dict(), "hyper_parameters": dict(detector.hparams)}
    torch.save(content, tmp_path / "trained.ckpt")
    network = ["--backbone_type", "DilatedCnn", "--n_channels", "4", "--dilations", "[1, 2]"]
    flags = build_parser().parse_args(["--json_dataset_path", "labels.json", *network]).as_dict()
    weights = find_trained_weights(str(tmp_path / "trained.ckpt"))
    assert weights.channels(weights.inherit(flags)) == ["nose"]
    assert weights.channels(weights.inherit(flags | {"dilations": (1, 3)})) == []
