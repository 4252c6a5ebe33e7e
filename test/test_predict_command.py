"""`keypoint-detection predict`: inputs of all kinds, outputs in all formats, and nothing lost when interrupted."""

import csv
import hashlib
import json
import os
import shutil
import threading
from pathlib import Path
from unittest.mock import MagicMock

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from colour_detector import RedAndGreen, colour_checkpoint, dots
from imageio.v3 import imiter, immeta
from PIL import Image

from keypoint_detection import predict_command, prediction_files
from keypoint_detection.cli import main
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.errors import InputError
from keypoint_detection.picture_layout import channel_colours
from keypoint_detection.prediction_inputs import common_folder, find_inputs, is_video
from keypoint_detection.processes import Processes, start_processes

PLACES = {"a.png": [(10.5, 20.5), (45.5, 8.5)], "sub/b.jpg": [(30.5, 12.5)], "sub/c.png": []}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    with colour_checkpoint(tmp_path_factory.mktemp("checkpoint")) as path:
        yield path


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for name, points in PLACES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dots((40, 60), points)).save(folder / name, quality=98)
    (folder / "notes.txt").write_text("no image")
    return folder


def run(checkpoint, output, *arguments):
    return run_on_any(checkpoint, output, "--device", "cpu", *arguments)


def run_on_any(checkpoint, output, *arguments):
    return main(["predict", "--checkpoint", str(checkpoint), "--output", str(output), *map(str, arguments)])


def test_score_thresholds_by_channel_leave_the_others_their_own(checkpoint, images, tmp_path, capsys):
    Image.fromarray(dots((40, 60), [(30.5, 20.5)], 1)).save(images / "green.png")

    def found(threshold, *more):
        arguments = () if threshold is None else ("--score_threshold", threshold)
        assert run(checkpoint, tmp_path / "out.json", images, *arguments, *more) == 0
        entries = json.loads((tmp_path / "out.json").read_text())["dataset"]
        return [sum(len(entry[channel]) for entry in entries) for channel in ("red", "green")]

    assert found(None) == [3, 1]
    assert found("1") == [0, 0]
    assert found('{"red": 1}') == [0, 1]
    assert found('{"green": 1.0}') == [3, 0]
    assert run(checkpoint, tmp_path / "out.json", images, "--score_threshold", '{"blue": 1}') == 2
    assert "score_threshold: no channel 'blue', expected red, green" in capsys.readouterr().err
    assert run(checkpoint, tmp_path / "out.json", images, "--score_threshold", '{"red": 0.9') == 2
    expected = 'error: --score_threshold {"red": 0.9: expected a number or {"name": 0.5} or none\n'
    assert capsys.readouterr().err == expected


def test_predictions_of_a_folder_can_be_trained_on(checkpoint, images, tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert run(checkpoint, tmp_path / "out.json", images) == 0
    assert f"out.json: 3 keypoints in 3 images; paths are relative to {images}" in caplog.text
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["coordinates"] == "pixel"
    assert [entry["image_path"] for entry in content["dataset"]] == list(PLACES)
    assert len(content["dataset"][0]["scores"]["red"]) == 2
    annotations = read_annotations(tmp_path / "out.json", images)
    assert annotations.channel_names == ("red", "green")
    for index, points in enumerate(PLACES.values()):
        found = annotations.keypoints(index, 60, 40)[0]
        assert np.allclose(np.reshape(sorted(found.tolist()), (-1, 2)), np.reshape(sorted(points), (-1, 2)), atol=0.4)
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize(
    ("coordinates", "expected"), [("normalized", (10.5 / 60, 20.5 / 40)), ("blender", (10.5 / 60, 1 - 20.5 / 40))]
)
def test_other_conventions(checkpoint, images, tmp_path, coordinates, expected):
    assert run(checkpoint, tmp_path / "out.json", images / "a.png", "--keypoint_coordinates", coordinates) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["coordinates"] == coordinates
    (entry,) = content["dataset"]
    assert min(entry["red"]) == pytest.approx(expected, abs=0.01)


def test_csv_and_coco(checkpoint, images, tmp_path, monkeypatch):
    assert run(checkpoint, tmp_path / "out.csv", images) == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image_path"] for row in rows] == ["a.png", "a.png", "sub/b.jpg"]
    assert float(rows[2]["x"]) == pytest.approx(30.5, abs=0.4)
    assert run(checkpoint, tmp_path / "results.json", images, "--format", "coco") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(result["image_id"], result["category_id"]) for result in results] == [(1, 1), (1, 1), (2, 1)]
    assert results[0]["keypoints"][2] == 2
    monkeypatch.setattr(predict_command, "KeypointPredictor", pytest.fail)  # what follows is refused before the work
    assert run(checkpoint, tmp_path / "x.json", images, "--format", "coco", "--keypoint_coordinates", "blender") == 2


