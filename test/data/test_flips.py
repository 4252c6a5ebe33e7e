import logging

import pytest

from keypoint_detection.data.flips import guess_flip_pairs, mirror_permutation, mirrored_name, parse_flip_pairs
from keypoint_detection.errors import InputError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("left_eye", "right_eye"),
        ("eye_left", "eye_right"),
        ("eyeL", "eyeR"),
        ("eye_l", "eye_r"),
        ("L_eye", "R_eye"),
        ("LeftEye", "RightEye"),
        ("leftEye", "rightEye"),
        ("lefteye", "righteye"),
        ("LEFT_EYE", "RIGHT_EYE"),
        ("paw2LF_top", "paw2RF_top"),
        ("right leg 3", "left leg 3"),
        ("left-eye.outer", "right-eye.outer"),
    ],
)
def test_mirrored_name(name, expected):
    assert mirrored_name(name) == expected
    assert mirrored_name(expected) == name


@pytest.mark.parametrize("name", ["nose", "tail", "shoulder", "bright_spot", "corner_keypoints", "RGB", "upper", "ear"])
def test_names_without_a_side(name):
    assert mirrored_name(name) is None


def test_guess():
    names = ["nose", "left_eye", "tail", "right_eye", "L_ear", "R_ear"]
    assert guess_flip_pairs(names) == ([("left_eye", "right_eye"), ("L_ear", "R_ear")], [])


def test_numbers_may_differ_where_that_leaves_one_partner():
    names = ["paw1LH_top", "paw2LF_top", "paw3RF_top", "paw4RH_top", "nose_top"]
    assert guess_flip_pairs(names) == ([("paw1LH_top", "paw4RH_top"), ("paw2LF_top", "paw3RF_top")], [])
    # Equal numbers go first, and nothing is guessed where there are several partners.
    names = ["left_leg_1", "left_leg_2", "right_leg_2", "right_leg_1"]
    assert guess_flip_pairs(names) == ([("left_leg_1", "right_leg_1"), ("left_leg_2", "right_leg_2")], [])
    names = ["left_1", "left_2", "right_3", "right_4"]
    assert guess_flip_pairs(names) == ([], names)
    names = ["left_1", "left_2", "right_3"]
    assert guess_flip_pairs(names) == ([], names)


def test_pairs_come_in_the_order_of_the_channels():
    names = ["paw1L", "eyeL", "paw2R", "eyeR"]  # the eyes are told first, because their numbers do not differ
    assert guess_flip_pairs(names) == ([("paw1L", "paw2R"), ("eyeL", "eyeR")], [])


def test_a_side_without_partner_is_reported():
    assert guess_flip_pairs(["left_eye", "nose"]) == ([], ["left_eye"])
    assert guess_flip_pairs(["left_eye", "right_ear"]) == ([], ["left_eye", "right_ear"])


def test_permutation():
    names = ["eyeL", "nose", "eyeR", "a", "b"]
    assert mirror_permutation(names, "auto") == (2, 1, 0, 3, 4)
    assert mirror_permutation(names, "none") == (0, 1, 2, 3, 4)
    assert mirror_permutation(names, "a=b") == (0, 1, 2, 4, 3)
    assert mirror_permutation(names, "eyeL=eyeR a=b") == (2, 1, 0, 4, 3)
    assert mirror_permutation(["corners", "flaps"], "auto") == (0, 1)


def test_what_a_mirrored_image_swaps_is_reported_with_where_it_should_not(caplog):
    with caplog.at_level(logging.INFO):
        mirror_permutation(["top_left", "top_right", "hole"], "auto", report=True)
    # On a label with print, the mirrored top left corner does not look like any top right one.
    (message,) = caplog.messages
    assert "top_left=top_right" in message
    assert "--horizontal_flip 0 where left and right do not look alike" in message


def test_no_mirroring_without_a_partner_and_the_reason_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        assert mirror_permutation(["left_eye", "nose"], "auto") is None
    assert "left_eye tell left from right" in caplog.text


@pytest.mark.parametrize("pairs", ["a", "a=b=c", "a=a", "a=x", "a=b b=c", "="])
def test_wrong_pairs_are_named(pairs):
    with pytest.raises(InputError, match="flip_pairs: "):
        parse_flip_pairs(pairs, ["a", "b", "c"])
