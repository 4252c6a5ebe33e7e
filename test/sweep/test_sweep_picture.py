import numpy as np
import pytest

from keypoint_detection.sweep.picture import number_axis


@pytest.mark.parametrize(
    ("values", "options", "texts"),
    [
        ([0.07, 0.93], {}, ["0.2", "0.4", "0.6", "0.8"]),
        ([8, 11], {"whole": True}, ["8", "9", "10", "11"]),
        ([0.00018, 0.0092], {"log": True}, ["0.0002", "0.0005", "0.001", "0.002", "0.005"]),
        ([0.0031, 0.0035], {"log": True}, [f"{number / 1e5:.6g}" for number in range(310, 351, 5)]),
        ([0.5, 0.5], {}, ["0.5"]),
    ],
)
def test_ticks_of_numbers_are_round_and_where_a_run_of_that_value_is(values, options, texts):
    axis = number_axis("title", values, **options)
    assert [text for _, text in axis.ticks] == texts
    where = number_axis("title", [*values, *map(float, texts)], **options).positions[len(values) :]
    assert np.allclose([position for position, _ in axis.ticks], where)
    assert ((axis.positions >= 0) & (axis.positions <= 1)).all()
