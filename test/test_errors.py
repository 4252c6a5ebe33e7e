"""Which errors of torch mean a lack of memory."""

import pytest
import torch
from torch import nn

from keypoint_detection.errors import want_of_memory


@pytest.mark.parametrize(
    ("allocate", "said"),
    [
        (lambda: torch.empty(2**50), "not enough memory for 4503599627370496 bytes more"),
        (lambda: torch.empty(2**40, 2**40), "not enough memory"),  # more bytes than 64 bits can count
        (lambda: nn.functional.pad(torch.zeros(1, 8, 8), (0, 2**45, 0, 2**45)), "not enough memory"),
        (lambda: torch.empty(2, 3).view(7), None),
    ],
)
def test_what_torch_cannot_allocate_is_a_lack_of_memory(allocate, said):
    with pytest.raises(RuntimeError) as error:
        allocate()
    assert want_of_memory(error.value) == said
