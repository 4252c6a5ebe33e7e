"""Every kind of bad data set ends in one clear line that names the file and what is wrong."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from keypoint_detection.data import json_stream
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.images import scan_sizes
from keypoint_detection.data.json_stream import JsonStream
from keypoint_detection.data.validation import leave_out_outside
from keypoint_detection.errors import InputError

WIDTH, HEIGHT = 20, 10


def entry(number, **changes):
    values = {"image_path": f"images/{number}.png", "corner": [[0.5, 0.25]], "flap": [[0.1, 0.9], [0.2, 0.8]]}
    values.update(changes)
    return {key: value for key, value in values.items() if value is not None}


def native(*entries, **top):
    return json.dumps({"dataset": [entry(0), *entries], **top})


def coco(images=None, annotations=None, categories=None, **top):
    """Changes are merged into a valid file of one image, object and category; a list takes the place of all."""

    def merged(change, default):
        return change if isinstance(change, list) else [{**default, **(change or {})}]

    values = {
        "images": merged(images, {"id": 1, "file_name": "images/0.png", "width": WIDTH, "height": HEIGHT}),
        "annotations": merged(annotations, {"id": 1, "image_id": 1, "category_id": 1, "keypoints": [5, 5, 2, 0, 0, 0]}),
        "categories": merged(categories, {"id": 1, "name": "box", "keypoints": ["corner", "flap"]}),
    }
    values.update(top)
    return json.dumps({key: value for key, value in values.items() if value is not None})


def read(path, **arguments):
    annotations = read_annotations(path, path.parent, **arguments)
    return leave_out_outside(annotations, scan_sizes(annotations))


@pytest.fixture(params=["fast", "standard"])
def parser(request, monkeypatch):
    """The optional faster parser, where it is installed, and the standard library's: both have to refuse the same."""
    if request.param == "standard":
        monkeypatch.setattr(json_stream, "fast_loads", json.loads)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


