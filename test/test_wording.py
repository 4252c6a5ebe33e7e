from keypoint_detection.wording import counted, did_you_mean


def test_one_is_singular():
    assert [counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]


def test_a_hint_names_what_is_near():
    names = {"max_epochs", "max_steps", "batch_size"}
    assert did_you_mean("maxepochs", names) == " (did you mean max_epochs?)"
    assert did_you_mean(["batchsize", "max_epoch"], names, "--{}") == " (did you mean --batch_size, --max_epochs?)"
    assert did_you_mean("max_eteps", names, '"{}"', most=2) == ' (did you mean "max_steps", "max_epochs"?)'
    assert did_you_mean("xyzzy", names) == did_you_mean([], names) == did_you_mean("xyzzy", []) == ""
