"""The console script: its subcommands and their help."""

import json

import pytest
from configuration import TEST_DATASET
from PIL import Image

from keypoint_detection.cli import COMMANDS, main, usage
from keypoint_detection.data.formats import FORMATS


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


def test_the_help_of_the_program_lists_all_commands():
    assert all(f"  {command} " in usage() for command in COMMANDS)


def test_an_unknown_command_is_one_line_and_exit_code_2(capsys):
    assert main(["trian"]) == 2
    assert "unknown command 'trian'" in capsys.readouterr().err


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
        (["stray"], "unknown flag: stray (-h lists the flags)"),
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
    assert main(["check", "--json_dataset_path", labels, "--picture", str(picture)]) == 0
    assert capsys.readouterr().out.endswith(f"\n\npicture: {picture}\n")
    with Image.open(picture) as image:
        assert min(image.size) > 480


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
    assert f"none of its 30 images is there, such as {tmp_path / '0.png'}; --image_dataset_path names" in error


def test_help_of_convert_lists_all_formats(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["convert", "-h"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  --to ")]
    assert all(name in line for name in FORMATS)