DEEP = "[" * 100_000
CASES = {
    # The file as a whole.
    "empty file": ("", ["the file is empty"]),
    "only white space": (" \n ", ["the file is empty"]),
    "truncated": (native(entry(1))[:-30], ["line 1, column", "too early", "cut off"]),
    "truncated between entries": ('{"dataset": [' + json.dumps(entry(0)) + ",\n", ["line 2, column 1", "entry 1"]),
    "truncated in a key": ('{"data', ["line 1", "too early"]),
    "trailing comma": ('{"dataset": [' + json.dumps(entry(0)) + ",\n]}", ["line 2, column 1", "Expecting value"]),
    "missing comma": ('{"dataset": [' + json.dumps(entry(0)) + " {}]}", ['expected ","', "line 1"]),
    "no colon": ('{"dataset" [', ['expected ":"', "column 12"]),
    "no quotes around a key": ("{dataset: []}", ["double quotes", "column 2"]),
    "text after the end": (native() + "]", ["more text after the end"]),
    "not JSON": ("image_path,u,v\n", ["not valid JSON at line 1, column 1"]),
    "single quotes": (native(entry(1)).replace('"', "'"), ["column 2", "double quotes"]),
    "nested without end": ('{"dataset": ' + DEEP, ["deep"]),
    "a list at the top": (json.dumps([entry(0)]), ["a list at the top level", '"dataset"']),
    "a number at the top": ("12", ['"dataset"']),
    "no dataset": (json.dumps({"datasett": [], "x": 1}), ['"dataset"', "datasett, x"]),
    "nothing at the top": ("{}", ['"dataset"', "found none"]),
    "the dataset is an object": (json.dumps({"dataset": {"a": 1}}), ["expected a list", '{"a": 1}']),
    "the dataset is null": (json.dumps({"dataset": None}), ["expected a list", "null"]),
    "no entry": (json.dumps({"dataset": []}), ["the data set is empty"]),
    "dataset twice": ('{"dataset": [' + json.dumps(entry(0)) + '], "dataset": []}', ['"dataset" occurs twice']),
    "unknown coordinates": (native(coordinates="opengl"), ["opengl", "blender, normalized, pixel"]),
    "coordinates are no text": (native(coordinates=3), ['"coordinates" is 3', "pixel"]),
    # Entries.
    "an entry is a list": (native([1, 2]), ["entry 1 is [1, 2]", "expected an object"]),
    "an entry is null": (native(None), ["entry 1 is null"]),
    "the first entry is a path": (json.dumps({"dataset": ["a.png"]}), ["entry 0 is 'a.png'"]),
    "no path": (native(entry(1, image_path=None)), ['entry 1 has no "image_path"']),
    "path misspelt": (native(entry(1, image_path=None, imagepath="a")), ["entry 1", '(did you mean "imagepath"?)']),
    "path is a number": (native(entry(1, image_path=7)), ["entry 1", '"image_path" is 7']),
    "path is empty": (native(entry(1, image_path="")), ["entry 1", "the path is empty"]),
    "path holds null": (native(entry(1, image_path="a\0.png")), ["entry 1", "null character"]),
    "path leaves the folder": (native(entry(1, image_path="../a.png")), ["entry 1", "leads out of the image folder"]),
    "path leaves it in the middle": (native(entry(1, image_path="images/../../a.png")), ["entry 1", "leads out of"]),
    "absolute path": (native(entry(1, image_path="/etc/a.png")), ["entry 1", "leads out of the image folder"]),
    "an image twice": (native(entry(1), entry(2), entry(1)), ['entry 3 ("images/1.png")', "as entry 1"]),
    "twice in other words": (native(entry(1, image_path="./images//0.png")), ["entry 1", "as entry 0"]),
    "twice with more slashes": (native(entry(1, image_path="images//0.png")), ["entry 1", "as entry 0"]),
    "only a path": (json.dumps({"dataset": [{"image_path": "images/0.png"}]}), ["entry 0 has no channel"]),
    "missing channel": (native(entry(1), entry(2, flap=None)), ["entry 2", "images/2.png", 'no channel "flap"']),
    "misspelt channel": (native(entry(1, flap=None, flaps=[])), ["entry 1", '"flap"', '(did you mean "flaps"?)']),
    "additional channel": (native(entry(1, lid=[])), ["entry 1", '"lid"', "entry 0 has no list"]),
    "a key twice": (native(entry(1)).replace('"flap"', '"corner"', 2), ["entry 0", '"corner" occurs twice']),
    "a channel called scores": (
        native(entry(1, scores=[]), entry(2, scores=[[0.5, 0.5]])),
        ['entry 2 ("images/2.png"): "scores" is a list of keypoints', "expected another name"],
    ),
    "only a channel called scores": (
        json.dumps({"dataset": [{"image_path": "images/0.png", "scores": [[0.5, 0.5, 1]]}]}),
        ['entry 0: "scores" is a list of keypoints'],
    ),
    # Keypoints.
    "channel is a number": (native(entry(1, corner=0.5)), ["entry 1", 'channel "corner" is 0.5', "list of keypoints"]),
    "channel is one point": (native(entry(1, corner=[0.5, 0.5])), ['"corner": keypoint 0 is 0.5', "[u, v]"]),
    "nested too deep": (native(entry(1, corner=[[[0.5, 0.5]]])), ["keypoint 0 has 1 number,"]),
    "nested two deep": (native(entry(1, corner=[[[0.5], [0.5]]])), ["keypoint 0 holds [0.5]", "a number"]),
    "one coordinate": (native(entry(1, flap=[[0.5, 0.5], [0.5]])), ["entry 1", '"flap": keypoint 1 has 1 number,']),
    "four coordinates": (native(entry(1, corner=[[0, 0, 0, 0]])), ["has 4 numbers", "[u, v, depth]"]),
    "balanced lengths": (native(entry(1, flap=[[1], [0, 0, 1]])), ["keypoint 0 has 1 number,"]),
    "empty keypoint": (native(entry(1, corner=[[]])), ["keypoint 0 has 0 numbers"]),
    "keypoint is an object": (native(entry(1, corner=[{"u": 0.5, "v": 1}])), ["keypoint 0 is {'u': 0.5"]),
    "keypoint is text": (native(entry(1, corner=["ab"])), ["keypoint 0 is 'ab'"]),
    "text for a number": (native(entry(1, corner=[["0.5", 0.5]])), ["entry 1", "holds '0.5'", "a number"]),
    "null for a number": (native(entry(1, corner=[[0.5, None]])), ["entry 1", "holds null"]),
    "truth for a number": (native(entry(1, corner=[[0.5, True]])), ["entry 1", "holds True"]),
    "NaN": (native(entry(1, corner=[[0.5, float("nan")]])), ["entry 1", '"corner"', "holds nan", "finite"]),
    "infinity": (native(entry(1, corner=[[float("-inf"), 0.5]])), ["entry 1", "holds -inf", "finite"]),
    "depth is NaN": (native(entry(1, corner=[[0.5, 0.5, float("nan")]])), ["entry 1", "holds nan"]),
    "too large for float32": (native(entry(1, corner=[[0.5, 1e39]])), ["entry 1", "1e+39", "finite"]),
    "too large for a float": (native(entry(1, corner=[[0.5, 10**400]])), ["entry 1", "1000000", "finite"]),
    "most keypoints outside": (
        native(entry(1, corner=[[15, 2]], flap=[[18, 9], [9, 9], [2, 2]]), entry(2, flap=[[3, 3], [4, 4], [5, 5]])),
        ['entry 1 ("images/1.png"), channel "corner": the keypoint (15, 2)', "--keypoint_coordinates pixel"],
    ),
    "outside under any convention": (
        native(entry(1, flap=[[-3, 300]] * 20)),
        ['entry 1 ("images/1.png"), channel "flap"', "20 of 24", "no other"],
    ),
    "pixels of at most 1": (native(entry(1), coordinates="pixel"), ["no coordinate is above 1", "blender"]),
    # Image files.
    "image missing": (native(entry(9)), ['entry 1 ("images/9.png")', "no such image file"]),
    "backslashes": (native(entry(1, image_path="images\\1.png")), ["entry 1", 'expected "/"']),
    "image is a folder": (native(entry(1, image_path="images/folder.png")), ["entry 1", "is a folder"]),
    "image is empty": (native(entry(1, image_path="images/empty.png")), ["entry 1", "the file is empty"]),
    "image is text": (native(entry(1, image_path="images/text.png")), ["entry 1", "not an image"]),
    "image is cut off in its header": (native(entry(1, image_path="images/cut.png")), ["entry 1", "images/cut.png:"]),
    # COCO.
    "no images in COCO": (coco(images=[]), ["the data set is empty"]),
    "no annotations in COCO": (
        coco().replace("annotations", "annotation"),
        ['expected the key "annotations"', '"annotation"?'],
    ),
    "COCO categories misspelt": (coco(categories=[]).replace("categories", "category"), ['"category"?']),
    "COCO without keypoints": (coco(categories={"keypoints": []}), ['no category has "keypoints"']),
    "COCO names no text": (coco(categories={"keypoints": [1, 2]}), ["category 0", "list of names"]),
    "COCO name twice": (coco(categories={"keypoints": ["a", "a"]}), ["category 0", "twice"]),
    "COCO image without name": (coco(images={"file_name": None}), ["image 0", '"file_name" is None']),
    "COCO image is a number": (coco(images=[3]), ["image 0 is 3", "expected an object"]),
    "COCO id twice": (
        coco(images=[{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]),
        ['image 1 ("b")', "the id 1 already belongs to image 0"],
    ),
    "COCO width is text": (coco(images={"width": "20"}), ["image 0", "\"width\" is '20'"]),
    "COCO size is wrong": (coco(images={"width": 40}), ["images/0.png", "40 x 10", "20 x 10"]),
    "COCO unknown image": (coco(annotations={"image_id": 5}), ["annotation 0", "no image has the id 5"]),
    "COCO unknown category": (coco(annotations={"category_id": 5}), ["annotation 0", "no category has the id 5"]),
    "COCO id as text": (coco(annotations={"image_id": "1"}), ["annotation 0", "no image has the id '1'"]),
    "COCO category as text": (coco(annotations={"category_id": "1"}), ["annotation 0", "no category has the id '1'"]),
    "COCO pairs": (coco(annotations={"keypoints": [1, 2, 3, 4]}), ["annotation 0", "x, y, visibility"]),
    "COCO too few": (coco(annotations={"keypoints": [1, 2, 2]}), ["annotation 0", "1 keypoints, expected the 2"]),
    "COCO text": (coco(annotations={"keypoints": ["1", 2, 2, 0, 0, 0]}), ["annotation 0", "holds '1'"]),
    "COCO NaN": (coco(annotations={"keypoints": [float("nan"), 2, 2, 0, 0, 0]}), ["annotation 0", "finite"]),
    "COCO visibility": (coco(annotations={"keypoints": [1, 2, 3, 0, 0, 0]}), ["annotation 0", "visibility 0, 1 or 2"]),
    "COCO visibility of the second object": (
        coco(
            annotations=[
                {"id": 1, "image_id": 1, "category_id": 1, "keypoints": [5, 5, 2, 0, 0, 0]},
                {"id": 2, "image_id": 1, "category_id": 1, "keypoints": [1, 2, 3, 0, 0, 0]},
            ]
        ),
        ["annotation 1", "a keypoint is 1, 2, 3"],
    ),
    "COCO image twice": (
        coco(images=[{"id": 1, "file_name": "images/0.png"}, {"id": 2, "file_name": "images/0.png"}]),
        ["entry 1", "as entry 0"],
    ),
    "COCO normalized": (coco(annotations={"keypoints": [0.5, 0.5, 2, 0.1, 0.1, 2]}), ["no coordinate is above 1"]),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES.keys())
@pytest.mark.usefixtures("parser")
def test_bad_file_is_refused_in_one_line(folder, text, expected):
    (folder / "images" / "folder.png").mkdir()
    (folder / "images" / "empty.png").touch()
    (folder / "images" / "text.png").write_text("I am no image")
    (folder / "images" / "cut.png").write_bytes((folder / "images" / "0.png").read_bytes()[:20])
    path = folder / "data.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:")
    assert "\n" not in message
    assert len(message) < 500
    for words in expected:
        assert words in message


