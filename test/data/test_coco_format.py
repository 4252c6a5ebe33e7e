"""COCO objects of which no keypoint is labelled: they are counted and said, since they train as background."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from keypoint_detection.convert import convert
from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.validation import check_dataset
from keypoint_detection.errors import InputError
from keypoint_detection.evaluation.inputs import fingerprint_as_trained, read_labels

CATEGORIES = [
    {"id": 1, "name": "person", "keypoints": ["nose", "tail"]},
    {"id": 2, "name": "wheel", "keypoints": ["hub"]},
    {"id": 3, "name": "box"},
    {"id": 4, "name": "bag", "keypoints": None},
]
IMAGES = [{"id": number, "file_name": f"{number}.png"} for number in (1, 2, 3)]
LABELLED = [
    {"image_id": 1, "category_id": 1, "keypoints": [5, 5, 2, 0, 0, 0]},
    {"image_id": 3, "category_id": 2, "keypoints": [5, 5, 1]},
]
CROWD = {"iscrowd": 1, "segmentation": {"counts": [10, 20], "size": [10, 20]}}
# Three people without labels beside one with, a crowd alone, and a wheel.
UNLABELLED = [
    {"image_id": 1, "category_id": 1, "keypoints": [0] * 6},
    {"image_id": 1, "category_id": 1, "keypoints": []},
    {"image_id": 1, "category_id": 1, "keypoints": None},
    {"image_id": 2, "category_id": 1, **CROWD},
    {"image_id": 3, "category_id": 2, "keypoints": [7, 7, 0]},
]
# Nobody could label keypoints of these.
OTHERS = [
    {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]},
    {"image_id": 1, "category_id": 4, "keypoints": []},
    {"image_id": 1, "category_id": 9, "bbox": [1, 2, 3, 4]},
    {"image_id": 9, "category_id": 1, "keypoints": []},
    {"image_id": [1], "category_id": {}, "bbox": [1, 2, 3, 4]},
]
ABSENT = "they count as background (see --empty_channels)"
ALL = f"no labelled keypoint on 5 objects (iscrowd: 1) in 3 images; {ABSENT}"
WHEEL = f"no labelled keypoint on 1 object (iscrowd: 0) in 1 image; {ABSENT}"


@pytest.fixture
def coco(tmp_path):
    def write(objects, first="images", images=IMAGES):
        values = {"images": images, "annotations": objects, "categories": CATEGORIES}
        for image in images:
            Image.new("RGB", (20, 10)).save(tmp_path / image["file_name"])
        path = tmp_path / "coco.json"
        path.write_text(json.dumps({first: values[first], **values}))
        return path

    return write


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("first", ["images", "annotations"])
def test_objects_without_a_labelled_keypoint_are_said_once(coco, caplog, first):
    path = coco([*UNLABELLED[:2], *LABELLED, *OTHERS, *UNLABELLED[2:]], first)
    annotations = read_annotations(path, path.parent)
    assert annotations.counts().tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert warnings(caplog) == [f"{path}: {ALL}"]


@pytest.mark.parametrize(("channels", "said"), [("hub", WHEEL), ("hub=nose", ALL), (["tail", "hub"], ALL)])
def test_only_objects_of_the_channels_that_are_read_count(coco, caplog, channels, said):
    path = coco([*LABELLED, *UNLABELLED])
    read_annotations(path, path.parent, keypoint_channels=channels)
    assert [warning for warning in warnings(caplog) if "labelled" in warning] == [f"{path}: {said}"]


def test_nothing_is_said_where_every_object_is_labelled_or_has_no_keypoints(coco, caplog):
    path = coco([*LABELLED, *OTHERS])
    assert read_annotations(path, path.parent).counts().sum() == 2
    assert not caplog.records
    assert not any("labelled" in warning for warning in check_dataset(path, path.parent).warnings)


def test_check_reports_it_and_says_it_nowhere_else(coco, caplog):
    path = coco([*LABELLED, *UNLABELLED])
    assert check_dataset(path, path.parent).warnings.count(ALL) == 1
    assert not caplog.records


def test_training_evaluating_and_converting_say_it(coco, caplog):
    path = coco([*LABELLED, *UNLABELLED], images=[*IMAGES, *({"id": n, "file_name": f"{n}.png"} for n in range(4, 20))])
    KeypointsDataModule(path, heatmap_sigma=2.0, heatmap_stride=2).setup()
    names = ["nose", "tail", "hub"]
    labels = read_labels(path, path.parent, names, "blender")
    network = SimpleNamespace(channel_names=names, evaluation={})
    assert fingerprint_as_trained(network, *labels, {"hub": "hub"}, "blender")  # reads it again and says nothing
    convert(path, path.parent / "native.json", "native")
    assert [warning for warning in warnings(caplog) if ALL in warning] == [f"{path}: {ALL}"] * 3


@pytest.mark.parametrize("value", ["", {}, 0, False])
def test_keypoints_of_another_kind_are_refused(coco, value):
    path = coco([*LABELLED, {"image_id": 1, "category_id": 1, "keypoints": value}])
    with pytest.raises(InputError, match=r'annotation 2: "keypoints" is .*, expected x, y, visibility'):
        read_annotations(path, path.parent)


@pytest.mark.parametrize(("numbers", "said"), [(52, "52 numbers"), (4, "4 numbers"), (1, "1 number")])
def test_keypoints_that_are_no_triples_are_counted_however_many(coco, numbers, said):
    path = coco([*LABELLED, {"image_id": 1, "category_id": 1, "keypoints": [123.456] * numbers}])
    with pytest.raises(InputError) as error:
        read_annotations(path, path.parent)
    assert str(error.value) == (
        f'{path}: annotation 2: "keypoints" holds {said}, expected x, y, visibility of each keypoint'
    )


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([f"name {number}" for number in range(50)] + [7], '"keypoints" holds 7, expected a list of names'),
        ([f"name {number}" for number in range(50)] + [""], "\"keypoints\" holds '', expected a list of names"),
        ("nose", "\"keypoints\" is 'nose', expected a list of names"),
    ],
)
def test_what_is_no_name_in_a_category_is_shown_wherever_it_stands(tmp_path, names, said):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": IMAGES, "annotations": [], "categories": [{"id": 1, "keypoints": names}]}))
    with pytest.raises(InputError) as error:
        read_annotations(path, tmp_path)
    assert str(error.value) == f"{path}: category 0: {said}"


@pytest.mark.parametrize(
    ("width", "declared"), [(20, 20), (20.0, 20), (None, 0), (0.0, 0), ("left out", 0)], ids=lambda value: str(value)
)
def test_numbers_as_data_frames_write_them(coco, width, declared):
    image = {"id": 1.0, "file_name": "1.png", "height": 10.0} | ({} if width == "left out" else {"width": width})
    objects = [{"image_id": 1, "category_id": 2.0, "keypoints": [5, 5, 2.0]}]
    path = coco(objects, images=[image])
    annotations = read_annotations(path, path.parent)
    assert annotations.declared_sizes.tolist() == [[declared, 10]]
    assert annotations.xy.tolist() == [[5, 5]]
    assert not check_dataset(path, path.parent).errors


@pytest.mark.parametrize("width", [20.5, -1.0, 1e300, True, float("nan"), float("inf")])
def test_a_width_that_is_no_number_of_pixels_is_refused(coco, width):
    path = coco(LABELLED, images=[IMAGES[0] | {"width": width}, *IMAGES[1:]])
    with pytest.raises(InputError) as error:
        read_annotations(path, path.parent)
    shown = f'image 0 ("1.png"): "width" is {width!r}'
    assert str(error.value) == f"{path}: {shown}, expected a whole number of pixels"


@pytest.mark.parametrize("identifier", [1.5, None, [1], True])
def test_an_id_that_is_neither_a_whole_number_nor_text_is_refused(coco, identifier):
    path = coco(LABELLED, images=[IMAGES[0] | {"id": identifier}, *IMAGES[1:]])
    with pytest.raises(InputError) as error:
        read_annotations(path, path.parent)
    assert str(error.value) == f'{path}: image 0 ("1.png"): "id" is {identifier!r}, expected a whole number or text'
