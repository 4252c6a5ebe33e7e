import json
import logging

import pytest

from keypoint_detection.data.channels import ChannelGroup
from keypoint_detection.data.flips import (
    guess_flip_pairs,
    mirror_permutation,
    mirrored_name,
    parse_flip_pairs,
    sides_without_partner,
)
from keypoint_detection.data.formats import read_annotations
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


def test_sides_within_words():
    names = ["topleft", "topright", "Leftear", "Rightear", "LEFTEYE", "RIGHTEYE", "upright"]
    assert guess_flip_pairs(names) == ([("topleft", "topright"), ("Leftear", "Rightear"), ("LEFTEYE", "RIGHTEYE")], [])


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["rank", "rkne", "lkne", "lank", "thorax"], [("rank", "lank"), ("rkne", "lkne")]),
        (["Lhip_top", "Rhip_top", "kneel_top", "kneer_top"], [("Lhip_top", "Rhip_top"), ("kneel_top", "kneer_top")]),
        (["TL", "TR", "BL", "BR"], [("TL", "TR"), ("BL", "BR")]),
        (["FL", "FR", "RL", "RR"], [("FL", "FR"), ("RL", "RR")]),  # front and rear: a first R is no right there
        (["roller", "loller", "bright", "blight", "collar"], []),  # one pair only at an end of a word
        (["lake", "rake"], []),
    ],
)
def test_letters_at_an_end_of_a_word_tell_sides_where_that_is_no_chance(names, pairs):
    found, unpaired = guess_flip_pairs(names)
    assert found == pairs
    alone = {"roller": ["roller", "loller"], "lake": ["lake", "rake"]}
    assert unpaired == alone.get(names[0], [])


def test_a_partner_that_has_another_one_too_is_none():
    names = ["pawrightleft", "pawleftleft", "pawleftright"]
    assert guess_flip_pairs(names) == ([], names)


def test_names_with_several_partners_tell_a_side_and_are_no_pair():
    names = ["ll", "lr", "rl", "rr"]
    assert guess_flip_pairs(names) == ([], names)


def test_letters_of_other_alphabets_are_letters():
    assert mirrored_name("Tür") is None
    assert mirrored_name("bal fül") is None
    assert mirrored_name("öhrchen_l") == "öhrchen_r"
    assert guess_flip_pairs(["ÖHRLEFT", "ÖHRRIGHT", "Tür"]) == ([("ÖHRLEFT", "ÖHRRIGHT")], [])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ([("eye", ["left_eye", "right_eye"]), ("nose", ["nose"])], (0, 1)),
        ([("left", ["left_eye", "left_ear"]), ("right", ["right_ear", "right_eye"])], (1, 0)),
        ([("left", ["left_eye", "left_ear"]), ("right", ["right_ear"])], None),  # of which one has no other side
        ([("left", ["left_eye", "left_ear"]), ("right", ["right_ear"]), ("eye", ["right_eye"])], None),
        # Which name belongs to which does not matter where all that may belong together is one channel.
        ([("paw", ["lpaw", "rpaw"]), "nose"], (0, 1)),
        ([("paw", ["lpaw", "rpaw"]), ("ear", ["ear_left", "ear_right"])], (0, 1)),
        ([("leg", ["left_1", "left_2", "right_3", "right_4"])], (0,)),
        ([("corner", ["ll", "lr", "rl", "rr"]), "nose"], (0, 1)),
        ([("leg", ["left_1", "left_2", "right_3"]), "right_4"], None),
        ([("paw", ["lpaw", "nose"]), "rpaw"], None),
        ([("paw", ["lpaw", "rpaw"]), "left_eye"], None),
        # Channels that are renamed keep the sides that the file tells, and have those of their new names otherwise.
        ([("a", ["left_eye"]), ("b", ["right_eye"]), ("muzzle", ["nose"])], (1, 0, 2)),
        ([("left_eye", ["p1"]), ("right_eye", ["p2", "p3"]), "nose"], (1, 0, 2)),
        ([("left_eye", ["p1"]), "right_eye"], (1, 0)),
        ([("left_eye", ["p1"]), "nose"], None),
    ],
)
def test_channels_that_were_merged_have_the_sides_of_what_they_hold(spec, expected):
    groups = [
        ChannelGroup(entry, (entry,)) if isinstance(entry, str) else ChannelGroup(entry[0], tuple(entry[1]))
        for entry in spec
    ]
    assert mirror_permutation(groups, "auto") == expected


def test_merged_channels_of_a_file_keep_what_they_hold(tmp_path):
    labels = {"dataset": [{"image_path": "0.png", "left_eye": [[0.1, 0.2]], "right_eye": [[0.3, 0.4]], "nose": []}]}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    read = read_annotations(tmp_path / "labels.json", tmp_path, keypoint_channels="left_eye=right_eye nose")
    assert read.subset([0]).groups == [
        ChannelGroup("left_eye", ("left_eye", "right_eye")),
        ChannelGroup("nose", ("nose",)),
    ]
    assert mirror_permutation(read.groups, "auto") == (0, 1)


def test_pairs_of_names_with_spaces_come_in_a_list():
    assert parse_flip_pairs(["left eye=right eye", "a=b"], ["left eye", "right eye", "a", "b"]) == [
        ("left eye", "right eye"),
        ("a", "b"),
    ]


def groups_of(names):
    return [ChannelGroup(name, (name,)) for name in names]


def test_permutation():
    names = groups_of(["eyeL", "nose", "eyeR", "a", "b"])
    assert mirror_permutation(names, "auto") == (2, 1, 0, 3, 4)
    assert mirror_permutation(names, "none") == (0, 1, 2, 3, 4)
    assert mirror_permutation(names, "a=b") == (0, 1, 2, 4, 3)
    assert mirror_permutation(names, "eyeL=eyeR a=b") == (2, 1, 0, 4, 3)
    assert mirror_permutation(groups_of(["corners", "flaps"]), "auto") == (0, 1)


def test_what_a_mirrored_image_swaps_is_reported_with_where_it_should_not(caplog):
    with caplog.at_level(logging.INFO):
        mirror_permutation(groups_of(["top_left", "top_right", "hole"]), "auto", report=True)
    # On a label with print, the mirrored top left corner does not look like any top right one.
    (message,) = caplog.messages
    assert "top_left=top_right" in message
    assert "--horizontal_flip 0 if left and right do not look alike" in message


def test_no_mirroring_without_a_partner_and_the_reason_is_logged(caplog):
    names = groups_of(["left_eye", "nose"])
    with caplog.at_level(logging.INFO):
        assert mirror_permutation(names, "auto") is None
        assert not caplog.records
        assert mirror_permutation(names, "auto", report=True) is None
    assert "have no certain partner: left_eye. " in caplog.text
    assert sides_without_partner(names, "auto") == ["left_eye"]
    assert sides_without_partner(names, "none") == sides_without_partner(names, "left_eye=nose") == []


@pytest.mark.parametrize("pairs", ["a", "a=b=c", "a=a", "a=x", "a=b b=c", "="])
def test_wrong_pairs_are_named(pairs):
    with pytest.raises(InputError, match="flip_pairs: "):
        parse_flip_pairs(pairs, ["a", "b", "c"])
