import inspect
import os
import re
import threading

import pytest
import pytorch_lightning as pl
import torch
import yaml
from configuration import DEFAULT_HYPERPARAMETERS, DEFAULT_SWEEP, TEST_DATASET

from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.errors import InputError
from keypoint_detection.flags import call
from keypoint_detection.metrics.distances import parse_distances
from keypoint_detection.models.backbones import BACKBONES, Backbone, Unet
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.train import flags
from keypoint_detection.train.trainer import NOT_FLAGS

# Names that sweeps of existing users rely on.
PROMISED = [
    "keypoint_channels",
    "keypoint_channel_max_keypoints",
    "image_dataset_path",
    "json_dataset_path",
    "batch_size",
    "validation_split_ratio",
    "num_workers",
    "seed",
    "wandb_project",
    "wandb_entity",
    "wandb_name",
    "backbone_type",
    "n_channels_in",
    "n_channels",
    "n_resnet_blocks",
    "n_downsampling_layers",
    "kernel_size",
    "loss",
    "heatmap_sigma",
    "learning_rate",
    "minimal_keypoint_extraction_pixel_distance",
    "maximal_gt_keypoint_pixel_distances",
    "ap_epoch_start",
    "ap_epoch_freq",
    "max_keypoints",
    "early_stopping_relative_threshold",
    "augment_train",
    "keypoint_coordinates",
    "cache_images",
    "json_validation_dataset_path",
    "json_test_dataset_path",
    "wandb_mode",
    "run_dir",
    "max_epochs",
    "max_time",
    "accelerator",
    "devices",
    "precision",
    "log_every_n_steps",
    "limit_train_batches",
    "accumulate_grad_batches",
    "profiler",
    "image_size",
    "heatmap_stride",
    "threshold_unit",
    "flip_pairs",
    "empty_channels",
]


@pytest.fixture(scope="module")
def parser():
    return flags.build_parser()


def parse(parser, *arguments):
    return parser.parse_args(["--json_dataset_path", "a.json", *arguments])


@pytest.mark.parametrize("name", PROMISED)
def test_promised_flags_exist_and_are_explained(parser, name):
    action = next(action for action in parser._actions if action.dest == name)
    assert len(action.help) > 15


def test_help_groups_the_flags_and_shows_defaults(parser):
    text = parser.format_help()
    assert "%(" not in text
    assert "Augmentation of the training images:" in text
    assert "(default: bce)" in text
    assert "Union[" not in text
    assert "Unet: " in text


def test_a_flag_of_several_backbones_is_explained_for_each_where_they_differ(parser):
    explained = {action.dest: action.help for action in parser._actions}
    assert explained["n_channels"].startswith("Unet: Channels at stride 4.")
    assert "DilatedCnn: Channels of every layer. S3K: Channels of the residual blocks" in explained["n_channels"]
    assert explained["n_channels_in"].count("average RGB to gray") == 1


def test_a_backbone_of_ones_own_may_pass_the_arguments_of_another_on(monkeypatch):
    class Wider(Unet):
        """A Unet that is explained nowhere."""

        def __init__(self, *args, n_channels: int = 8, slack: float = 0.5, **kwargs):
            super().__init__(*args, n_channels=n_channels, **kwargs)

    monkeypatch.setitem(flags.BACKBONES, "Wider", Wider)
    explained = {action.dest: action.help for action in flags.build_parser()._actions}
    assert "slack" in explained
    assert {"args", "kwargs"}.isdisjoint(explained)
    assert explained["n_channels"].endswith("Wider: 8)")
    assert explained["n_channels"].count("Wider: ") == 1


@pytest.mark.parametrize("name", ["decoder", "optimizer", "empty_channels", "corrupt_images", "learning_rate_schedule"])
def test_values_are_written_in_help_as_they_have_to_be_given(parser, name):
    # A text begins with a capital, which a value has not.
    text = next(action.help for action in parser._actions if action.dest == name)
    assert not text.startswith(("Unet,", "Muon ", "Absent", "Raise", "Cosine"))


def test_the_folder_of_the_images_may_be_left_out(parser):
    assert "--json_dataset_path FILE [--image_dataset_path FOLDER]" in parser.usage


