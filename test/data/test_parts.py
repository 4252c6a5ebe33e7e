import json

import numpy as np
import pytest
from data_sets import write_data_set

from keypoint_detection.data import parts
from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.data.formats import read_annotations
from keypoint_detection.data.trained_images import TrainedImages
from keypoint_detection.errors import InputError

NOTHING, SOMETHING, BOTH = {"a": []}, {"a": [[3, 4]]}, {"a": [[3, 4]], "b": [[3, 4]]}


@pytest.mark.parametrize(
    ("trained", "validated", "warned"),
    [
        (
            SOMETHING,
            NOTHING,
            "validation.json: no validation image has any keypoint, so the best checkpoint cannot be chosen",
        ),
        (SOMETHING, SOMETHING, None),
        (
            {"a": [], "b": [[3, 4]]},
            BOTH,
            "train.json: no training image has a keypoint of a, which therefore cannot be learned",
        ),
        (
            BOTH,
            SOMETHING | {"b": []},
            "validation.json: no validation image has a keypoint of b, so accuracy there is unknown and the score "
            "threshold is a guess",
        ),
    ],
)
def test_a_part_without_keypoints_is_said_to_tell_nothing(tmp_path, caplog, trained, validated, warned):
    files = []
    for name, keypoints in (("train", trained), ("validation", validated)):
        (tmp_path / name).mkdir()
        files.append(
            write_data_set(
                tmp_path / name,
                [(20, 10)] * 5,
                [keypoints] + [{channel: [] for channel in keypoints}] * 4,
                f"{name}.json",
            )
        )
    KeypointsDataModule(files[0], json_validation_dataset_path=files[1], heatmap_sigma=2.0, heatmap_stride=2).setup()
    assert [record.message.endswith(warned or "") for record in caplog.records] == ([True] if warned else [])


def test_a_rare_channel_that_no_image_to_validate_on_shows_is_said_with_a_way_out(tmp_path, caplog):
    path = write_data_set(tmp_path, [(20, 10)] * 60, [BOTH] + [SOMETHING | {"b": []}] * 59)
    for seed in range(4):
        caplog.clear()
        data = KeypointsDataModule(path, seed=seed, heatmap_sigma=2.0, heatmap_stride=2)
        data.setup()
        (record,) = caplog.records
        trained = data.train_annotations.counts()[:, 1].any()
        end = "a guess; another --seed gives another split" if trained else "which therefore cannot be learned"
        assert record.getMessage().endswith(end)


def names(annotations):
    return set(annotations.names)


def fine_tuning(path, trained, **given):
    """The data of a training that starts from weights that were trained on these images."""
    data = KeypointsDataModule(path, **given)
    data.trained_images = TrainedImages.of(trained)
    data.setup()
    return data


@pytest.fixture
def sixty(tmp_path):
    """Sixty images, and the first forty of them, in another file and order."""
    path = write_data_set(tmp_path, [(20, 10)] * 60, [SOMETHING] * 60)
    old = json.loads(path.read_text())
    old["dataset"] = old["dataset"][39::-1]
    (tmp_path / "old.json").write_text(json.dumps(old))
    return path, read_annotations(path, tmp_path), tmp_path / "old.json"


def test_only_images_that_the_weights_were_not_trained_on_are_split_off(sixty, caplog):
    path, images, _ = sixty
    caplog.set_level("INFO", "keypoint_detection")
    for seed in range(5):
        caplog.clear()
        data = fine_tuning(path, images.subset(range(40)), seed=seed)
        assert len(data.validation_annotations) == 5  # for a tenth of twenty is too few
        assert names(data.validation_annotations) <= names(images.subset(range(40, 60)))
        assert len(data.train_annotations) == 55
        assert f"{path}: validating on images that --checkpoint was not trained on" in caplog.messages
        assert "--checkpoint was trained on" not in caplog.text


def test_the_split_is_the_usual_one_if_it_validates_on_no_image_of_before(sixty, caplog):
    path, images, old = sixty
    caplog.set_level("INFO", "keypoint_detection")
    usual = KeypointsDataModule(old, seed=3)
    usual.setup()
    again = fine_tuning(old, usual.train_annotations, seed=3)  # on the very same file
    assert again.split == usual.split
    other = KeypointsDataModule(path, seed=3)
    other.setup()
    assert fine_tuning(path, images.subset([]), seed=3).split == other.split
    assert "--checkpoint" not in caplog.text


