"""The console script: its subcommands and their help."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from configuration import TEST_DATASET
from PIL import Image

from keypoint_detection import check
from keypoint_detection.cli import COMMANDS, main, usage
from keypoint_detection.convert import convert
from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.data.formats import FORMATS
from keypoint_detection.errors import InputError
from keypoint_detection.evaluation.command import evaluate
from keypoint_detection.flags import parser_for, type_of
from keypoint_detection.models.losses import LOSSES
from keypoint_detection.predict import KeypointPredictor
from keypoint_detection.predict_command import predict


@pytest.mark.parametrize("columns", ["80", "100"])
@pytest.mark.parametrize("command", [*COMMANDS, "checkpoint info", "checkpoint export-weights"])
def test_the_help_of_every_command_fits_a_screen_and_explains_its_flags(command, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    try:
        code = main([*command.split(), "-h"])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    assert 3 < len(lines) <= 50
    flags = [index for index, line in enumerate(lines) if line.startswith("  --")]
    for index in flags:  # an explanation beside each, or below it
        assert len(lines[index].split()) > 1 or lines[index + 1].startswith("     ")


def test_without_a_command_there_is_its_help_and_an_exit_code(capsys):
    assert main(["-h"]) == 0
    assert main([]) == 2
    assert capsys.readouterr().out == 2 * f"{usage()}\n"


@pytest.mark.parametrize(("said", "told"), [("", "interrupted"), ("interrupted: goes on", "interrupted: goes on")])
def test_what_ctrl_c_stops_is_one_line_and_exit_code_130(said, told, monkeypatch, capsys):
    def stopped(arguments):
        raise KeyboardInterrupt(said)

    monkeypatch.setattr(check, "main", stopped)
    assert main(["check"]) == 130
    assert capsys.readouterr().err == f"{told}\n"


@pytest.mark.parametrize(("rank", "said"), [("0", ["labels", "skipped", "again"]), ("1", ["skipped", "again"])])
def test_of_several_processes_the_first_says_what_all_know_and_each_what_it_alone_does(rank, said, tmp_path):
    code = f"""
import errno, logging, pathlib
from keypoint_detection import check, cli
from keypoint_detection.data import images
from keypoint_detection.data.dataset import KeypointsDataset
from keypoint_detection.data.formats import read_annotations
def fail(*_, **__):
    raise OSError(errno.EIO, "Input/output error")
def warn(arguments):
    logging.getLogger("keypoint_detection.data.parts").warning("labels")
    annotations = read_annotations({LABELS!r}, {str(tmp_path)!r})  # whose images are elsewhere
    KeypointsDataset(
        annotations, heatmap_sigma=2, heatmap_stride=1, seed=0, empty_channels="absent", corrupt_images="skip"
    )[0]
    images.RETRY_WAITS, pathlib.Path.open = (0,), fail
    images.load_image("image.png")