@pytest.mark.parametrize("columns", ["80", "100"])
def test_the_first_help_fits_a_screen_and_explains_the_usual_flags(parser, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    text = flags.usual_help(parser)
    assert len(text.splitlines()) <= 48
    for name in flags.USUAL:
        assert f"  --{name}" in text
    assert "--help_all explains all" in text
    assert "  --brightness" not in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("heatmap_stride", "Pixels of the network's input per cell of the heatmaps, 1, 2 or 4 (default: auto)"),
        ("validation_split_ratio", "Share of the images that is split off for validation if no file is given"),
        ("empty_channels", "What a channel without keypoints means, absent or ignore (default: absent)"),
        ("checkpoint", "Start from these trained weights"),
        ("wandb_mode", "How to log to wandb, online, offline or disabled (default: auto)"),
        ("backbone_type", "Unet, DilatedCnn, S3K, Smp (default: Unet)"),
        ("loss", "bce, mse, focal, awing (default: bce)"),
    ],
)
def test_the_first_help_says_what_may_be_given(parser, name, said, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    explained = dict(re.findall(r"^  --(\w+) +(.*)$", flags.usual_help(parser), re.MULTILINE))
    assert explained[name].startswith(said)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--augment_train", "--max_epochs", "3"], True),
        (["--augment_train"], True),
        (["--augment_train", "auto"], "auto"),
        (["--augment_train", "false"], False),
        (["--fast_dev_run", "3"], 3),
        (["--fast_dev_run"], True),
        (["--wandb_log_model", "--max_epochs", "3"], True),
    ],
)
def test_a_switch_may_stand_alone(parser, arguments, expected):
    assert parse(parser, *arguments)[arguments[0][2:]] == expected


def test_defaults_come_from_the_signatures(parser):
    config = parse(parser)
    assert config.max_keypoints == inspect.signature(KeypointDetector).parameters["max_keypoints"].default
    assert config.n_channels is None  # the chosen backbone's own default


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("3", 3), ("1.0", 1.0), ("0.5", 0.5)])
def test_a_number_of_batches_is_told_from_a_share_of_them(parser, text, value):
    for name in ("limit_train_batches", "limit_val_batches", "val_check_interval"):
        found = parse(parser, f"--{name}", text)[name]
        assert (found, type(found)) == (value, type(value))
        found = parser.parse_object({"json_dataset_path": "a.json", name: value})[name]
        assert (found, type(found)) == (value, type(value))


def test_booleans_are_read_as_a_sweep_agent_writes_them(parser):
    assert parse(parser, "--augment_train=False").augment_train is False
    assert parse(parser, "--cache_images=True").cache_images is True


@pytest.mark.parametrize("arguments", [["--max_epochs", "none"], ["--max_epochs=None"]])
def test_none_is_no_value_as_messages_and_help_say(parser, arguments):
    arguments += ["--gradient_clip_val", "none", "--profiler", "none", "--check_val_every_n_epoch", "none"]
    config = parse(parser, *arguments, "--image_size", "none")
    assert config.max_epochs is config.gradient_clip_val is config.profiler is config.check_val_every_n_epoch is None
    assert config.image_size == "none"  # which is a text, and a choice of its own


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--learnin_rate", "1"], "learnin_rate"),
        (["--max_epochs", "many"], "--max_epochs many: expected a whole number or none"),
        (["--batch_size", "1.5"], "--batch_size 1.5: expected a whole number or auto"),
        (["--seed", "x"], "--seed x: expected a whole number"),
        (["--heatmap_stride", "3"], "--heatmap_stride 3: expected one of 1, 2, 4, auto"),
        (["--heatmap_sigma", "wide"], "heatmap_sigma"),
        (["--wandb_mode", "sometimes"], "wandb_mode"),
        (["--augment_train", "perhaps"], "augment_train"),
    ],
)
def test_wrong_flags_are_one_line_that_names_the_flag(parser, arguments, named):
    with pytest.raises(InputError) as error:
        parse(parser, *arguments)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_required_flag_is_named(parser):
    with pytest.raises(InputError, match="json_dataset_path"):
        parser.parse_args([])