@pytest.mark.parametrize("how", ["split", "validation", "test"])
def test_measuring_on_images_of_before_is_said(sixty, tmp_path, caplog, how):
    path, images, _ = sixty
    if how == "split":  # too few are left to validate on
        data = fine_tuning(path, images.subset(range(55)))
        assert len(data.validation_annotations) == 6
    else:
        files = {}
        for index, name in enumerate(("train", "validation", "test")):
            content = json.loads(path.read_text())
            content["dataset"] = content["dataset"][20 * index : 20 * index + 20]
            files[name] = tmp_path / f"{name}.json"
            files[name].write_text(json.dumps(content))
        start = {"validation": 20, "test": 40}[how]
        data = fine_tuning(
            files["train"], images.subset(range(start + 5, start + 20)),
            json_validation_dataset_path=files["validation"], json_test_dataset_path=files["test"],
        )  # fmt: skip
        assert len(data.train_annotations) == 20
    (said,) = [message for message in caplog.messages if "--checkpoint" in message]
    part = "validation" if how == "split" else how
    measured = data.parts.annotations[part]
    trained = range(55) if how == "split" else range(start + 5, start + 20)
    seen = [name for name in measured.names if name in names(images.subset(trained))]
    assert said == (
        f"{part}: --checkpoint was trained on {len(seen)} of {len(measured)} images (first: {seen[0]}), so metrics on "
        "these are too optimistic"
    )


@pytest.mark.parametrize(
    ("trained", "validated", "folder", "name"),
    [
        ("here/train.json", "here/validation.json", None, "000.png"),
        ("here/train.json", "{root}/here/validation.json", None, "000.png"),
        ("here/train.json", "other/../here/validation.json", None, "000.png"),
        ("here/train.json", "linked/validation.json", None, "000.png"),
        ("here/train.json", "linked/validation.json", "linked", ".//000.png"),
        ("here/train.json", "here/validation.json", "{root}", "here/000.png"),
        ("here/train.json", "here/validation.json", "/", "{root}/here/000.png"),
    ],
)
def test_images_that_are_trained_on_and_measured_on_are_said_however_they_are_spelled(
    tmp_path, monkeypatch, caplog, trained, validated, folder, name
):
    (tmp_path / "here").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    write_data_set(tmp_path / "here", [(20, 10)] * 3, [SOMETHING] * 3, "train.json")
    for image in ("here/nine.png", "other/000.png"):
        (tmp_path / image).write_bytes((tmp_path / "here" / "000.png").read_bytes())
    image = name.format(root=tmp_path).lstrip("/")
    entries = [{"image_path": path, **SOMETHING} for path in (image, image.replace("000", "nine"))]
    (tmp_path / "here" / "validation.json").write_text(json.dumps({"coordinates": "pixel", "dataset": entries}))
    KeypointsDataModule(
        trained,
        json_validation_dataset_path=validated.format(root=tmp_path),
        image_validation_dataset_path=folder and folder.format(root=tmp_path),
        heatmap_sigma=2.0,
        heatmap_stride=2,
    ).setup()
    (record,) = caplog.records
    assert f"1 image in both train and validation (first: {tmp_path / 'here' / '000.png'})" in record.message
    assert "--image_validation_dataset_path" in record.message


def test_images_of_the_same_name_in_two_folders_are_two_images(tmp_path, caplog):
    for name in ("here", "other"):
        (tmp_path / name).mkdir()
        write_data_set(tmp_path / name, [(20, 10)] * 5, [SOMETHING] * 5)
    files = [tmp_path / name / "dataset.json" for name in ("here", "other")]
    KeypointsDataModule(files[0], json_validation_dataset_path=files[1], heatmap_sigma=2.0, heatmap_stride=2).setup()
    assert not caplog.records


