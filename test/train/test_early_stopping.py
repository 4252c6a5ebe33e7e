import pytest

from keypoint_detection.errors import InputError
from keypoint_detection.train.early_stopping import RelativeEarlyStopping


@pytest.mark.parametrize("patience", [0, -1])
def test_a_patience_below_1_is_refused(patience):
    with pytest.raises(InputError, match=f"early_stopping_patience {patience}: expected at least 1"):
        RelativeEarlyStopping(0.0, patience)


@pytest.mark.parametrize("threshold", [1.0, 5.0, float("nan")])
def test_a_loss_cannot_fall_by_all_of_itself_or_more(threshold):
    with pytest.raises(InputError, match=f"--early_stopping_relative_threshold {threshold}: expected below 1"):
        RelativeEarlyStopping(threshold)