@pytest.mark.parametrize("given", [["--resume", "runs/x"], ["--resume=auto", "--run_dir", "runs/x"]])
def test_where_a_training_is_to_go_on_its_flags_are_asked_for(parser, given):
    with pytest.raises(InputError) as error:
        parser.parse_args(given)
    assert str(error.value) == (
        "missing: --json_dataset_path (-h lists the flags); --resume needs the same flags again, or --config "
        "with the run's hparams.yaml"
    )


def test_values_from_python_are_validated_like_flags(parser):
    config = parser.parse_object(DEFAULT_HYPERPARAMETERS)
    assert config.n_channels == 4
    with pytest.raises(InputError, match="no_such_flag"):
        parser.parse_object(DEFAULT_HYPERPARAMETERS | {"no_such_flag": 1})
    with pytest.raises(InputError, match="max_epochs"):
        parser.parse_object(DEFAULT_HYPERPARAMETERS | {"max_epochs": "two"})
    with pytest.raises(InputError, match="--weight_decay: expected a value, found none"):
        parser.parse_object(DEFAULT_HYPERPARAMETERS | {"weight_decay": None})


def test_a_configuration_file_gives_flags_that_the_command_line_overrides(parser, tmp_path):
    path = tmp_path / "flags.yaml"
    path.write_text(yaml.safe_dump({"json_dataset_path": "b.json", "max_epochs": 7, "batch_size": 3}))
    config = parser.parse_args(["--config", str(path), "--batch_size", "5"])
    assert (config.json_dataset_path, config.max_epochs, config.batch_size) == ("b.json", 7, 5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"max_epochs: [oops", "while parsing a flow sequence line 1"),
        (b"max_epoch: 3", "unknown flag: max_epoch (did you mean max_epochs"),
        (b"max_epochs: many", "--max_epochs many: expected a whole number"),
        (b"seed: 3\nweight_decay: null", "--weight_decay: expected a value, found none"),
        (b"seed: 3\nbatch_size:", "--batch_size: expected a value, found none"),
        (b"optimizer: null", "--optimizer: expected a value, found none"),
        (b"- a", "expected flags such as `max_epochs: 50`"),
        (b"hello", "expected flags such as"),
        (b"# seed: 3", "expected flags such as"),
        (b"", "expected flags such as"),
        (b"max_epochs: 3\nseed: 1\nmax_epochs: 4", "max_epochs appears twice, expected it once"),
        (b"max_epochs: 3\nseed: &x {b: *x}", "seed.b is an alias of what contains it, expected a value"),
        (b"keypoint_channels: &x [a, *x]", "keypoint_channels[1] is an alias of what contains it, expected a value"),
        (b"&x {seed: {b: [1, *x]}}", "seed.b[1] is an alias of what contains it, expected a value"),
        (b"\xff\xfe", "can't decode byte"),
    ],
)
def test_what_is_wrong_in_a_configuration_file_is_said_with_its_name(parser, tmp_path, content, said):
    path = tmp_path / "flags.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        parser.parse_args(["--config", str(path)])
    assert str(error.value).startswith(f"--config {path}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def piped(path, content):
    """Makes a named pipe that holds text."""
    os.mkfifo(path)
    threading.Thread(target=path.write_text, args=(content,), daemon=True).start()
    return path


def test_a_configuration_may_come_through_a_pipe(parser, tmp_path):
    path = piped(tmp_path / "pipe", "json_dataset_path: a.json\nmax_epochs: 7")
    config = parser.parse_args(["--config", str(path), "--seed", "3"])
    assert (config.json_dataset_path, config.max_epochs, config.seed) == ("a.json", 7, 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("seed: 1\nmax_epochs: 3\nseed: 2\n", "seed appears twice, expected it once"),
        ("max_epoch: 3", "unknown flag: max_epoch (did you mean max_epochs"),
        ("pyproject.toml", "expected flags such as"),
        ("", "expected flags such as"),
    ],
)
def test_what_is_wrong_in_a_configuration_from_a_pipe_is_said_too(parser, tmp_path, content, said):
    path = piped(tmp_path / "pipe", content)
    with pytest.raises(InputError) as error:
        parser.parse_args(["--config", str(path)])
    assert str(error.value).startswith(f"--config {path}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_anchor_may_stand_for_the_same_value_several_times(parser, tmp_path):
    path = tmp_path / "flags.yaml"
    path.write_text("json_dataset_path: a.json\nseed: &x 3\nmax_epochs: *x\ndilations: &d [1, 2]\n")
    assert parser.parse_args(["--config", str(path)]).max_epochs == 3


def test_a_configuration_file_leaves_empty_what_may_be_empty(parser, tmp_path):
    path = tmp_path / "flags.yaml"
    path.write_text("json_dataset_path: a.json\nimage_dataset_path:\nmax_epochs: null\nconfig: null\n")
    assert parser.parse_args(["--config", str(path)]).max_epochs is None


def test_one_number_need_not_be_text_where_several_may_stand(parser, tmp_path):
    # as a file says it, and a sweep, whose values come as they stand in its file
    given = {"maximal_gt_keypoint_pixel_distances": 3, "keypoint_channel_max_keypoints": -1}
    path = tmp_path / "flags.yaml"
    path.write_text(yaml.safe_dump(given))
    required = {
        "json_dataset_path": DEFAULT_HYPERPARAMETERS["json_dataset_path"],
        "keypoint_channels": "corner_keypoints",
    }
    line = [f"--{name}={value}" for name, value in required.items()]
    for config in (parser.parse_args(["--config", str(path), *line]), parser.parse_object(required | given)):
        data = call(KeypointsDataModule, config.as_dict())
        assert data.keypoint_channel_max_keypoints == [-1]
        assert parse_distances(config.maximal_gt_keypoint_pixel_distances) == [3.0]


@pytest.mark.parametrize("distances", ["0.01 1", 1.0, "2 4"])
def test_a_fraction_of_the_diagonal_is_below_one(distances):
    with pytest.raises(InputError, match="expected fractions of the image's diagonal"):
        parse_distances(distances, "image")
    assert parse_distances(0.99, "image") == [0.99]


def test_the_flags_that_are_printed_are_those_that_the_help_says(parser, capsys):
    explained = " ".join(parser.format_help().split("--print_config ")[1].split("--json_dataset_path")[0].split())
    assert "--print_config=skip_default prints" in explained
    with pytest.raises(SystemExit):
        parser.parse_args(["--json_dataset_path", "a.json", "--seed", "7", "--print_config=skip_default"])
    assert yaml.safe_load(capsys.readouterr().out) == {"json_dataset_path": "a.json", "seed": 7}


def test_a_backbone_of_the_users_own_brings_its_flags(monkeypatch, caplog):
    class Wide(Backbone):
        """A wide one.

        Args:
            heatmap_stride: Pixels per cell.
            wideness: How wide it is.
        """

        def __init__(self, *, heatmap_stride: int, wideness: int = 3) -> None:
            super().__init__(heatmap_stride, n_channels_in=3, out_channels=wideness, size_divisor=1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.repeat(1, self.out_channels // 3, 1, 1)

    monkeypatch.setitem(BACKBONES, "Wide", Wide)
    parser = flags.build_parser()
    config = parse(parser, "--backbone_type", "Wide", "--wideness", "6", "--n_channels", "4")
    assert flags.registry_arguments(BACKBONES, "backbone_type", config) == {"wideness": 6}
    flags.warn_of_unused(config.as_dict())
    assert caplog.messages == ["--n_channels has no effect: Wide does not take it, unlike Unet, DilatedCnn, S3K"]


@pytest.mark.parametrize(
    ("given", "unused"),
    [
        ({}, {}),
        ({"plateau_patience": 3, "learning_rate_schedule": "plateau"}, {}),
        (
            {"plateau_patience": 3, "plateau_factor": 0.5},
            dict.fromkeys(("plateau_factor", "plateau_patience"), "--learning_rate_schedule is cosine_to_half"),
        ),
        ({"learning_rate_warmup": 0.2, "learning_rate_schedule": "constant"}, {}),
        (
            {"learning_rate_warmup": 0.2, "learning_rate_schedule": "plateau"},
            {"learning_rate_warmup": "--learning_rate_schedule is plateau"},
        ),
        ({"early_stopping_patience": 1, "early_stopping_relative_threshold": 0.0}, {}),
        (
            {"early_stopping_patience": 1},
            {"early_stopping_patience": "--early_stopping_relative_threshold is -1, which never stops"},
        ),
        ({"validation_split_ratio": 0.5}, {}),
        ({"json_validation_dataset_path": "b.json"}, {}),
        (
            {"validation_split_ratio": 0.5, "json_validation_dataset_path": "b.json"},
            {"validation_split_ratio": "--json_validation_dataset_path is the validation set"},
        ),
        ({"rotation": 10.0, "blur": 0.5}, {}),
        ({"rotation": 10.0, "augment_train": "auto"}, {}),
        (
            {"rotation": 10.0, "blur": 0.5, "augmented_share": 0.5, "flip_pairs": "a=b", "augment_train": False},
            dict.fromkeys(("augmented_share", "blur", "flip_pairs", "rotation"), "--augment_train is false"),
        ),
        ({"backbone_type": "Smp", "pretrained": True}, {}),
        ({"backbone_type": "Smp", "pretrained": False, "encoder_weights": "w.pth"}, {}),
        (
            {"backbone_type": "Smp", "pretrained": True, "encoder_weights": "w.pth"},
            {"pretrained": "the encoder starts from --encoder_weights"},
        ),
        ({"dilations": [1, 2]}, {"dilations": "Unet does not take it, unlike DilatedCnn"}),
        ({"dilations": [1, 2], "backbone_type": "Unett"}, {}),  # which is an error by itself
    ],
)
def test_flags_without_an_effect_are_named_with_the_reason(parser, given, unused, caplog):
    config = parser.parse_object({"json_dataset_path": "a.json", **given}).as_dict()
    flags.warn_of_unused(config)
    assert caplog.messages == [f"--{name} has no effect: {reason}" for name, reason in unused.items()]


def test_a_wrong_backbone_lists_the_right_ones():
    with pytest.raises(InputError, match=r"--backbone_type .*DilatedCnn"):
        flags.registry_arguments(BACKBONES, "backbone_type", {"backbone_type": "Unett"})


def test_all_of_lightnings_trainer_is_there_or_left_out_for_a_reason(parser):
    offered = {action.dest for action in parser._actions}
    assert {"accelerator", "strategy", "devices", "num_nodes", "precision", "max_time", "profiler"} <= offered
    assert set(inspect.signature(pl.Trainer).parameters) - offered <= NOT_FLAGS
    assert "limit_predict_batches" not in offered, "a training predicts nothing"


def test_the_sweep_file_is_the_sweep_of_the_tests(parser):
    path = TEST_DATASET.parents[1] / "keypoint_detection" / "train" / "sweep.yaml"
    assert yaml.safe_load(path.read_text()) == DEFAULT_SWEEP
    values = {
        name: entry.get("value", entry.get("values", [None])[0]) for name, entry in DEFAULT_SWEEP["parameters"].items()
    }
    config = parser.parse_object(values)
    assert config.max_epochs == 2
    assert (path.parent / values["json_dataset_path"]).resolve() == TEST_DATASET / "annotations.json"


@pytest.mark.parametrize(
    ("word", "value"), [("a=b c=d", "a=b c=d"), ('["left eye=right eye", "a=b"]', ["left eye=right eye", "a=b"])]
)
def test_pairs_of_channels_are_text_or_a_list(parser, word, value):
    assert parser.parse_args(["--json_dataset_path", "x.json", "--flip_pairs", word]).flip_pairs == value


def test_distances_are_taken_once_each_in_ascending_order():
    assert parse_distances("4 2 4") == parse_distances([4, 2.0, "4"]) == [2.0, 4.0]
    for refused in ("", "0", "-1", "inf", "nan", "2 x", []):
        with pytest.raises(InputError, match="expected positive numbers"):
            parse_distances(refused)
