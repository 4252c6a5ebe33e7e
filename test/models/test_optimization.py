from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from keypoint_detection.models.muon import Muon
from keypoint_detection.models.optimization import (
    SCHEDULES,
    build_optimizer,
    constant,
    cosine,
    cosine_to_half,
    one_cycle,
    parameter_groups,
)


@pytest.mark.parametrize(
    ("schedule", "progress", "warmup", "expected"),
    [
        (constant, 0.0, 0.2, 0.0),
        (constant, 0.05, 0.2, 0.25),
        (constant, 0.2, 0.2, 1.0),
        (constant, 1.0, 0.2, 1.0),
        (constant, 0.0, 0.0, 1.0),
        (cosine, 0.0, 0.0, 1.0),
        (cosine, 0.1, 0.2, 0.5),
        (cosine, 0.2, 0.2, 1.0),
        (cosine, 0.6, 0.2, 0.5),  # half way down
        (cosine, 1.0, 0.2, 0.0),
        (cosine_to_half, 0.1, 0.2, 0.5),
        (cosine_to_half, 0.2, 0.2, 1.0),
        (cosine_to_half, 0.6, 0.2, 0.75),  # half way down
        (cosine_to_half, 1.0, 0.2, 0.5),
        (one_cycle, 0.0, 0.3, 1 / 25),
        (one_cycle, 0.15, 0.3, 0.52),  # half way between 1/25 and 1
        (one_cycle, 0.3, 0.3, 1.0),
        (one_cycle, 0.65, 0.3, 0.50005),  # half way between 1 and 1/10,000
        (one_cycle, 1.0, 0.3, 1e-4),
    ],
)
def test_schedules_by_hand(schedule, progress, warmup, expected):
    assert schedule(progress, warmup) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@given(a=st.floats(0, 1), b=st.floats(0, 1), warmup=st.floats(0, 0.99))
def test_schedules_rise_in_the_warm_up_and_never_rise_after(name, a, b, warmup):
    early, late = sorted((a, b))
    first, second = SCHEDULES[name](early, warmup), SCHEDULES[name](late, warmup)
    assert 0 <= first <= 1
    if late <= warmup:
        assert first <= second + 1e-12
    elif early >= warmup:
        assert first >= second - 1e-12


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
        self.head = nn.Conv2d(4, 2, 1)


def test_parameter_groups():
    network = Network()
    groups = parameter_groups(network, [network.encoder], learning_rate=1e-2, weight_decay=0.1, encoder_factor=0.5)
    found = {group["name"]: (group["lr"], group["weight_decay"], [id(p) for p in group["params"]]) for group in groups}
    conv, norm, head = network.encoder[0], network.encoder[1], network.head
    assert found == {
        "encoder": (5e-3, 0.1, [id(conv.weight)]),
        "encoder_norms_and_biases": (5e-3, 0.0, [id(conv.bias), id(norm.weight), id(norm.bias)]),
        "network": (1e-2, 0.1, [id(head.weight)]),
        "network_norms_and_biases": (1e-2, 0.0, [id(head.bias)]),
    }


def test_the_weight_of_a_linear_layer_is_decayed():
    layer = nn.Linear(2, 3)
    groups = parameter_groups(layer, [], learning_rate=1e-2, weight_decay=0.1, encoder_factor=1.0)
    decayed = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decayed == {id(layer.weight): 0.1, id(layer.bias): 0.0}


def test_kernels_that_join_enough_channels_get_orthogonal_steps():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 16, 1),
        nn.Conv2d(16, 9, 3, bias=False),
        nn.Conv2d(9, 7, 1),
    )
    groups = parameter_groups(
        network,
        [],
        learning_rate=0.3,
        weight_decay=0.1,
        encoder_factor=1.0,
        hidden=[network[0], network[1], network[2], network[4]],
    )
    (kernels,) = [group for group in groups if group["orthogonal"]]
    assert kernels["params"] == [network[2].weight]
    assert (kernels["lr"], kernels["weight_decay"]) == (pytest.approx(1.0), 0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    rates = {"learning_rate": 0.3, "weight_decay": 0.1, "encoder_factor": 0.5}
    (of_encoder,) = [g for g in parameter_groups(network, [network], **rates, hidden=[network[2]]) if g["orthogonal"]]
    assert of_encoder["lr"] == pytest.approx(0.5)
    assert isinstance(build_optimizer(groups, SimpleNamespace(precision="32-true", gradient_clip_val=1.0)), Muon)


@pytest.mark.parametrize(
    ("precision", "clip", "fused"),
    [("32-true", 1.0, True), ("16-mixed", None, True), ("16-mixed", 1.0, False), ("bf16-mixed", 1.0, False)],
)
def test_the_fused_kernel_is_left_out_where_lightning_could_not_clip(precision, clip, fused):
    network = Network()
    groups = parameter_groups(network, [], learning_rate=1e-2, weight_decay=0.1, encoder_factor=1.0)
    optimizer = build_optimizer(groups, SimpleNamespace(precision=precision, gradient_clip_val=clip))
    assert [group["fused"] for group in optimizer.param_groups] == [fused] * 2