def test_results_of_coco_name_the_frame_of_a_video():
    image = prediction_files.PredictedImage("a.png", None, 4, 3, {"red": [[1.0, 2.0]]}, {"red": [0.5]})
    images = [image, image._replace(name="clip.mp4", frame=0), image._replace(name="clip.mp4", frame=17)]
    results = json.loads(prediction_files.coco_results(images, ["red"], "pixel"))
    assert [result["file_name"] for result in results] == ["a.png", "clip.mp4#0", "clip.mp4#17"]


def test_rows_of_a_table_have_the_frame_of_a_video_and_none_for_an_image():
    image = prediction_files.PredictedImage("clip.mp4", 17, 4, 5, {"red": [[1.0, 2.0]]}, {"red": [0.5]})
    images = [image, image._replace(name="a.png", frame=None)]
    assert prediction_files.table(images, ["red"], "normalized").splitlines() == [
        "image_path,frame,channel,x,y,score", "clip.mp4,17,red,0.25,0.4,0.5", "a.png,,red,0.25,0.4,0.5"
    ]  # fmt: skip


def test_a_summary_says_what_to_try_where_nothing_was_found():
    empty = prediction_files.PredictedImage("a.png", None, 4, 3, {"red": []}, {"red": []})
    assert prediction_files.summary([empty, empty]) == (
        "0 keypoints in 2 images; --score_threshold 0.05 shows weaker detections, --tile finds small objects in large "
        "images"
    )
    assert prediction_files.summary([]) == "no image could be read"


def test_what_is_predicted_is_kept_to_four_digits_and_scores_to_five():
    prediction = {"red": (np.array([[1.23456, 2.0]]), np.array([0.123456]))}
    assert prediction_files.as_predicted("a.png", None, (30, 40), prediction) == prediction_files.PredictedImage(
        "a.png", None, 40, 30, {"red": [[1.2346, 2.0]]}, {"red": [0.12346]}
    )


@pytest.mark.parametrize("name", ["out.csv", "out.json"])
def test_names_that_are_no_utf8_are_written_with_an_escape(checkpoint, tmp_path, name):
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / os.fsdecode(b"caf\xe9.png")
    Image.fromarray(dots((40, 60), [(10.5, 20.5)])).save(path)
    assert run(checkpoint, tmp_path / name, path.parent) == 0
    text = (tmp_path / name).read_text(encoding="utf-8")
    assert "caf\\udce9.png" in text
    if name == "out.json":
        (entry,) = json.loads(text)["dataset"]
        assert (path.parent / entry["image_path"]).exists()


def test_a_pipe_is_written_into(checkpoint, images, tmp_path):
    pipe = tmp_path / "out.csv"
    os.mkfifo(pipe)
    found = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()), daemon=True)
    reader.start()
    assert run(checkpoint, pipe, images) == 0
    reader.join(30)
    assert [row["image_path"] for row in csv.DictReader(found[0].splitlines())] == ["a.png", "a.png", "sub/b.jpg"]
    assert pipe.is_fifo()
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize(
    ("highest", "kind", "factor"),
    [([4095, 2000], np.uint16, 16), ([4095, 20000], np.uint16, None), ([60, 60], np.uint8, None)],
)
def test_images_of_12_bits_in_files_of_16_are_warned_of(checkpoint, tmp_path, caplog, highest, kind, factor):
    (tmp_path / "images").mkdir()
    for number, value in enumerate(highest):
        Image.fromarray(np.full((20, 30), value, kind)).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "damaged.png").write_bytes(b"no image")
    assert run(checkpoint, tmp_path / "out.csv", tmp_path / "images") == 1
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    text = "16-bit images are nearly black: the brightest pixel is 4095 of 65535 (2 checked); save them 16 times"
    assert warnings == ([] if factor is None else [f"{tmp_path / 'images' / '0.png'}: {text} as bright"])


