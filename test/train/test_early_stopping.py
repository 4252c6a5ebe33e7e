import pytest

from keypoint_detection.errors import InputError
from keypoint_detection.train.early_stopping import RelativeEarlyStopping


@pytest.mark.parametrize("patience", [0, -1])
def test_a_patience_below_1_is_refused(patience):
    with pytest.raises(InputError, match=f"early_stopping_patience {patience}: expected at least 1"):
        RelativeEarlyStopping(0.0, patience)