check.main = warn
cli.main(["check"])
"""
    environment = {**os.environ, "LOCAL_RANK": rank}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    *told, failed = ended.stderr.splitlines()
    words = {"labels": "labels", "skipped": "Skipped: ", "again": "image.png: Input/output error; trying again in 0 s"}
    assert [next(name for name, text in words.items() if line.startswith(text)) for line in told] == said
    assert failed.startswith("error: image.png: ")


def test_the_version_is_that_of_the_package_and_said_without_waiting_for_torch():
    code = "import sys; from keypoint_detection.cli import main; print(main(['--version']), 'torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == (f"keypoint-detection {version('keypoint_detection')}\n0 False\n", "")
    assert "--version" in usage()


def test_the_help_of_the_program_lists_all_commands():
    assert all(f"  {command} " in usage() for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("check --json_dataset_path=", "--json_dataset_path"),
        ("check --json_dataset_path labels.json --picture=", "--picture"),
        ("convert --to coco --json_dataset_path= --output coco.json", "--json_dataset_path"),
        ("convert --to coco --json_dataset_path labels.json --output=", "--output"),
        ("evaluate --checkpoint a.ckpt --json_dataset_path=", "--json_dataset_path"),
        ("evaluate --checkpoint a.ckpt --json_dataset_path labels.json --output=", "--output"),
        ("evaluate --checkpoint a.ckpt --json_dataset_path labels.json --report=", "--report"),
        ("predict --checkpoint a.ckpt --output out.json --overlays= images", "--overlays"),
    ],
)
def test_an_empty_path_as_of_an_unset_variable_is_one_line(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").symlink_to(TEST_DATASET / "images")
    (tmp_path / "labels.json").symlink_to(TEST_DATASET / "annotations.json")
    assert main(arguments.split()) == 2
    assert capsys.readouterr().err.startswith(f"error: {named}: is empty, expected a ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "labels.json"]


def test_an_empty_path_is_not_the_folder_that_a_user_is_in(monkeypatch, capsys):
    monkeypatch.chdir(TEST_DATASET)
    assert main(["predict", "--checkpoint", "a.ckpt", "--output", "out.json", ""]) == 2
    assert capsys.readouterr().err == "error: '': no such file or folder\n"


LONG = 300 * "x"  # more letters than the name of a file has


@pytest.mark.parametrize(
    "arguments",
    [
        f"check --json_dataset_path {{labels}} --image_dataset_path {LONG}",
        f"check --json_dataset_path {{labels}} --picture {LONG}.png",
        f"convert --to coco --json_dataset_path {{labels}} --output {LONG}",
        f"predict --checkpoint a.ckpt --output out.json {LONG}",
        f"predict --checkpoint a.ckpt --output {LONG}.json {{images}}",
        f"predict --checkpoint {LONG}.onnx --output {{folder}}/out.json {{images}}",
        "convert --to coco --json_dataset_path {long} --output {folder}/out.json",
        "check --json_dataset_path {long}",
        "check --json_dataset_path {all_long}",
    ],
)
def test_a_name_that_is_too_long_for_a_file_is_one_line(arguments, tmp_path, capsys):
    for name, count in (("long", 1), ("all_long", 2)):
        entries = [{"image_path": f"{i}{LONG}.png", "corner": [[0.5, 0.5]]} for i in range(count)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"dataset": entries}))
    paths = {name: tmp_path / f"{name}.json" for name in ("long", "all_long")}
    paths |= {"labels": TEST_DATASET / "annotations.json", "images": TEST_DATASET / "images", "folder": tmp_path}
    assert main(arguments.format(**paths).split()) == 2
    shown = capsys.readouterr()
    (line,) = [line for line in (shown.out + shown.err).splitlines() if line.startswith("error: ")][:1]
    assert LONG in line


def test_an_unknown_command_is_one_line_and_exit_code_2(capsys):
    assert main(["trian"]) == 2
    assert "unknown command 'trian' (did you mean train?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--batchsize", "3"], "unknown flag: --batchsize 3 (did you mean --batch_size?)"),
        (["--batchsize=3"], "unknown flag: --batchsize=3 (did you mean --batch_size?)"),
        (
            ["--batchsize", "3", "--lerning_rate=1", "--xyzzy"],
            "unknown flag: --batchsize 3 --lerning_rate=1 --xyzzy (did you mean --batch_size, --learning_rate?)",
        ),
        (["--config", "flags.yaml"], "--config flags.yaml: unknown flag: batchsize (did you mean batch_size?)"),
        (["--max_epoch", "3"], "unknown flag: --max_epoch 3 (did you mean --max_epochs?)"),
        (["--lr", "0.1"], "unknown flag: --lr 0.1 (-h lists the flags)"),
        ([""], "unknown flag:  (-h lists the flags)"),
        (["--xyzzy"], "unknown flag: --xyzzy (-h lists the flags)"),
        (["stray"], "unknown flag: stray (-h lists the flags; several words for one flag belong in quotes)"),
        (
            ["--keypoint_channels", "paws", "tail"],
            "unknown flag: tail (-h lists the flags; several words for one flag belong in quotes)",
        ),
    ],
)
def test_an_unknown_flag_is_one_line_with_the_nearest_one(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flags.yaml").write_text("batchsize: 3\n")
    assert main(["train", "--json_dataset_path", "data.json", *words]) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train"], "missing: --json_dataset_path (-h lists the flags)"),
        (["evaluate"], "missing: --checkpoint, --json_dataset_path (-h lists the flags)"),
        (["predict", "--checkpoint", "best.ckpt"], "missing: --output, paths (-h lists the flags)"),
    ],
)
def test_missing_flags_are_one_line_as_they_are_written(words, line, capsys):
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_missing_configuration_file_is_one_line(tmp_path, capsys):
    for path in (tmp_path / "none.yaml", tmp_path):
        assert main(["train", "--config", str(path)]) == 2
        assert capsys.readouterr().err == f"error: --config {path}: expected a file, found none\n"


def test_check_draws_labelled_images_and_says_where(tmp_path, capsys):
    picture = tmp_path / "look.png"
    labels = str(TEST_DATASET / "annotations.json")
    for written in (f"{picture}/", f"{picture}"):
        assert main(["check", "--json_dataset_path", labels, "--picture", written]) == 0
        assert capsys.readouterr().out.endswith(f"\n\npicture: {written}\n")
    with Image.open(picture) as image:
        assert min(image.size) > 480


def test_channels_with_a_space_in_their_names_are_chosen_one_by_one(tmp_path, capsys):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    labels = tmp_path / "labels.json"
    entry = {"image_path": "a.png", "left eye": [[0.5, 0.5]], "nose": [[0.25, 0.5]], "tail": []}
    labels.write_text(json.dumps({"dataset": [entry]}))
    chosen = ["--json_dataset_path", str(labels), "--keypoint_channels", '["left eye", "snout=nose"]']
    assert main(["check", *chosen]) == 0
    assert "1 image, 2 channels, 2 keypoints" in capsys.readouterr().out
    assert main(["convert", *chosen, "--to", "native", "--output", str(tmp_path / "out.json")]) == 0
    (written,) = json.loads((tmp_path / "out.json").read_text())["dataset"]
    assert written == {"image_path": "a.png", "left eye": [[0.5, 0.5]], "snout": [[0.25, 0.5]]}


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("keypoint_channels", [KeypointsDataModule, evaluate, check.check, convert]),
        ("keypoint_coordinates", [KeypointsDataModule, evaluate, check.check, convert]),
        ("score_threshold", [evaluate, predict]),
        ("batch_size", [KeypointPredictor, predict]),
        ("device", [KeypointPredictor, predict, evaluate]),
    ],
)
def test_a_flag_takes_the_same_everywhere(name, places):
    assert len({(type_of(place, name), signature(place).parameters[name].default) for place in places}) == 1


def test_check_without_a_readable_image_draws_nothing_and_says_why(tmp_path, capsys):
    labels = tmp_path / "labels.json"
    labels.write_text('{"dataset": [{"image_path": "none.png", "a": [[0.5, 0.5]]}]}')
    picture = tmp_path / "look.png"
    assert main(["check", "--json_dataset_path", str(labels), "--picture", str(picture)]) == 2
    out = capsys.readouterr().out
    assert "none.png: no such image file" in out
    assert "picture" not in out
    assert not picture.exists()


def test_where_no_image_is_found_one_line_says_which_flag_names_their_folder(tmp_path, capsys):
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"dataset": [{"image_path": f"{i}.png", "a": [[0.5, 0.5]]} for i in range(30)]}))
    assert main(["check", "--json_dataset_path", str(labels)]) == 2
    (error,) = [line for line in capsys.readouterr().out.splitlines() if "error" in line]
    assert f"none of its 30 images exists (first: {tmp_path / '0.png'}); --image_dataset_path names" in error


def test_backslashes_in_all_paths_are_told_from_a_folder_that_is_another(tmp_path, capsys):
    labels = tmp_path / "labels.json"
    paths = ["images\\0.png", "images\\1.png"]
    labels.write_text(json.dumps({"dataset": [{"image_path": path, "a": [[0.5, 0.5]]} for path in paths]}))
    assert main(["check", "--json_dataset_path", str(labels)]) == 2
    (error,) = [line for line in capsys.readouterr().out.splitlines() if "error" in line]
    assert error.endswith(f'none of its 2 images exists (first: {tmp_path / paths[0]}); expected "/" between folders')


def test_frames_of_a_video_that_predict_has_labelled_are_told_from_a_folder_that_is_another(tmp_path, capsys):
    labels = tmp_path / "labels.json"
    names = ["clip.mp4#0", "clip.mp4#17"]
    labels.write_text(json.dumps({"dataset": [{"image_path": name, "a": [[0.5, 0.5]]} for name in names]}))
    expected = f"{tmp_path / 'clip.mp4#0'}{{}}this is a frame of a video, expected an image file"
    assert main(["check", "--json_dataset_path", str(labels)]) == 2
    (error,) = [line for line in capsys.readouterr().out.splitlines() if "error" in line]
    assert error.endswith(expected.format("); "))
    assert main(["train", "--json_dataset_path", str(labels), f"--run_dir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err.rstrip().endswith(expected.format(": no such image file, "))


def test_help_of_convert_lists_all_formats(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["convert", "-h"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  --to ")]
    assert all(name in line for name in FORMATS)


LABELS = str(TEST_DATASET / "annotations.json")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["convert", "--to", "native", "--output", ""], "--output: is empty, expected a file"),
        (
            ["convert", "--to", "yolo", "--output", "out.json"],
            "--to yolo: expected one of native, coco",
        ),
        (
            ["convert", "--to", "native", "--output", "out.json", "--output_coordinates", "foo"],
            "--output_coordinates foo: expected one of blender, normalized, pixel",
        ),
        (
            ["convert", "--to", "native", "--output", "out.json", "--keypoint_coordinates", "foo"],
            "--keypoint_coordinates foo: expected one of blender, normalized, pixel",
        ),
        (["check", "--picture", ""], "--picture: is empty, expected a file"),
        (
            ["check", "--picture", "look.foo"],
            "--picture look.foo: expected the name of an image file, such as look.png or look.jpg",
        ),
        (
            ["check", "--picture", "look"],
            "--picture look: expected the name of an image file, such as look.png or look.jpg",
        ),
        (["check", "--picture", "file/look.png"], "--picture file/look.png: cannot be written there (File exists)"),
        (["check", "--decode", "maybe"], "--decode maybe: expected true or false"),
        (["check", "--json_dataset_path", ""], "--json_dataset_path: is empty, expected a file"),
        (
            ["convert", "--json_dataset_path", "", "--to", "native", "--output", "out.json"],
            "--json_dataset_path: is empty, expected a file",
        ),
    ],
)
def test_what_cannot_work_is_one_line_before_any_work(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    assert main([words[0], "--json_dataset_path", LABELS, *words[1:]]) == 2
    assert capsys.readouterr() == ("", f"error: {line}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_choices_of_which_none_may_be_taken_are_listed():
    def command(kind: Literal["a", "b"] | None = None, steps: int | Literal["auto"] = 1):
        """A command."""

    parser = parser_for(command, "command")
    with pytest.raises(InputError, match=r"^--kind c: expected one of a, b, none$"):
        parser.parse_args(["--kind", "c"])
    with pytest.raises(InputError, match=r"^--steps c: expected a whole number or auto$"):
        parser.parse_args(["--steps", "c"])


def test_check_makes_the_folder_of_the_picture_and_reports_before_it_is_saved(tmp_path, monkeypatch, capsys):
    picture = tmp_path / "new" / "look.png"

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    assert main(["check", "--json_dataset_path", LABELS, "--picture", str(picture)]) == 2
    out, err = capsys.readouterr()
    assert "4 images, 2 channels" in out
    assert "picture" not in out
    assert err == f"error: --picture {picture}: cannot be written (No space left on device)\n"
    assert picture.parent.is_dir()


def test_check_draws_over_no_image_of_the_set(tmp_path, capsys):
    shutil.copytree(TEST_DATASET, tmp_path / "set")
    image = sorted((tmp_path / "set").rglob("*.png"))[-1]
    content = image.read_bytes()
    labels = str(tmp_path / "set" / "annotations.json")
    assert main(["check", "--json_dataset_path", labels, "--picture", str(image)]) == 2
    assert capsys.readouterr().err == f"error: {image}: would overwrite an input file, expected another name\n"
    assert image.read_bytes() == content


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"image_path": "a\ud800.png", "a": []}, "entry 0: the path holds half of a surrogate pair"),
        ({"image_path": "a\0.png", "a": []}, "entry 0: the path holds a null character"),
        ({"image_path": "a.png", "a\udc00": []}, "channel 'a\\udc00' holds half of a surrogate pair"),
    ],
)
@pytest.mark.parametrize("words", [["check"], ["convert", "--to", "native", "--output", "out.json"]])
def test_names_that_cannot_be_written_are_refused(words, entry, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save("a.png")
    (tmp_path / "data.json").write_text(json.dumps({"dataset": [entry]}))
    assert main([words[0], "--json_dataset_path", "data.json", *words[1:]]) == 2
    assert capsys.readouterr().err == f"error: data.json: {line}\n"


def test_a_reader_that_is_gone_ends_the_command_without_a_word():
    command = [sys.executable, "-m", "keypoint_detection.cli", "check", "--json_dataset_path", LABELS]
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_broken_pipe_between_processes_is_no_reader_that_is_gone(monkeypatch):
    def fail(_):
        raise BrokenPipeError

    monkeypatch.setattr(check, "main", fail)
    with pytest.raises(BrokenPipeError):
        main(["check"])


def own_loss(logits, targets, *, sharpness=2.0, p):
    """A loss of a user's own, whose arguments have no types."""


