"""Files of both formats against labels that were worked out by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from keypoint_detection.convert import convert
from keypoint_detection.data.channels import ChannelGroup
from keypoint_detection.data.coco_format import channels_of
from keypoint_detection.data.formats import FORMATS, read_annotations, recognise
from keypoint_detection.data.images import scan_sizes
from keypoint_detection.data.json_stream import JsonStream
from keypoint_detection.data.validation import check_dataset
from keypoint_detection.errors import InputError
from keypoint_detection.prediction_files import FILE_FORMATS

WIDTH, HEIGHT = 40, 20
# One image of 40 x 20 and the same two channels in each convention; the pixels are worked out by hand.
PIXELS = {"corner": [[10, 5], [40, 0]], "flap": [[0, 20]]}
NORMALIZED = {"corner": [[0.25, 0.25], [1, 0]], "flap": [[0, 1]]}
BLENDER = {"corner": [[0.25, 0.75], [1, 1]], "flap": [[0, 0]]}


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / name)
    return tmp_path


def save(folder, content, name="data.json", **arguments):
    (folder / name).write_text(json.dumps(content, **arguments))
    return folder / name


def table(annotations):
    sizes = scan_sizes(annotations)
    return [
        {name: np.round(xy, 4).tolist() for name, xy in zip(annotations.channel_names, keypoints, strict=True)}
        for keypoints in (annotations.keypoints(i, *sizes[i]) for i in range(len(annotations)))
    ]


@pytest.mark.parametrize(("labels", "how"), [(BLENDER, "blender"), (NORMALIZED, "normalized"), (PIXELS, "pixel")])
def test_conventions_mean_the_same_pixels(folder, labels, how):
    dataset = [{"image_path": "a.png", **labels}, {"image_path": "b.png", "corner": [], "flap": []}]
    expected = [PIXELS, {"corner": [], "flap": []}]
    by_flag = read_annotations(save(folder, {"dataset": dataset}), folder, keypoint_coordinates=how)
    assert table(by_flag) == expected
    # The file is believed, wherever it says so.
    for content in ({"coordinates": how, "dataset": dataset}, {"dataset": dataset, "coordinates": how}):
        assert table(read_annotations(save(folder, content), folder, keypoint_coordinates="pixel")) == expected
    assert by_flag.channel_names == ("corner", "flap")
    assert by_flag.path(1) == folder / "b.png"
    assert by_flag.depth is None


def test_depth_is_kept(folder):
    dataset = [
        {"image_path": "a.png", "corner": [[0.5, 0.5]]},
        {"image_path": "b.png", "corner": [[0.5, 0.25, 3], [0.25, 0.5], [0, 0, -1.5]]},
    ]
    annotations = read_annotations(save(folder, {"dataset": dataset}), folder)
    assert np.array_equal(annotations.depths(0)[0], [math.nan], equal_nan=True)
    assert np.array_equal(annotations.depths(1)[0], [3, math.nan, -1.5], equal_nan=True)
    assert table(annotations)[1] == {"corner": [[20, 15], [10, 10], [0, 20]]}


def test_scores_and_notes_are_no_channels(folder):
    first = {"image_path": "a.png", "corner": [[0, 0]], "scores": {"corner": [0.5]}, "date": "today", "id": 3}
    second = {"image_path": "b.png", "corner": [], "id": 4, "scores": [0.5, [0.9]]}
    annotations = read_annotations(save(folder, {"dataset": [first, second]}), folder)
    assert annotations.channel_names == ("corner",)
    # A list that is asked for by nobody may hold anything.
    boxes = [{**entry, "box": [1, 2, 3]} for entry in (first, second)]
    chosen = read_annotations(save(folder, {"dataset": boxes}), folder, keypoint_channels="corner")
    assert chosen.counts().tolist() == [[1], [0]]


def test_channels_are_chosen_ordered_and_merged(folder):
    dataset = [{"image_path": "a.png", "x": [[0, 0]], "y": [[0.5, 0]], "z": [[1, 0], [1, 1]]}]
    path = save(folder, {"dataset": dataset})
    annotations = read_annotations(path, folder, keypoint_channels="z=x y")
    assert table(annotations) == [{"z": [[40, 20], [40, 0], [0, 20]], "y": [[20, 20]]}]
    assert table(read_annotations(path, folder, keypoint_channels=["z=x", "y"])) == table(annotations)


@pytest.mark.parametrize("to", ["native", "coco"])
def test_channels_are_renamed_and_merged_into_a_new_name(folder, to):
    dataset = [{"image_path": "a.png", "x": [[0, 0]], "y": [[0.5, 0]], "z": [[1, 0], [1, 1]]}]
    native = save(folder, {"dataset": dataset})
    spec = "new=z=x one=y"
    expected = [{"new": [[40, 20], [40, 0], [0, 20]], "one": [[20, 20]]}]
    convert(native, folder / "same.json", to, folder)
    annotations = read_annotations(folder / "same.json", folder, keypoint_channels=spec)
    assert table(annotations) == expected
    assert annotations.groups == [ChannelGroup("new", ("z", "x")), ChannelGroup("one", ("y",))]
    convert(native, folder / "new.json", to, folder, keypoint_channels=spec)
    assert table(read_annotations(folder / "new.json", folder)) == expected


def test_a_new_name_is_that_of_no_channel_in_any_entry(folder):
    entries = [{"image_path": "a.png", "x": []}, {"image_path": "b.png", "x": [], "new": [[0, 0]]}]
    with pytest.raises(InputError, match='entry 1 has the channel "new", but entry 0 does not'):
        read_annotations(save(folder, {"dataset": entries}), folder, keypoint_channels="new=x")


def test_channels_that_nobody_asked_for_are_named(folder, caplog):
    entry = {"image_path": "a.png", "x": [[0, 0]], "y": [], "z": [[1, 0]], "note": "no channel"}
    native = save(folder, {"dataset": [entry, {**entry, "image_path": "b.png"}]})
    with caplog.at_level("INFO"):
        read_annotations(native, folder, keypoint_channels="x=z y")
        read_annotations(native, folder)
        assert not caplog.records
        read_annotations(native, folder, keypoint_channels="y")
        convert(native, folder / "deeper" / "coco.json", "coco", folder)
        read_annotations(folder / "deeper" / "coco.json", folder, keypoint_channels="x")
    first, second = (record.getMessage() for record in caplog.records)
    assert first.endswith("data.json: 2 channels left out: x, z")
    assert second.endswith("coco.json: 2 channels left out: y, z")


def test_channels_that_coco_cannot_tell_apart_are_named(folder, caplog):
    native = save(folder, {"dataset": [{"image_path": "a.png", "a": [[0, 0], [1, 1]], "a_0": [[1, 0]]}]})
    convert(native, folder / "coco.json", "coco", folder)
    assert 'the channel "a_0" will be read as "a_0_0"' in caplog.text
    assert read_annotations(folder / "coco.json", folder).channel_names == ("a", "a_0_0")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_may_be_indented_and_begin_with_a_byte_order_mark(folder, indent, encoding):
    (folder / "schön ☃.png").write_bytes((folder / "a.png").read_bytes())
    content = {"note": {"by": ["me"]}, "dataset": [{"image_path": "schön ☃.png", **BLENDER}], "n": 12}
    for ascii_only in (True, False):
        text = json.dumps(content, indent=indent, ensure_ascii=ascii_only)
        (folder / "data.json").write_text(text, encoding=encoding)
        annotations = read_annotations(folder / "data.json", folder)
        assert table(annotations) == [PIXELS]
        assert annotations.name(0) == "schön ☃.png"


COCO = {
    "info": {"year": 2020},
    "images": [
        {"id": 7, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
        {"id": 3, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
    ],
    "annotations": [
        {"image_id": 3, "category_id": 1, "keypoints": [1, 2, 2, 3, 4, 1, 0, 0, 0]},
        {"image_id": 3, "category_id": 2, "keypoints": [5, 6, 2]},
        {"image_id": 3, "category_id": 1, "keypoints": [0, 0, 0, 7.5, 8.25, 2, 9, 10, 2]},
        {"image_id": 3, "category_id": 3, "bbox": [1, 2, 3, 4]},
    ],
    "categories": [
        {"id": 1, "name": "box", "keypoints": ["corner_0", "corner_1", "nose"]},
        {"id": 2, "name": "lid", "keypoints": ["nose"]},
        {"id": 3, "name": "no keypoints"},
    ],
}


@pytest.mark.parametrize("order", [list(COCO), list(COCO)[::-1]])
def test_coco_by_hand(folder, order):
    path = save(folder, {key: COCO[key] for key in order})
    annotations = read_annotations(path, folder)
    assert recognise(path) == "coco"
    # Objects add up, 0 0 0 is missing, a name of two categories is one channel, an image without objects is a negative.
    assert table(annotations) == [
        {"corner": [], "nose": []},
        {"corner": [[1, 2], [3, 4], [7.5, 8.25]], "nose": [[5, 6], [9, 10]]},
    ]
    assert [annotations.name(i) for i in range(2)] == ["b.png", "a.png"]
    assert table(read_annotations(path, folder, keypoint_channels="nose"))[1] == {"nose": [[5, 6], [9, 10]]}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a_0", "a_1", "b"], ["a", "a", "b"]),
        (["a_1", "a_2"], ["a_1", "a_2"]),  # does not count from 0
        (["a_0", "a_2"], ["a_0", "a_2"]),  # has a gap
        (["a", "a_0"], ["a", "a_0"]),  # the channel has its own name already
        (["a_0_0", "a_0_1"], ["a_0", "a_0"]),
        (["a_00", "_0"], ["a_00", "_0"]),
        (["b_1", "a_0", "b_0"], ["b", "a", "b"]),
    ],
)
def test_numbered_names_are_one_channel(names, expected):
    assert channels_of(names) == expected


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("how", ["blender", "normalized", "pixel"])
def test_convert_there_and_back(folder, target, how):
    labels = {**PIXELS, "left_0": [[3.25, 7.125]], "none": []}
    dataset = [{"image_path": "b.png", **{key: [] for key in labels}}, {"image_path": "a.png", **labels}]
    source = save(folder, {"coordinates": "pixel", "dataset": dataset})
    written = folder / "out.json"
    convert(source, written, target, folder, output_coordinates=how)
    assert recognise(written) == target
    back = read_annotations(written, folder)
    assert table(back) == [{key: [] for key in labels}, labels]
    assert not list(folder.glob("*.partial"))
    if target == "native":
        said = json.loads(written.read_text())
        assert said.get("coordinates", "blender") == how


def test_convert_keeps_depth_in_its_own_format_and_says_that_coco_loses_it(folder, caplog):
    source = save(folder, {"dataset": [{"image_path": "a.png", "corner": [[0.5, 0.75, 2.5], [0.25, 0.5]]}]})
    convert(source, folder / "out.json", "native", folder)
    assert json.loads((folder / "out.json").read_text())["dataset"][0]["corner"] == [[0.5, 0.75, 2.5], [0.25, 0.5]]
    assert not caplog.records
    convert(source, folder / "out.json", "coco", folder)
    assert "depths" in caplog.text


def test_objects_that_are_written_have_the_box_around_their_keypoints(folder):
    labels = {"corner": [[10, 5], [30, 2]], "flap": [[12, 18]], "none": []}
    source = save(folder, {"coordinates": "pixel", "dataset": [{"image_path": "a.png", **labels}]})
    convert(source, folder / "out.json", "coco", folder)
    (found,) = json.loads((folder / "out.json").read_text())["annotations"]
    assert found["keypoints"] == [10, 5, 2, 30, 2, 2, 12, 18, 2, 0, 0, 0]
    assert found["num_keypoints"] == 3
    assert found["bbox"] == [10, 2, 20, 16]  # left, top, width, height
    assert found["area"] == 320


def test_convert_refuses_what_cannot_work(folder):
    source = save(folder, {"dataset": [{"image_path": "a.png", **BLENDER}]})
    with pytest.raises(InputError, match="--to yolo: expected one of native, coco"):
        convert(source, folder / "out.json", "yolo", folder)
    with pytest.raises(InputError, match="would overwrite"):
        convert(source, folder / "." / "data.json", "coco", folder)
    with pytest.raises(InputError, match=r"a\.png: would overwrite an input file"):
        convert(source, folder / "a.png", "coco", folder)
    with pytest.raises(InputError, match=r"--output .*a\.png/out\.json: cannot be written"):
        convert(source, folder / "a.png" / "out.json", "coco", folder)
    with pytest.raises(InputError, match="output_coordinates"):
        convert(source, folder / "out.json", "native", folder, output_coordinates="meters")


@pytest.mark.parametrize("name", ["image_path", "scores"])
def test_a_channel_called_as_what_stands_beside_channels_is_refused_by_the_native_format(folder, name):
    # `scores` would be left out by who reads the file, and `image_path` written in the place of the path.
    category = {"id": 1, "keypoints": [name]}
    objects = [{"image_id": 1, "category_id": 1, "keypoints": [10, 5, 2]}]
    image = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    path = save(folder, {"images": [image], "annotations": objects, "categories": [category]})
    with pytest.raises(InputError, match=f'channel "{name}"'):
        convert(str(path), str(folder / "out.json"), "native")
    assert not (folder / "out.json").exists()
    with pytest.raises(InputError, match=f'channel "{name}"'):
        FILE_FORMATS["native"]([], [name], "pixel")


@pytest.mark.parametrize("target", FORMATS)
def test_convert_leaves_out_keypoints_outside_as_check_does(folder, target, caplog):
    dataset = [{"image_path": "a.png", "corner": [[10, 5], [40, 0], [41, 5]]}]
    source = save(folder, {"coordinates": "pixel", "dataset": dataset})
    convert(source, folder / "out.json", target, folder)
    assert "keypoint (41, 5) is outside an image of 40 x 20; 1 of 3 keypoints are outside and left out" in caplog.text
    assert table(read_annotations(folder / "out.json", folder)) == [{"corner": [[10, 5], [40, 0]]}]
    report = check_dataset(folder / "out.json", folder)
    assert not report.errors
    assert not report.warnings


def test_convert_refuses_pixels_that_are_read_as_another_convention(folder):
    source = save(folder, {"dataset": [{"image_path": "a.png", **PIXELS}]})
    (said,) = check_dataset(source, folder).errors
    for target in FORMATS:
        with pytest.raises(InputError) as refused:
            convert(source, folder / "out.json", target, folder)
        assert str(refused.value) == said
        assert "use --keypoint_coordinates pixel" in said
    assert not (folder / "out.json").exists()
    convert(source, folder / "out.json", "native", folder, keypoint_coordinates="pixel")
    assert table(read_annotations(folder / "out.json", folder)) == [PIXELS]


def test_check_names_a_keypoint_outside_of_its_image_once_and_in_its_report(folder, caplog):
    dataset = [
        {"image_path": "a.png", "corner": [[0.5, 0.5]]},
        {"image_path": "b.png", "corner": [[0.5, 0.25], [0.5, 1.5]]},
    ]
    source = save(folder, {"dataset": dataset})
    report = check_dataset(source, folder, decode=False)
    assert report.warnings == [
        f'{source}: entry 1 ("b.png"), channel "corner": the keypoint (0.5, 1.5) is outside 0 to 1; 1 of 3 '
        'keypoints are outside and left out, read as "blender" coordinates (--keypoint_coordinates chooses others)'
    ]
    assert sum("outside" in line for line in report.lines()) == 1
    assert not caplog.records


def test_check_reports_counts_sizes_and_all_bad_images(folder):
    Image.new("L", (8, 6)).save(folder / "gray.png")
    (folder / "cut.png").write_bytes(_noise_png(folder)[:-200])
    dataset = [
        {"image_path": name, "corner": corner, "flap": [], "lid": [[0.5, 0.5]] * lids}
        for name, corner, lids in [
            ("a.png", [[0.5, 0.5], [0.5, 0.5]], 1),
            ("b.png", [], 0),
            ("gray.png", [[0.5, 1.5]], 1),
            ("cut.png", [[0, 0]], 1),
            ("missing.png", [[0, 0]], 1),
        ]
    ]
    report = check_dataset(save(folder, {"dataset": dataset}), folder)
    assert report.images == 5
    assert report.counts.tolist() == [[2, 0, 1], [0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 0, 1]]
    assert report.sizes == {(WIDTH, HEIGHT): 2, (8, 6): 1}
    assert report.conversions == {"grayscale, repeated as RGB": 1}
    assert len(report.errors) == 2
    assert 'entry 3 ("cut.png")' in report.errors[0]
    assert 'entry 4 ("missing.png")' in report.errors[1]
    for words in ("outside", '"flap"', "negatives", "repeat", "such as b.png of a.png"):
        assert sum(words in warning for warning in report.warnings) == 1
    assert len(report.warnings) == 5
    repeated = next(warning for warning in report.warnings if "repeat" in warning)
    assert "1 keypoint repeating" in repeated
    assert repeated.endswith('entry 0 ("a.png"), channel "corner"')
    assert "such as (0.5, 0.5) in " in repeated
    assert set(report.examples) == {0, 1, 2}
    text = report.lines()
    assert text[0].endswith("5 images, 3 channels, 8 keypoints")
    assert text[2].split() == ["corner", "4", "3", "2"]
    lines = replace(report, channel_names=("頭", "flap", "lid")).lines()
    assert lines[2].replace("頭    ", "corner") == text[2]
    # Without decoding, only the missing image shows.
    assert len(check_dataset(folder / "data.json", folder, decode=False).errors) == 1


def test_check_names_an_image_that_stands_in_the_file_under_two_names(tmp_path):
    draw = np.random.default_rng(0)
    pixels = [draw.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(2)]
    for name, image in zip(("a.bmp", "b.bmp"), pixels, strict=True):  # of as many bytes each, but others
        Image.fromarray(image).save(tmp_path / name)
    names = ["a.bmp", "b.bmp"]
    source = save(tmp_path, {"dataset": [{"image_path": name, "corner": [[0.5, 0.5]]} for name in names]})
    assert check_dataset(source, tmp_path).warnings == []
    for copy, original in (("c.bmp", "b.bmp"), ("d.bmp", "a.bmp"), ("e.bmp", "b.bmp")):
        (tmp_path / copy).write_bytes((tmp_path / original).read_bytes())
        names.append(copy)
    source = save(tmp_path, {"dataset": [{"image_path": name, "corner": [[0.5, 0.5]]} for name in names]})
    (said,) = check_dataset(source, tmp_path).warnings
    assert said == (
        "3 images are copies of others, such as c.bmp of b.bmp; if one is used for training and the other for "
        "validation, the metrics say little about new images"
    )
    assert check_dataset(source, tmp_path, decode=False).warnings == []


def _noise_png(folder):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    return (folder / "noise.png").read_bytes()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@example({"": -0.0}, [], 2, None)
@example({"a": 1.5e-7}, [], 1, None)
@given(
    st.dictionaries(st.text(max_size=4), json_values, max_size=3),
    st.lists(json_values, max_size=8),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
)
def test_the_stream_reads_what_the_standard_library_reads(tmp_path_factory, top, items, part, indent):
    """Whatever the text, and wherever it is cut into parts."""
    top["items"] = items
    path = tmp_path_factory.getbasetemp() / "stream.json"
    path.write_text(json.dumps(top, indent=indent))
    found = {}
    with JsonStream(path, part_characters=part) as stream:
        for key in stream:
            found[key] = [item for block in stream.items() for item in block] if key == "items" else stream.value()
    assert found == top
    assert list(found) == list(top)
