import logging

from keypoint_detection.train.choices import Choices


def test_a_choice_takes_the_place_of_auto_alone_and_is_told_with_its_reason(caplog):
    choices = Choices()
    with caplog.at_level(logging.INFO, logger="keypoint_detection"):
        assert choices.choose("batch_size", "auto", 4, "for images of 640x480 px") == 4
        assert choices.choose("image_size", "auto", None, "the images are small") is None
        assert choices.choose("precision", "32", "bf16-mixed", "the GPU is made for it") == "32"
        assert choices.choose("train_crop_size", None, 288, "faster") is None
    assert caplog.messages == [
        "--batch_size 4 (auto: for images of 640x480 px)",
        "--image_size none (auto: the images are small)",
    ]
    assert choices.reasons == {"batch_size": "for images of 640x480 px", "image_size": "the images are small"}


def test_a_choice_without_an_effect_is_kept_and_not_told(caplog):
    choices = Choices()
    with caplog.at_level(logging.INFO, logger="keypoint_detection"):
        assert choices.choose("rotation", "auto", 30.0, "the labels indicate no direction", is_news=False) == 30.0
    assert not caplog.records
    assert choices.reasons == {"rotation": "the labels indicate no direction"}