def test_an_argument_without_a_type_is_one_line_that_names_it(monkeypatch, capsys):
    monkeypatch.setitem(LOSSES, "own", own_loss)
    assert main(["train", "--json_dataset_path", LABELS]) == 2
    assert capsys.readouterr().err == (
        f"error: {own_loss.__module__}.own_loss: the argument sharpness has no type; a flag needs one and a default, "
        "such as `sharpness: float = 1.0`\n"
    )


def test_an_argument_that_is_no_flag_of_its_own_is_one_line_that_names_it(monkeypatch, capsys):
    def unset_loss(logits, targets, sharpness: float):
        """A loss whose argument has no default."""

    def seeded_loss(logits, targets, seed: int = 0):
        """A loss whose argument has the name of a flag of the training."""

    def widened_loss(logits, targets, n_channels: int = 1):
        """A loss whose argument has the name of a backbone's."""

    def spread_loss(logits, targets, devices: int = 1):
        """A loss whose argument has the name of a flag of Lightning's Trainer."""

    for loss, problem in (
        (unset_loss, "sharpness has no default; a flag needs a type and a default, such as `sharpness: float = 1.0`"),
        (seeded_loss, "seed has the same name as the flag --seed; expected a name of its own"),
        (widened_loss, "n_channels has the same name as the flag --n_channels; expected a name of its own"),
        (spread_loss, "devices has the same name as the flag --devices; expected a name of its own"),
    ):
        monkeypatch.setitem(LOSSES, "own", loss)
        assert main(["train", "--json_dataset_path", LABELS]) == 2
        name = f"{loss.__module__}.{loss.__qualname__}"
        assert capsys.readouterr().err == f"error: {name}: the argument {problem}\n"