@pytest.mark.parametrize(
    ("images", "ratio", "said"),
    [(4, 0.25, "1 image to validate on"), (10, 0.4, "4 images to validate on"), (10, 0.5, None)],
)
def test_numbers_from_a_few_validation_images_are_said_to_be_rough(tmp_path, caplog, images, ratio, said):
    path = write_data_set(tmp_path, [(20, 10)] * images, [SOMETHING] * images)
    KeypointsDataModule(path, validation_split_ratio=ratio, heatmap_sigma=2.0, heatmap_stride=2).setup()
    rough = f"{path}: {said}, so AP and score thresholds are rough"
    assert [record.message for record in caplog.records] == ([rough] if said else [])


def test_what_is_split_off_is_counted_and_a_small_test_set_is_no_matter(tmp_path, caplog):
    for name, count in (("train", 20), ("test", 2)):
        (tmp_path / name).mkdir()
        write_data_set(tmp_path / name, [(20, 10)] * count, [SOMETHING] * count)
    files = [tmp_path / name / "dataset.json" for name in ("train", "test")]
    with caplog.at_level("INFO"):
        KeypointsDataModule(files[0], json_test_dataset_path=files[1], validation_split_ratio=0.3).setup()
    assert f"{files[0]}: 14 images to train on, 6 to validate on" in caplog.messages
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_split_goes_by_its_seed_and_is_told_to_be_of_other_labels_where_it_is_used_again(tmp_path, caplog):
    def split_of(point, **given):
        path = write_data_set(tmp_path, [(20, 10)] * 10, [{"a": [point]}] * 10)
        data = KeypointsDataModule(path, validation_split_ratio=0.5, **given)
        data.setup()
        return data.split

    splits = [split_of([3, 4], seed=seed) for seed in range(4)]
    assert [split["seed"] for split in splits] == [0, 1, 2, 3]
    assert len({tuple(split["validation"]) for split in splits}) > 1
    assert split_of([3, 4], split=splits[3])["validation"] == splits[3]["validation"]
    assert not caplog.records
    split_of([5, 4], split=splits[3])
    assert caplog.messages == [f"{tmp_path / 'dataset.json'}: the labels have changed since the split was made."]


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_channel_of_the_training_file_that_another_file_lacks_is_named(tmp_path, part):
    files = {}
    for name, keypoints in (("train", BOTH), (part, SOMETHING)):
        (tmp_path / name).mkdir()
        files[name] = write_data_set(tmp_path / name, [(20, 10)] * 5, [keypoints] * 5)
    with pytest.raises(InputError) as error:
        KeypointsDataModule(files["train"], **{f"json_{part}_dataset_path": files[part]}).setup()
    assert str(error.value) == f'{files[part]}: no channel "b" in the file, which has a'


def test_of_a_few_images_that_are_trained_on_too_only_that_is_said(tmp_path, caplog):
    path = write_data_set(tmp_path, [(20, 10)] * 4, [SOMETHING] * 4)
    KeypointsDataModule(path, json_validation_dataset_path=path, heatmap_sigma=2.0, heatmap_stride=2).setup()
    (record,) = caplog.records
    said = "4 images in both train and validation (first: {}), so its metrics say nothing about new images"
    assert record.message == said.format(tmp_path / "000.png")


def test_of_a_few_images_without_keypoints_only_that_is_said(tmp_path, caplog):
    files = []
    for name, count, keypoints in (("train", 5, SOMETHING), ("validation", 2, NOTHING)):
        (tmp_path / name).mkdir()
        files.append(write_data_set(tmp_path / name, [(20, 10)] * count, [keypoints] * count))
    KeypointsDataModule(files[0], json_validation_dataset_path=files[1]).setup()
    (record,) = caplog.records
    assert record.getMessage().endswith("no validation image has any keypoint, so the best checkpoint cannot be chosen")


# Three of `a`, of which one lies outside of the image, and three of `b`, all inside.
FULL = {"a": [[1, 1], [500, 5], [3, 3]], "b": [[1, 1], [20, 10], [0, 0]]}


