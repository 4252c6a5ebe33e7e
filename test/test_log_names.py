"""Log names say the same when they are built as when they are taken apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keypoint_detection.log_names import LogName, log_name, parse_log_name

ODD_CHANNELS = ("d=2", "a/d=4", "mean", "AP", "left/paw", "a b", "x=y", "/", "d=", "")
CHANNELS = st.sampled_from(ODD_CHANNELS) | st.text("ad=2/ ", max_size=6)
DISTANCES = st.floats(1e-9, 1e9).map(lambda value: float(f"{value:g}"))  # of the six digits that a name has
STAGES = st.sampled_from(("train", "validation", "best", "test"))
NAMES = st.one_of(
    st.builds(LogName, st.just("AP"), CHANNELS, DISTANCES, STAGES),
    st.builds(LogName, st.just("meanAP"), st.none(), st.none() | DISTANCES, STAGES),
    st.builds(LogName, st.sampled_from(("loss", "best_f1")), st.none() | CHANNELS, st.none(), STAGES),
    st.just(LogName("learning_rate")),
)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("learning_rate", ("learning_rate", None, None, None)),
        ("train/loss", ("loss", None, None, "train")),
        ("validation/meanAP", ("meanAP", None, None, "validation")),
        ("validation/meanAP/d=2", ("meanAP", None, 2.0, "validation")),
        ("best/AP/left/paw/d=0.5", ("AP", "left/paw", 0.5, "best")),
        ("test/AP/d=2/d=1e-05", ("AP", "d=2", 1e-5, "test")),
        ("validation/loss/d=2", ("loss", "d=2", None, "validation")),
        ("validation/loss/a/d=4", ("loss", "a/d=4", None, "validation")),
        ("best/best_f1/", ("best_f1", "", None, "best")),
    ],
)
def test_names_are_built_and_taken_apart(name, parts):
    assert parse_log_name(name) == parts
    assert log_name(*parts) == name


@given(NAMES)
def test_what_was_built_is_taken_apart_into_the_same(parts):
    assert parse_log_name(log_name(*parts)) == parts


def test_a_name_without_a_stage_is_the_rest_of_one():
    assert log_name("AP", "a b", 4) == "AP/a b/d=4"
    assert log_name("recall", "nose") == "recall/nose"
    assert log_name("meanAP", distance=12345678) == "meanAP/d=1.23457e+07"


@pytest.mark.parametrize("name", ["validation/AP/nose", "validation/meanAP/d=far", "validation/AP/nose/d=2/more"])
def test_what_is_no_distance_belongs_to_the_channel(name):
    assert parse_log_name(name).distance is None
    assert log_name(*parse_log_name(name)) == name