ARGUMENTS = {
    "unknown channel": ({"keypoint_channels": "corner flaps"}, ['"flaps"', '(did you mean "flap"?)']),
    "nothing like it": ({"keypoint_channels": ["wing"]}, ['"wing"', "corner, flap"]),
    "channel twice": ({"keypoint_channels": "corner flap corner"}, ['"corner" twice']),
    "channel twice in a merge": ({"keypoint_channels": "corner=flap flap"}, ['"flap" twice']),
    "unknown channel in a merge": ({"keypoint_channels": "corner=flip"}, ['"flip"', '"flap"']),
    "no channel": ({"keypoint_channels": " "}, ["keypoint_channels is empty"]),
    "unknown coordinates": ({"keypoint_coordinates": "yolo"}, ["coordinates yolo", "blender, normalized, pixel"]),
}


@pytest.mark.parametrize(("arguments", "expected"), ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_bad_argument_is_refused_in_one_line(folder, arguments, expected):
    path = folder / "data.json"
    path.write_text(native(entry(1)))
    with pytest.raises(InputError) as caught:
        read(path, **arguments)
    assert "\n" not in str(caught.value)
    for words in expected:
        assert words in str(caught.value)


def test_missing_files_and_folders_are_named(folder):
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        read(folder / "none.json")
    with pytest.raises(InputError, match="images: is a folder"):
        read(folder / "images")
    (folder / "data.json").write_text(native())
    with pytest.raises(InputError, match="nowhere: no such folder"):
        read_annotations(folder / "data.json", folder / "nowhere")
    with pytest.raises(InputError, match=r"data\.json: not a folder"):
        read_annotations(folder / "data.json", folder / "data.json")


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        ({"pose": [1, 2, 3]}, {"pose": [4, 5, 6]}, 'entry 0 ("images/0.png"), channel "pose": keypoint 0 is 1,'),
        ({"pose": [[1, 0, 0, 0]]}, {"pose": [[1, 0, 0, 0]]}, 'channel "pose": keypoint 0 has 4 numbers,'),
        ({"pose": []}, {"pose": 5}, 'entry 1 ("images/1.png"), channel "pose" is 5,'),
        ({"tags": []}, {"tags": ["x"]}, 'entry 1 ("images/1.png"), channel "tags": keypoint 0 is \'x\','),
        ({}, {"tags": ["x"]}, 'entry 1 ("images/1.png") has a channel "tags", for which entry 0 has no list'),
    ],
)
def test_a_list_that_is_no_channel_is_refused_with_the_way_to_leave_it_out(folder, first, second, problem):
    path = folder / "data.json"
    path.write_text(json.dumps({"dataset": [entry(0, **first), entry(1, **second)]}))
    with pytest.raises(InputError) as caught:
        read(path)
    assert problem in str(caught.value)
    assert str(caught.value).endswith("; if it is not a channel, name the channels with --keypoint_channels")
    assert read(path, keypoint_channels="corner flap").channel_names == ("corner", "flap")


