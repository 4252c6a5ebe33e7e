import json

import pytest
from data_sets import write_data_set

from keypoint_detection.data.datamodule import KeypointsDataModule

NOTHING, SOMETHING = {"a": []}, {"a": [[3, 4]]}


@pytest.mark.parametrize(
    ("trained", "validated", "warned"),
    [
        (NOTHING, SOMETHING, "train.json: no image to train on has any keypoint"),
        (SOMETHING, NOTHING, "validation.json: no image to validate on has any keypoint"),
        (SOMETHING, SOMETHING, None),
    ],
)
def test_a_part_without_keypoints_is_said_to_tell_nothing(tmp_path, caplog, trained, validated, warned):
    files = []
    for name, keypoints in (("train", trained), ("validation", validated)):
        (tmp_path / name).mkdir()
        files.append(write_data_set(tmp_path / name, [(20, 10)] * 2, [keypoints, NOTHING], f"{name}.json"))
    KeypointsDataModule(files[0], json_validation_dataset_path=files[1], heatmap_sigma=2.0, heatmap_stride=2).setup()
    assert [warned in record.message for record in caplog.records] == ([True] if warned else [])


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
    assert f"1 image both in train and in validation (first: {tmp_path / 'here' / '000.png'})" in record.message
    assert "--image_validation_dataset_path" in record.message


def test_images_of_the_same_name_in_two_folders_are_two_images(tmp_path, caplog):
    for name in ("here", "other"):
        (tmp_path / name).mkdir()
        write_data_set(tmp_path / name, [(20, 10)] * 2, [SOMETHING] * 2)
    files = [tmp_path / name / "dataset.json" for name in ("here", "other")]
    KeypointsDataModule(files[0], json_validation_dataset_path=files[1], heatmap_sigma=2.0, heatmap_stride=2).setup()
    assert not caplog.records
