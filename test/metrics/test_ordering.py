import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from keypoint_detection.metrics.ordering import ascending_order


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_is_the_stable_order(dtype, data):
    numbers = st.floats(width=32, allow_nan=False) if dtype == np.float32 else st.floats(allow_nan=False)
    values = data.draw(arrays(dtype, st.integers(0, 50), elements=numbers)) + dtype(0)  # no -0
    np.testing.assert_array_equal(ascending_order(values), np.argsort(values, kind="stable"))


def test_double_precision_decides_where_single_cannot():
    values = np.array([0.5, 0.5 + 1e-12, 0.5 - 1e-12, 0.5])
    assert ascending_order(values).tolist() == [2, 0, 3, 1]


def test_minus_zero_lies_beside_zero():
    values = np.array([0.0, 1.0, -0.0, -1.0, 0.0])
    ordered = values[ascending_order(values)]
    assert ordered.tolist() == [-1, 0, 0, 0, 1]