def test_what_is_wrong_with_a_channel_that_was_asked_for_is_said_without_a_way_to_leave_it_out(folder):
    path = folder / "data.json"
    path.write_text(json.dumps({"dataset": [entry(0, corner=[1, 2])]}))
    with pytest.raises(InputError) as caught:
        read(path, keypoint_channels="corner")
    assert str(caught.value).endswith('channel "corner": keypoint 0 is 1, expected [u, v] or [u, v, depth]')
    path.write_text(json.dumps({"dataset": [entry(0, corner=[[1, None]])]}))
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).endswith('channel "corner": keypoint 0 holds null, expected a number')


@pytest.mark.parametrize("space", ["", " ", "\t", "\n", "\r\n", " \t "])
@pytest.mark.parametrize("key", ["flap", "image_path", "note", "a:b"])
@pytest.mark.usefixtures("parser")
def test_a_key_twice_is_refused_however_it_is_spaced(folder, space, key):
    content = [entry(number, **{"a:b": 1, "note": {"by": "me"}}) for number in range(3)]
    texts = [json.dumps(one) for one in content]
    path = folder / "data.json"
    path.write_text('{"dataset": [' + ", ".join(texts).replace('":', f'"{space}:') + "]}")
    assert read(path).names[2] == "images/2.png"
    texts[1] = f'{texts[1][:-1]}, "{key}"{space}: []}}'
    path.write_text('{"dataset": [' + ", ".join(texts) + "]}")
    with pytest.raises(InputError, match=rf'data\.json: entry 1: .* the key "{key}" occurs twice'):
        read(path)
    texts[1] = json.dumps(entry(1, note={"by": "me"})).replace("}", f', "by"{space}: 1}}', 1)
    path.write_text('{"dataset": [' + ", ".join(texts) + "]}")
    with pytest.raises(InputError, match='the key "by" occurs twice'):
        read(path)


