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
