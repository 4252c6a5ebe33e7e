import pytest

from keypoint_detection.wording import cells, counted, did_you_mean, padded


def test_one_is_singular():
    assert [counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]


def test_a_hint_names_what_is_near():
    names = {"max_epochs", "max_steps", "batch_size"}
    assert did_you_mean("maxepochs", names) == " (did you mean max_epochs?)"
    assert did_you_mean(["batchsize", "max_epoch"], names, "--{}") == " (did you mean --batch_size, --max_epochs?)"
    assert did_you_mean("max_eteps", names, '"{}"', most=2) == ' (did you mean "max_steps", "max_epochs"?)'
    assert did_you_mean("epochs", [*names, "min_epochs"], "--{}") == " (did you mean --max_epochs, --min_epochs?)"
    assert did_you_mean("leg_", [f"leg_{i}" for i in range(9)]) == " (did you mean leg_0, leg_1, leg_2?)"
    assert did_you_mean("xyzzy", names) == did_you_mean([], names) == did_you_mean("xyzzy", []) == ""


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("", 0),
        ("nose", 4),
        ("頭", 2),
        ("左肩x", 5),
        ("ｶﾞ", 2),
        ("Ｌ", 2),
        ("e\u0301", 1),
        ("é", 1),
        ("กำ", 2),
        ("กิ", 1),
        ("🦊", 2),
    ],
)
def test_a_text_is_as_wide_as_a_terminal_shows_it(text, width):
    assert cells(text) == width
    assert padded(text, 6) == text + " " * (6 - width)
    assert padded(text, 0) == text