def test_an_image_comes_through_a_pipe(checkpoint, images, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = (images / "a.png").read_bytes()
    writer = threading.Thread(target=lambda: pipe.write_bytes(content), daemon=True)
    writer.start()
    assert run(checkpoint, tmp_path / "out.csv", pipe) == 0
    writer.join(30)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + 2


def test_a_path_that_leads_to_nothing_is_named(checkpoint, images, tmp_path, capsys):
    for path, line in (
        (images / "no.png", "no such file or folder"),
        (images / "sub" / "*.gif", "expected an image, a video, a folder with some, or a glob that matches some"),
    ):
        assert run(checkpoint, tmp_path / "out.json", path) == 2
        assert capsys.readouterr().err == f"error: {path}: {line}\n"


def test_no_bar_is_drawn_where_standard_error_is_no_terminal(checkpoint, images, tmp_path, capsys):
    assert run(checkpoint, tmp_path / "out.json", images) == 0
    assert "\r" not in capsys.readouterr().err


def test_an_output_without_a_known_ending_wants_a_format(checkpoint, images, tmp_path, capsys):
    assert run(checkpoint, tmp_path / "out.txt", images) == 2
    assert "out.txt: expected a name that ends with .json or .csv, or --format" in capsys.readouterr().err
    assert run(checkpoint, tmp_path / "out.txt", images, "--format", "native") == 0
    assert json.loads((tmp_path / "out.txt").read_text())["dataset"]


def test_overlays_are_pictures_with_marks(checkpoint, images, tmp_path):
    assert run(checkpoint, tmp_path / "out.json", images, "--overlays", tmp_path / "drawn") == 0
    drawn = np.asarray(Image.open(tmp_path / "drawn" / "sub" / "b.jpg")).astype(int)
    plain = np.asarray(Image.open(images / "sub" / "b.jpg")).astype(int)
    assert drawn.shape == plain.shape
    assert np.abs(drawn - plain)[5:20, 22:38].max() > 60
    assert np.abs(drawn - plain)[30:, :20].max() < 40


def test_overlays_of_files_that_differ_by_their_ending_are_files_of_their_own(checkpoint, tmp_path):
    for name in ("in/a/one.png", "in/a/one.bmp", "in/a/one.png.png", "in/b/one.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dots((40, 60), [(30.5, 20.5)])).save(tmp_path / name)
    assert run(checkpoint, tmp_path / "out.json", tmp_path / "in", "--overlays", tmp_path / "drawn") == 0
    drawn = sorted(str(path.relative_to(tmp_path / "drawn")) for path in (tmp_path / "drawn").rglob("*.*"))
    assert drawn == ["a/one.bmp.jpg", "a/one.png.jpg", "a/one.png.png.jpg", "b/one.png.jpg"]


@pytest.mark.parametrize(("width", "legend"), [(140, False), (150, True), (321, True)])
def test_overlays_have_a_legend_where_there_is_room(checkpoint, tmp_path, width, legend):
    Image.fromarray(dots((61, width), [(30.5, 20.5)])).save(tmp_path / "image.png")
    assert run(checkpoint, tmp_path / "out.json", tmp_path / "image.png", "--overlays", tmp_path / "drawn") == 0
    drawn = np.asarray(Image.open(tmp_path / "drawn" / "image.jpg")).astype(int)
    assert drawn.shape[1] == width
    below = drawn[61:]
    assert len(below) % 2 == 0
    assert bool(len(below)) is legend
    if legend:  # a dot in the colour of each channel, and the words, which end before the border
        assert all(np.abs(below - colour).sum(axis=2).min() < 90 for colour in channel_colours(2))
        assert below[:, -4:].max() < 60
        # What the size of a cross means takes more than half of the width, and is left out below a small picture.
        assert (np.median(below.max(axis=(0, 2))) > 60) == (width > 300)


def test_an_unreadable_file_is_reported_and_skipped(checkpoint, images, tmp_path, caplog):
    (images / "broken.png").write_bytes(b"\x89PNG broken")
    assert run(checkpoint, tmp_path / "out.json", images) == 1
    assert "broken.png" in caplog.text
    assert len(json.loads((tmp_path / "out.json").read_text())["dataset"]) == 3


def test_paths_that_lead_to_nothing_beside_others_are_reported_and_skipped(checkpoint, images, tmp_path, caplog):
    (images / "empty").mkdir()
    gone = [images / "no.png", images / "none" / "*.png", images / "empty"]
    assert run(checkpoint, tmp_path / "out.json", gone[0], images / "sub", *gone[1:]) == 1
    entries = json.loads((tmp_path / "out.json").read_text())["dataset"]
    assert [entry["image_path"] for entry in entries] == ["b.jpg", "c.png"]
    several = "expected an image, a video, a folder with some, or a glob that matches some"
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        f"skipped: {gone[0]}: no such file or folder",
        f"skipped: {gone[1]}: {several}",
        f"skipped: {gone[2]}: {several}",
    ]


@pytest.mark.parametrize("what", ["", "*.png", "*"])
def test_links_that_lead_to_nothing_are_reported_and_skipped(checkpoint, images, tmp_path, caplog, what):
    (images / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (images / "round.png").symlink_to(images / "round.png")
    (images / "notes").symlink_to(tmp_path / "nowhere")  # no image by its name
    drawn = tmp_path / "drawn"
    assert run(checkpoint, tmp_path / "out.json", "--overlays", drawn, images / what) == 1
    skipped = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(skipped) == 2
    assert skipped[0] == f"skipped: {images / 'gone.png'}: no such image file"
    assert skipped[1].startswith(f"skipped: {images / 'round.png'}: cannot be read")
    entries = json.loads((tmp_path / "out.json").read_text())["dataset"]
    assert [entry["image_path"] for entry in entries] == (["a.png"] if what else list(PLACES))
    assert len(list(drawn.rglob("*.jpg"))) == len(entries)


def test_links_to_folders_below_a_folder_are_not_followed_and_those_that_are_given_are(images, tmp_path):
    (tmp_path / "given").symlink_to(images)
    (images / "up").symlink_to(tmp_path)
    found, wrong = find_inputs([str(tmp_path / "given")])
    assert [path.relative_to(tmp_path / "given").as_posix() for path in found] == list(PLACES)
    assert common_folder(found) == tmp_path / "given"
    assert not wrong


def test_several_paths_that_all_lead_to_nothing_are_bad_input(checkpoint, images, tmp_path, capsys):
    assert run(checkpoint, tmp_path / "out.json", images / "no.png", images / "none.png") == 2
    line = f"error: {images / 'no.png'}: no such file or folder; none of the 2 paths leads to an image or a video\n"
    assert capsys.readouterr().err == line
    assert not (tmp_path / "out.json").exists()


def test_of_several_processes_the_first_one_counts_the_paths_that_lead_to_nothing(checkpoint, images, tmp_path, caplog):
    stale = tmp_path / "out.json.partial0"
    stale.write_text('{"--tile": 5}\n')

    class Second(Processes):
        def gather(self, value):
            if value is None:
                stale.unlink()  # which the first one does, and it alone
            return [value]

    for name in ("x.png", "y.png"):  # nearly black, which is warned of
        Image.fromarray(np.full((20, 30), 4095, np.uint16)).save(images / name)
    paths = [str(images / name) for name in ("no.png", "x.png", "y.png")]
    arguments = (paths, str(checkpoint), str(tmp_path / "out.json"))
    assert predict_command.predict(*arguments, processes=Second("cpu", 1, 2)) == 0
    assert not caplog.records
    assert predict_command.predict(*arguments, processes=Processes("cpu")) == 1
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_an_interrupted_run_goes_on_where_it_stopped(checkpoint, images, tmp_path, monkeypatch, capsys):
    real, seen = predict_command.load_image, []

    def interrupted(path):
        seen.append(path.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(predict_command, "load_image", interrupted)
    output = tmp_path / "out.json"
    assert run(checkpoint, output, images, "--batch_size", 1) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted: add --resume to continue"
    assert not output.exists()
    assert run(checkpoint, output, "--batch_size", 1, "--resume", images) == 0
    assert seen == ["a.png", "b.jpg", "c.png", "c.png"]
    assert [entry["image_path"] for entry in json.loads(output.read_text())["dataset"]] == list(PLACES)


@pytest.mark.parametrize(
    "other",
    [
        ("--score_threshold", 0.9), ("--score_threshold", '{"red": 0.9}'), ("--max_keypoints", 1), ("--tile", 64),
        ("--overlays", "drawn"),  # those of the images before the interruption would be missing
    ],
)  # fmt: skip
def test_an_interrupted_run_keeps_its_settings(checkpoint, images, tmp_path, monkeypatch, capsys, other):
    real, output = predict_command.load_image, tmp_path / "out.json"

    def interrupted(path):
        if path.name == "c.png":
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict_command, "load_image", interrupted)
    assert run(checkpoint, output, images, "--batch_size", 1) == 130
    monkeypatch.setattr(predict_command, "load_image", real)
    (partial,) = tmp_path.glob("*.partial*")
    before = partial.read_bytes()
    assert run(checkpoint, output, "--resume", *other, images) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(partial) in error
    assert other[0] in error
    assert partial.read_bytes() == before
    assert run(checkpoint, output, "--resume", images) == 0
    assert len(json.loads(output.read_text())["dataset"]) == 3


def test_a_run_that_goes_on_has_the_same_checkpoint_and_the_same_folder(checkpoint, images, tmp_path, capsys):
    other = tmp_path / "other.ckpt"
    torch.save(torch.load(checkpoint, weights_only=True) | {"epoch": 7}, other)
    settings = {
        "--checkpoint": hashlib.sha256(checkpoint.read_bytes()).hexdigest(), "--score_threshold": None,
        "--max_keypoints": None, "--tile": None, "folder of all PATHS": str(images),
    }  # fmt: skip
    (tmp_path / "out.csv.partial0").write_text(json.dumps(settings) + "\n")
    for model, path, named in ((other, images, "--checkpoint"), (checkpoint, images / "sub", "folder of all PATHS")):
        assert run(model, tmp_path / "out.csv", "--resume", path) == 2
        assert f"out.csv.partial0 was started with a different {named}; expected the same" in capsys.readouterr().err
    assert run(checkpoint, tmp_path / "out.csv", "--resume", images) == 0


def test_without_resume_nothing_is_left_of_an_earlier_run(checkpoint, images, tmp_path):
    (tmp_path / "out.csv.partial0").write_text('{"--tile": 5}\n["a.png", null, 4, 3, {"red": []}, {"red": []}]\n')
    assert run(checkpoint, tmp_path / "out.csv", images) == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + 3


def test_only_what_is_a_file_can_be_resumed(checkpoint, images, capsys):
    assert run(checkpoint, "/dev/null", "--format", "csv", "--resume", images) == 2
    assert capsys.readouterr().err == "error: --resume: expected a regular file as --output, got /dev/null\n"


def test_a_video_that_was_interrupted_goes_on_and_is_drawn_whole(checkpoint, tmp_path, monkeypatch):
    places, video, drawn = [(12.5 + 4 * frame, 20.5) for frame in range(5)], tmp_path / "in.mp4", tmp_path / "drawn"
    with imageio.get_writer(video, fps=10, macro_block_size=2, quality=10) as writer:
        for place in places:
            writer.append_data(dots((48, 64), [place]))
    real = predict_command.as_predicted

    def interrupted(name, frame, *arguments):
        if frame == 3:
            raise KeyboardInterrupt
        return real(name, frame, *arguments)

    monkeypatch.setattr(predict_command, "as_predicted", interrupted)
    arguments = [video, "--overlays", drawn, "--keypoint_coordinates", "normalized", "--score_threshold", 0.3]
    assert run(checkpoint, tmp_path / "out.json", *arguments) == 130
    monkeypatch.undo()
    assert run(checkpoint, tmp_path / "out.json", "--resume", *arguments) == 0
    dataset = json.loads((tmp_path / "out.json").read_text())["dataset"]
    assert [entry["image_path"] for entry in dataset] == [f"in.mp4#{frame}" for frame in range(5)]
    assert np.allclose([entry["red"][0] for entry in dataset], np.array(places) / (64, 48), atol=0.02)
    assert len(list(imiter(drawn / "in.mp4", plugin="FFMPEG"))) == 5
    assert immeta(drawn / "in.mp4", plugin="FFMPEG")["fps"] == 10


def test_all_files_that_cannot_be_read_are_counted(checkpoint, images, tmp_path):
    for name in ("b1.png", "b2.png", "b1.avi", "b2.avi"):
        (images / name).write_bytes(b"broken")
    arguments = ([str(images)], str(checkpoint), str(tmp_path / "OUT.CSV"))
    assert predict_command.predict(*arguments, batch_size=1, device="cpu") == 4


@pytest.mark.parametrize(("flag", "count", "side"), [("--max_keypoints 1", 2, 60), ("--tile 32", 3, 32)])
def test_the_most_keypoints_and_the_side_of_tiles_are_taken(
    checkpoint, images, tmp_path, monkeypatch, flag, count, side
):
    seen = []
    forward = RedAndGreen.forward
    monkeypatch.setattr(RedAndGreen, "forward", lambda self, batch: (seen.append(batch.shape), forward(self, batch))[1])
    assert run(checkpoint, tmp_path / "out.csv", images, *flag.split()) == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + count  # of three, of which two in one image
    assert {shape[-1] for shape in seen} == {side}


def test_journals_of_an_output_whose_name_is_a_pattern_are_its_own(tmp_path):
    for name in ("out[1].csv.partial0", "out[1].csv.partial1", "out1.csv.partial0", "out[1].csv"):
        (tmp_path / name).touch()
    found = prediction_files.Journal.paths(tmp_path / "out[1].csv")
    assert found == [tmp_path / "out[1].csv.partial0", tmp_path / "out[1].csv.partial1"]


def test_a_line_that_was_cut_off_is_predicted_again(tmp_path):
    journal = prediction_files.Journal(tmp_path / "j", {})
    image = prediction_files.PredictedImage("a.png", None, 4, 3, {"red": [[1.0, 2.0]]}, {"red": [0.5]})
    journal.add(image)
    with journal.path.open("a") as file:
        file.write('["b.png", null')
    again = prediction_files.Journal(tmp_path / "j", {})
    assert again.done == {("a.png", None)}
    again.add(image._replace(name="b.png"))
    assert [entry.name for entry in again] == ["a.png", "b.png"]
    other = prediction_files.Journal(tmp_path / "j", {}, rank=1, world=2)  # another process knows both
    other.add(image._replace(name="c.png"))
    assert [entry.name for entry in again] == ["a.png", "b.png", "c.png"]
    assert other.close() == 1
    first = prediction_files.Journal(tmp_path / "j", {}, rank=0, world=2)
    assert first.close() == 2
    assert first.holds([2, 1])
    assert not first.holds([2, 2])  # a line is missing
    assert not first.holds([3, 1])
    first.remove()
    assert not list(tmp_path.iterdir())


def test_one_process_goes_on_where_several_stopped(tmp_path):
    image = prediction_files.PredictedImage("clip.mp4", 3, 4, 3, {"red": [[1.0, 2.0]]}, {"red": [0.5]})
    second = prediction_files.Journal(tmp_path / "j", {"--tile": 5}, rank=1, world=2)
    second.add(image)
    second.close()
    with pytest.raises(InputError, match=r"j\.partial1 was started with a different --tile; expected"):
        prediction_files.Journal(tmp_path / "j", {"--tile": 6})
    alone = prediction_files.Journal(tmp_path / "j", {"--tile": 5})
    assert alone.done == {("clip.mp4", 3)}
    assert list(alone) == [image]
    assert alone.close() == 0
    alone.remove()
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_kind_in_the_place_of_a_journal_is_refused_and_one_that_is_gone_is_no_error(tmp_path):
    (tmp_path / "j.partial0").write_text("[5]\n")
    with pytest.raises(InputError, match=r"j\.partial0 was started with a different --tile; expected"):
        prediction_files.Journal(tmp_path / "j", {"--tile": 5})
    journal = prediction_files.Journal(tmp_path / "k", {}, rank=0, world=2)  # the second process has none yet
    journal.close()
    journal.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["j.partial0"]


def test_frames_that_two_processes_predicted_are_in_their_order_and_after_images(tmp_path):
    image = prediction_files.PredictedImage("clip.mp4", 2, 4, 3, {}, {})
    found = [image, image._replace(frame=0), image._replace(frame=1), image._replace(name="a.png", frame=None)]
    files = [tmp_path / "a.png", tmp_path / "clip.mp4"]
    ordered = predict_command._in_order(found, files, tmp_path)
    assert [entry.frame for entry in ordered] == [None, 0, 1, 2]
    assert predict_command._in_order(found, files[:1], tmp_path) == found[3:]  # others are of an earlier run


def test_files_of_processes_that_share_no_disk_are_missed(checkpoint, images, tmp_path):
    class NoSharedDisk(Processes):
        def gather(self, value):
            return [value, (0, 1)] if isinstance(value, tuple) else [value, value]

    output = tmp_path / "out.json"
    processes = NoSharedDisk("cpu", rank=0, world=2)
    with pytest.raises(InputError, match=r"--output .*out\.json: partial results are missing; expected"):
        predict_command.predict([str(images)], str(checkpoint), str(output), processes=processes)
    assert not output.exists()
    kept = (tmp_path / "out.json.partial0").read_text().splitlines()
    assert [json.loads(line)[0] for line in kept[1:]] == ["a.png", "sub/c.png"]


def test_of_two_at_once_with_one_output_the_one_that_lost_its_images_says_so(
    checkpoint, images, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "out.csv"
    predict_images = predict_command._predict_images

    def predict_while_another_one_starts_and_ends(*arguments):
        failed = predict_images(*arguments)
        monkeypatch.undo()
        assert run(checkpoint, output, images) == 0
        return failed

    monkeypatch.setattr(predict_command, "_predict_images", predict_while_another_one_starts_and_ends)
    assert run(checkpoint, output, images) == 2
    text = "partial results are missing; expected a folder that all machines see, and no other predict command"
    assert f"error: --output {output}: {text} with this output\n" in capsys.readouterr().err
    assert len(output.read_text().splitlines()) == 1 + 3  # keypoints, which the other one has written


@pytest.mark.parametrize(("rank", "code"), [(0, 1), (1, 0)])
def test_only_the_first_process_ends_with_an_error_for_unreadable_files(monkeypatch, rank, code):
    answers = {start_processes: Processes("cpu", rank, world=2), predict_command.predict: 3}
    monkeypatch.setattr(predict_command.flags, "call", lambda function, *_, **__: answers[function])
    assert predict_command.main(["--checkpoint", "c.ckpt", "--output", "o.json", "images"]) == code


@pytest.mark.parametrize(("devices", "num_nodes"), [(-1, 1), (0, 1), (1, 0)])
def test_a_number_of_processes_that_lightning_refuses_is_one_line(
    checkpoint, images, tmp_path, devices, num_nodes, capsys
):
    numbers = ("--devices", devices, "--num_nodes", num_nodes)
    assert run_on_any(checkpoint, tmp_path / "out.csv", "--accelerator", "cpu", *numbers, images) == 2
    assert capsys.readouterr().err.startswith(f"error: --accelerator cpu --devices {devices}: ")


def test_frames_of_a_video_are_images_of_their_own_and_drawn_into_a_video(checkpoint, tmp_path, caplog):
    places = [(12.5 + 4 * frame, 20.5) for frame in range(5)]
    video = tmp_path / "clips" / "moving.mp4"
    video.parent.mkdir()
    with imageio.get_writer(video, fps=10, macro_block_size=2, quality=10) as writer:
        for place in places:
            writer.append_data(dots((48, 64), [place]))
    (tmp_path / "clips" / "broken.avi").write_bytes(b"no video")
    arguments = [tmp_path / "clips", "--overlays", tmp_path / "drawn", "--batch_size", 2, "--score_threshold", 0.3]
    Image.fromarray(dots((48, 64), places[:2])).save(tmp_path / "still.png")
    with caplog.at_level("INFO"):
        # One error is for the broken one.
        assert run(checkpoint, tmp_path / "with.json", tmp_path / "clips", tmp_path / "still.png", *arguments[1:]) == 1
        assert run(checkpoint, tmp_path / "out.json", *arguments) == 1
    assert "with.json: 7 keypoints in 1 image and 5 frames; " in caplog.text
    assert "out.json: 5 keypoints in 5 frames; " in caplog.text
    both = json.loads((tmp_path / "with.json").read_text())["dataset"]
    assert both[0]["image_path"] == "still.png"  # images come first, whichever are given first
    dataset = json.loads((tmp_path / "out.json").read_text())["dataset"]
    assert [entry["image_path"] for entry in dataset] == [f"moving.mp4#{frame}" for frame in range(5)]
    assert np.allclose([entry["red"][0] for entry in dataset], places, atol=1)
    drawn = list(imiter(tmp_path / "drawn" / "moving.mp4", plugin="FFMPEG"))
    assert len(drawn) == 5
    assert drawn[0].shape == (48, 64, 3)
    plain = list(imiter(video, plugin="FFMPEG"))
    assert all(np.abs(a.astype(int) - b).max() > 60 for a, b in zip(drawn, plain, strict=True))


def test_a_video_that_ffmpeg_does_not_write_is_an_error_also_where_an_earlier_one_is(
    checkpoint, tmp_path, monkeypatch, capsys
):
    video, drawn = tmp_path / "in.mp4", tmp_path / "drawn"
    imageio.mimwrite(video, [dots((48, 64), PLACES["a.png"])] * 2, fps=10, macro_block_size=2)
    drawn.mkdir()
    shutil.copy(video, drawn)
    monkeypatch.setattr(imageio, "get_writer", MagicMock())
    assert run(checkpoint, tmp_path / "out.csv", video, "--overlays", drawn) == 2
    error = f"error: --overlays {drawn}: {drawn / 'in.mp4'}: cannot be written"
    assert capsys.readouterr().err.splitlines()[-1] == error


@pytest.mark.parametrize("size", [(41, 61), (41, 161)])  # without a legend, and with one
def test_a_video_of_odd_sides_is_drawn_pixel_by_pixel_and_not_resized(checkpoint, tmp_path, caplog, size):
    video = tmp_path / "moving.avi"
    imageio.mimwrite(video, [dots(size, PLACES["a.png"])] * 2, fps=10, codec="png", macro_block_size=1)
    assert run(checkpoint, tmp_path / "out.csv", video, "--overlays", tmp_path / "drawn") == 0
    drawn = imiter(tmp_path / "drawn" / "moving.mp4", plugin="FFMPEG")
    assert all(frame.shape[1] == size[1] + 1 and frame.shape[0] % 2 == 0 for frame in drawn)
    assert not [record for record in caplog.records if record.name.startswith("imageio") and "resizing" in record.msg]


@pytest.mark.parametrize("missing", ["nothing.png", "nowhere/*.png"])
def test_a_path_that_leads_to_nothing_is_bad_input(checkpoint, tmp_path, missing, capsys):
    assert run(checkpoint, tmp_path / "out.json", tmp_path / missing) == 2
    assert missing in capsys.readouterr().err


def test_a_file_that_is_given_in_two_ways_is_predicted_once(checkpoint, images, tmp_path, monkeypatch):
    monkeypatch.chdir(images / "sub")
    assert run(checkpoint, tmp_path / "out.json", "../a.png", images / "a.png", "b.jpg") == 0
    entries = json.loads((tmp_path / "out.json").read_text())["dataset"]
    assert [entry["image_path"] for entry in entries] == ["a.png", "sub/b.jpg"]


def test_overlays_stay_in_their_folder_and_no_input_is_overwritten(checkpoint, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(images / "sub")
    shutil.copy(images / "sub" / "b.jpg", images / "x.jpg")
    before = {path: path.read_bytes() for path in images.rglob("*.*")}
    assert run(checkpoint, tmp_path / "out.json", "--overlays", "../../drawn", "../x.jpg", "b.jpg") == 0
    drawn = tmp_path / "drawn"
    assert {path.relative_to(drawn).as_posix() for path in drawn.rglob("*.jpg")} == {"x.jpg", "sub/b.jpg"}
    for folder in (images, images / "sub" / "..", "../../images"):
        assert run(checkpoint, tmp_path / "out.json", "--overlays", folder, images) == 2
        assert "would overwrite the images" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in images.rglob("*.*")} == before


def test_the_checkpoint_is_not_overwritten(checkpoint, images, tmp_path, capsys):
    own = tmp_path / "own.ckpt"
    shutil.copy(checkpoint, own)
    (tmp_path / "link.csv").symlink_to(own)
    content = own.read_bytes()
    for output in (own, tmp_path / "link.csv"):
        assert run(own, output, "--format", "csv", images) == 2
        text = f"error: {output}: would overwrite an input file, expected another name\n"
        assert capsys.readouterr().err == text
    assert own.read_bytes() == content


def test_no_input_is_overwritten_by_the_output(checkpoint, images, capsys):
    image = images / "sub" / "b.jpg"
    content = image.read_bytes()
    assert run(checkpoint, image, "--format", "csv", images) == 2
    text = f"error: {image}: would overwrite an input file, expected another name\n"
    assert capsys.readouterr().err == text
    assert image.read_bytes() == content


def test_overlays_of_an_earlier_run_are_no_inputs(checkpoint, images, tmp_path):
    for _ in range(2):
        assert run(checkpoint, tmp_path / "out.json", "--overlays", images / "drawn", images) == 0
        entries = json.loads((tmp_path / "out.json").read_text())["dataset"]
        assert [entry["image_path"] for entry in entries] == list(PLACES)


def test_what_cannot_be_written_is_one_line_and_no_unreadable_video(checkpoint, images, tmp_path, capsys):
    video = tmp_path / "moving.mp4"
    imageio.mimwrite(video, [dots((40, 60), PLACES["a.png"])] * 3, fps=10, macro_block_size=2)
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    for output, flags, named in (
        ("folder.json", [], "folder.json: is a folder, expected a file"),
        ("out.json", ["--overlays", tmp_path / "file"], "cannot be written there"),
    ):
        assert run(checkpoint, tmp_path / output, *flags, video) == 2
        assert named in capsys.readouterr().err.splitlines()[-1]
    drawn = tmp_path / "drawn"
    (drawn / "moving.mp4").mkdir(parents=True)  # where the video has to go
    assert run(checkpoint, tmp_path / "out.json", "--overlays", drawn, video) == 2
    assert any("moving.mp4: cannot be written" in line for line in capsys.readouterr().err.splitlines())
    assert not (tmp_path / "out.json").exists()


def test_what_belongs_to_the_overlays_is_left_out_of_all_kinds_of_paths(images, monkeypatch):
    monkeypatch.chdir(images)
    (images / "drawn").mkdir()
    shutil.copy(images / "a.png", images / "drawn" / "a.jpg")
    for paths in (["."], ["**/*"], ["a.png", "sub", "drawn"]):
        found, wrong = find_inputs(paths, "drawn")
        assert not wrong
        assert sorted(path.as_posix() for path in found) == sorted(PLACES), paths
    with pytest.raises(InputError, match="drawn drawn: expected images outside the folder of --overlays"):
        find_inputs(["drawn", "drawn"], "drawn")
    with pytest.raises(InputError, match=r"^--overlays"):
        find_inputs(["a.png"], "")


def test_a_folder_of_overlays_above_is_left_out_however_it_is_named(images, tmp_path, monkeypatch):
    monkeypatch.chdir(images / "sub")
    other = shutil.copy(images / "a.png", tmp_path / "other.png")
    for overlays in ("..", str(images), "../sub/.."):
        assert find_inputs([str(images), str(other)], overlays) == ([other], [])


def test_endings_may_be_in_capitals_and_a_folder_with_one_is_no_image(tmp_path):
    for name in ("A.PNG", "b.MP4", "b[1].png"):
        (tmp_path / name).touch()
    (tmp_path / "c.png").mkdir()
    assert find_inputs([str(tmp_path)]) == ([tmp_path / name for name in ("A.PNG", "b.MP4", "b[1].png")], [])
    assert find_inputs([str(tmp_path / "b[1].png")]) == ([tmp_path / "b[1].png"], [])  # itself, and not a pattern
    assert [is_video(Path(name)) for name in ("A.PNG", "b.MP4")] == [False, True]


def test_an_empty_path_is_no_folder_and_of_two_spellings_the_first_is_taken(images, monkeypatch):
    monkeypatch.chdir(images)
    assert find_inputs(["", "a.png", str(images / "a.png")]) == ([Path("a.png")], ["'': no such file or folder"])


def test_files_behind_a_link_are_told_from_those_beside_it(images, tmp_path, monkeypatch):
    (tmp_path / "real" / "sub").mkdir(parents=True)
    shutil.copy(images / "a.png", tmp_path / "real" / "a.png")
    (images / "link").symlink_to(tmp_path / "real" / "sub")
    monkeypatch.chdir(images)
    found, _ = find_inputs(["a.png", "link/../a.png", "sub/../a.png"])
    assert [path.as_posix() for path in found] == ["a.png", "link/../a.png"]
    assert common_folder(found) == tmp_path


@pytest.mark.parametrize("kind", ["image", "video"])
def test_memory_that_does_not_suffice_is_one_line(kind, checkpoint, images, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has\nnone")

    video = tmp_path / "v.mp4"
    with imageio.get_writer(video, fps=5, macro_block_size=2) as writer:
        writer.append_data(dots((40, 60), PLACES["a.png"]))
    monkeypatch.setattr(RedAndGreen, "forward", fail)
    assert run(checkpoint, tmp_path / "out.json", images if kind == "image" else video) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: not enough memory for 2.50 GiB more: to use less, try a smaller --batch_size or smaller images"
    )


@pytest.mark.parametrize(
    ("coordinates", "expected"),
    # 10.1234 / 640 and 20.5678 / 480 to a thousandth of a pixel and less, which of 640 takes 7 digits
    [("pixel", [10.123, 20.568]), ("normalized", [0.0158178, 0.0428496]), ("blender", [0.0158178, 0.9571504])],
)
def test_points_are_written_to_a_thousandth_of_a_pixel_in_every_convention(coordinates, expected):
    assert prediction_files.convert_points([[10.1234, 20.5678]], 640, 480, coordinates) == [expected]