@pytest.mark.parametrize(
    "data", [b"\xff\xfe{\x00}\x00", b'{"dataset": "\xff"}', bytes(range(256)), b'{"dataset": []}\xc3']
)
def test_bytes_that_are_no_text_are_refused(folder, data):
    (folder / "data.json").write_bytes(data)
    with pytest.raises(InputError, match=r"data\.json: not a text file in UTF-8"):
        read(folder / "data.json")


def test_an_unreadable_file_is_named(folder, monkeypatch):
    (folder / "data.json").write_text(native())

    def refuse(self, *arguments, **keywords):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"data\.json: cannot be read \(Permission denied\)"):
        read(folder / "data.json")


@pytest.mark.parametrize("position", [0, 1500, 2999])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.usefixtures("parser")
def test_the_culprit_is_named_wherever_it_stands_in_a_long_file(tmp_path, position, indent):
    """Three thousand entries are read in several parts; line, column and number count over all of them."""
    entries = [{"image_path": f"{n}.png", "corner": [[n / 3000, 0.5]] * 8} for n in range(3000)]
    entries[position]["corner"][5] = [0.25, 0.5, 0.75, "here"]
    text = json.dumps({"dataset": entries}, indent=indent)
    (tmp_path / "long.json").write_text(text)
    with pytest.raises(
        InputError, match=rf'entry {position} \("{position}\.png"\), channel "corner": keypoint 5 has 4'
    ):
        read_annotations(tmp_path / "long.json", tmp_path)
    start = text.index('"here"')
    (tmp_path / "long.json").write_text(text[:start])
    line, column = text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start)
    with pytest.raises(InputError, match=rf"entry {position}: .* line {line}, column {column}: .*too early"):
        read_annotations(tmp_path / "long.json", tmp_path)