@pytest.fixture
def read(tmp_path):
    path = write_data_set(tmp_path, [(20, 10)] * 3, [FULL] + [{"a": [[1, 1]] * 2, "b": []}] * 2)

    def read(max_keypoints, **more):
        KeypointsDataModule(
            path,
            json_validation_dataset_path=path,
            keypoint_channel_max_keypoints=max_keypoints,
            heatmap_sigma=2.0,
            heatmap_stride=2,
            **more,
        ).setup()

    return read


@pytest.mark.parametrize("known", [True, False])
def test_keypoints_outside_of_the_image_do_not_count_towards_the_maximum(read, known, monkeypatch):
    if not known:  # of a large set few headers are read
        monkeypatch.setattr(parts, "scan_sizes", lambda annotations, **_: np.zeros((len(annotations), 2), np.int64))
    read("2 3")
    read("2 -1")
    with pytest.raises(
        InputError, match=r'entry 0 \("000.png"\), channel "b": 3 keypoints, expected at most 2 \(keypoint_'
    ):
        read("2 2")
    with pytest.raises(InputError, match=r'entry 0 \("000.png"\), channel "a": 2 keypoints, expected at most 1 \('):
        read("1 -1")
    with pytest.raises(InputError, match=r'channel "b": 5 keypoints, expected at most 4 \('):
        read(4, keypoint_channels="b=a")
    read(5, keypoint_channels="b=a")


def test_only_images_with_too_many_keypoints_are_looked_at_where_sizes_are_not_known(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "scan_sizes", lambda annotations, **_: np.zeros((len(annotations), 2), np.int64))
    many = {"a": [[1, 1], [25, 5]]}  # of which both lie within 30 x 20 pixels, and one within 20 x 10
    path = write_data_set(tmp_path, [(20, 10)] * 9 + [(30, 20)], [SOMETHING] * 9 + [many])
    KeypointsDataModule(path, json_validation_dataset_path=path, keypoint_channel_max_keypoints=2).setup()
    with pytest.raises(InputError, match=r'entry 9 \("009.png"\), channel "a": 2 keypoints, expected at most 1 \('):
        KeypointsDataModule(path, json_validation_dataset_path=path, keypoint_channel_max_keypoints=1).setup()


@pytest.mark.parametrize(
    ("maxima", "said"),
    [
        (
            "1 1 1",
            "keypoint_channel_max_keypoints has 3 numbers, expected one for all, or 2, one for each of: a, b",
        ),
        ("0 -1", 'keypoint_channel_max_keypoints is 0 for channel "a", expected -1 \\(any\\) or at least 1'),
    ],
)
def test_maxima_that_make_no_sense_are_refused_before_any_image_is_looked_at(read, maxima, said, monkeypatch):
    monkeypatch.setattr(parts, "scan_sizes", None)
    with pytest.raises(InputError, match=said):
        read(maxima)


@pytest.mark.parametrize(
    ("part", "flag"), [("train", "--image_dataset_path"), ("validation", "--image_validation_dataset_path")]
)
def test_the_flag_for_the_images_of_a_part_is_named_where_they_are_not_there(tmp_path, part, flag):
    for name in ("train", "validation"):
        (tmp_path / name).mkdir()
        write_data_set(tmp_path / name, [(20, 10)] * 2, [SOMETHING] * 2, "labels.json")
    for image in (tmp_path / part).glob("*.png"):
        image.unlink()
    data = KeypointsDataModule(
        tmp_path / "train" / "labels.json", json_validation_dataset_path=tmp_path / "validation" / "labels.json"
    )
    with pytest.raises(InputError) as error:
        data.setup()
    assert str(error.value).endswith(f"no such image file; {flag} names the folder that image paths are relative to")


@pytest.mark.parametrize(
    ("trained", "validated", "all_of_them"),
    [([0, 1], [1, 0], True), ([0], [0, 1], True), ([0, 1], [0], False), ([0, 1], [1, 2], False)],
)
def test_all_that_trains_validates_where_no_image_trains_alone(tmp_path, trained, validated, all_of_them):
    whole = read_annotations(write_data_set(tmp_path, [(20, 10)] * 3, [SOMETHING] * 3), tmp_path)
    annotations = {"train": whole.subset(trained), "validation": whole.subset(validated)}
    assert parts.Parts(annotations, {}, {}).validates_all_training is all_of_them