def test_ctrl_c_during_imports_ends_at_once_and_is_ignored_where_it_was(tmp_path):
    # An import that swallows the interruption, as some libraries' do.
    (tmp_path / "slow_command.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    pass\n"
        "def main(arguments):\n    print('went on')\n    return 0\n",
        encoding="utf-8",
    )
    code = "import sys; from keypoint_detection.cli import run; sys.exit(run('slow_command', []))"
    ignored = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    found = []
    for first in ("", ignored):
        ended = subprocess.run(
            [sys.executable, "-c", first + code], cwd=tmp_path, capture_output=True, text=True, check=False,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])},
        )  # fmt: skip
        found.append((ended.returncode, ended.stdout, ended.stderr))
    assert found == [(130, "", "interrupted\n"), (0, "went on\n", "")]


def test_check_names_the_images_that_it_draws(tmp_path):
    shutil.copytree(TEST_DATASET, tmp_path / "set")
    labels, first, second = tmp_path / "set" / "annotations.json", tmp_path / "first.png", tmp_path / "second.png"
    assert main(["check", "--json_dataset_path", str(labels), "--picture", str(first)]) == 0
    text = labels.read_text()
    old = json.loads(text)["dataset"][2]["image_path"]
    (labels.parent / old).rename(labels.parent / "another name.png")
    labels.write_text(text.replace(old, "another name.png"))
    assert main(["check", "--json_dataset_path", str(labels), "--picture", str(second)]) == 0
    changed = np.argwhere((np.asarray(Image.open(first)) != np.asarray(Image.open(second))).any(axis=2))
    # The one with the fewest keypoints is drawn last: below three others, all of them 480 px square.
    top, left = changed.min(axis=0)
    bottom, right = changed.max(axis=0)
    assert 480 < top < bottom < 480 + 60
    assert 0 < left < right < 480