def test_a_few_keypoints_outside_are_left_out_with_one_warning(folder, caplog):
    path = folder / "data.json"
    path.write_text(native(entry(1, flap=[[0.3, 1.25], [1, 0], [0.5, 0.5]]), entry(2, corner=[[-0.1, 0.5]])))
    annotations = read(path)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert 'entry 1 ("images/1.png"), channel "flap": the keypoint (0.3, 1.25)' in warnings[0]
    assert "2 of 10" in warnings[0]
    assert annotations.counts().tolist() == [[1, 2], [1, 2], [0, 2]]
    # [1, 0] in Blender's convention is the bottom right corner; it stays.
    assert np.allclose(annotations.keypoints(1, WIDTH, HEIGHT)[1], [[WIDTH, HEIGHT], [WIDTH / 2, HEIGHT / 2]])


ROUNDED = {  # what is written, and what the file is said to hold
    "normalized": ([[1.0000001, 0.5], [-9e-7, 1.0000009], [0.25, 0.75]], {"coordinates": "normalized"}),
    "blender": ([[1.0000001, 0.5], [-9e-7, -9e-7], [0.25, 0.25]], {"coordinates": "blender"}),
    "pixel": ([[WIDTH + 2e-6, HEIGHT / 2], [-1.8e-5, HEIGHT + 9e-6], [5, 7.5]], {"coordinates": "pixel"}),
}


def rounded(how, points):
    if how == "coco":
        keypoints = [value for point in points for value in [*point, 2]]
        category = {"id": 1, "keypoints": [f"corner_{number}" for number in range(len(points))]}
        return coco(annotations={"keypoints": keypoints}, categories=[category])
    return json.dumps({**ROUNDED[how][1], "dataset": [{"image_path": "images/0.png", "corner": points}]})


@pytest.mark.parametrize("how", [*ROUNDED, "coco"])
def test_a_keypoint_outside_by_a_rounding_lies_on_the_border(folder, how, caplog):
    path = folder / "data.json"
    path.write_text(rounded(how, ROUNDED["pixel" if how == "coco" else how][0]))
    (points,) = read(path).keypoints(0, WIDTH, HEIGHT)
    assert points.tolist() == [[WIDTH, HEIGHT / 2], [0, HEIGHT], [5, 7.5]]
    assert not caplog.records


@pytest.mark.parametrize(
    ("how", "point", "written"),
    [
        ("normalized", [1.0000012, 0.5], "(1.000001, 0.5) is outside 0 to 1"),
        ("blender", [0.1, -1.2e-6], "(0.1, -1.192093e-06) is outside 0 to 1"),
        ("pixel", [5, HEIGHT + 1.2e-5], "(5, 10.00001) is outside an image of 20 x 10"),
        ("coco", [WIDTH + 2.4e-5, 5], "(20.00002, 5) is outside an image of 20 x 10"),
    ],
)
def test_a_keypoint_that_is_just_outside_is_shown_to_be(folder, how, point, written, caplog):
    path = folder / "data.json"
    path.write_text(rounded(how, [point, [0.1, 0.2], *([[1.5, 2]] if how in ("pixel", "coco") else [[0.3, 0.4]])]))
    assert len(read(path).xy) == 2
    assert written in caplog.text


def test_a_rounding_is_a_millionth_of_the_side_of_each_image(folder):
    path = folder / "data.json"
    entries = [{"image_path": f"images/{number}.png", "corner": [[2000.0015, 5], [3, 5]]} for number in range(3)]
    path.write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    sizes = np.array([[2000, 10], [1000, 10], [0, 0]])  # in the last one, of unknown size, nothing is told
    left = leave_out_outside(read_annotations(path, folder), sizes)
    assert left.xy.tolist() == [[2000, 5], [3, 5], [3, 5], [np.float32(2000.0015), 5], [3, 5]]


def test_keypoints_of_images_of_unknown_size_stay_in_pixels_and_count_for_neither_side(folder):
    points = [[5, 5]], [[WIDTH + 1, 5], [6, 6], [7, 7]]
    entries = (entry(number, corner=corner, flap=[]) for number, corner in enumerate(points))
    path = folder / "labels.json"
    path.write_text(json.dumps({"coordinates": "pixel", "dataset": list(entries)}))
    annotations = read_annotations(path, folder)
    assert leave_out_outside(annotations, np.array([[WIDTH, HEIGHT], [0, 0]])) is annotations
    # One of three is outside, which is no reason to refuse the file; the keypoint of the other image is not judged.
    left = leave_out_outside(annotations, np.array([[0, 0], [WIDTH, HEIGHT]]))
    assert left.xy.tolist() == [[5, 5], [6, 6], [7, 7]]


@pytest.mark.parametrize(
    ("farther", "advice"),
    [([[500, 5]], "use --keypoint_coordinates pixel"), ([[500, 5]] * 3, "they fit no other --keypoint_coordinates")],
)
def test_a_convention_that_fits_most_keypoints_is_advised(folder, farther, advice):
    path = folder / "data.json"
    path.write_text(json.dumps({"dataset": [entry(0, corner=[[5, 5], [6, 6], [7, 7]], flap=farther)]}))
    with pytest.raises(InputError, match=advice):
        read(path)


@pytest.mark.parametrize("points", [[], [[0.5, 1]]])
def test_a_file_with_too_few_keypoints_to_tell_is_believed_to_be_in_pixels(folder, points):
    path = folder / "data.json"
    path.write_text(json.dumps({"coordinates": "pixel", "dataset": [entry(0, corner=points, flap=[])]}))
    assert read(path).xy.tolist() == points


@pytest.mark.parametrize("part_characters", [1, 7, 64, 1 << 20])
def test_line_and_column_are_those_of_the_file_in_however_many_parts_it_is_read(tmp_path, part_characters):
    text = '{"first": 1,\n "second": [' + ", ".join(map(str, range(40))) + '], "third": oops}'
    (tmp_path / "long.json").write_text(text)
    column = text.index("oops") - text.index("\n")
    with (
        JsonStream(tmp_path / "long.json", part_characters) as stream,
        pytest.raises(InputError, match=rf"line 2, column {column}:"),
    ):
        list(stream)


def test_a_value_far_longer_than_a_part_is_read_in_few_attempts(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({"note": "x" * 2**14}))
    with JsonStream(tmp_path / "labels.json", part_characters=16) as stream:
        file, asked = stream._file, []
        stream._file = SimpleNamespace(read=lambda size: asked.append(size) or file.read(size), close=file.close)
        assert [stream.value() for _ in stream] == ["x" * 2**14]
    assert len(asked) < 20  # ten that each double what there is, and not a thousand; a look at the end is one too


def test_items_that_are_read_one_by_one_come_in_parts_all_the_same(tmp_path):
    # Keys three deep are more than are counted, so that each part is read again; an item is 25 characters long.
    items = [{"a": {"b": {"c": number}}} for number in range(100, 300)]
    (tmp_path / "labels.json").write_text(json.dumps({"dataset": items}))
    with JsonStream(tmp_path / "labels.json", part_characters=100) as stream:
        parts = [part for _ in stream for part in stream.items()]
    assert [item for part in parts for item in part] == items
    assert max(map(len, parts)) <= 8  # what is left of one part and the next one are less than 200 characters
