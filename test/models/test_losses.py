import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keypoint_detection import heatmaps
from keypoint_detection.errors import InputError
from keypoint_detection.models.losses import LOSSES, LossTargets, channel_mean, counted_cells, evaluate_loss


def make_targets(seed, shape=(2, 3, 5, 6), share_masked=0.3):
    random = np.random.default_rng(seed)
    truth = random.random(shape)
    truth[random.random(shape) < 0.2] = 0.0
    truth[random.random(shape) < 0.05] = 1.0
    positives = random.random(shape) < 0.1
    mask = random.random(shape) >= share_masked
    return random.normal(0, 3, shape), truth, positives, mask


def as_targets(truth, positives, mask, dtype=torch.float64):
    return LossTargets(torch.tensor(truth, dtype=dtype), torch.tensor(positives), torch.tensor(mask))


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def bce_of_cell(logit, truth, positive, dilated):
    p = sigmoid(logit)
    return -(truth * math.log(p) + (1 - truth) * math.log(1 - p))


def mse_of_cell(logit, truth, positive, dilated):
    return (sigmoid(logit) - truth) ** 2


def focal_of_cell(logit, truth, positive, dilated):
    # Objects as Points, equation 1.
    p = sigmoid(logit)
    if positive:
        return -((1 - p) ** 2) * math.log(p)
    return -((1 - truth) ** 4) * p**2 * math.log(1 - p)


def awing_of_cell(logit, truth, positive, dilated):
    # Adaptive Wing Loss, equations 3 to 5 with the paper's constants.
    omega, theta, epsilon, alpha, weight = 14, 0.5, 1, 2.1, 10
    difference, power = abs(truth - sigmoid(logit)), alpha - truth
    a = omega * (1 / (1 + (theta / epsilon) ** power)) * power * (theta / epsilon) ** (power - 1) / epsilon
    c = theta * a - omega * math.log(1 + (theta / epsilon) ** power)
    value = omega * math.log(1 + (difference / epsilon) ** power) if difference < theta else a * difference - c
    return value * (weight * dilated + 1)


CELLS = {"bce": bce_of_cell, "mse": mse_of_cell, "focal": focal_of_cell, "awing": awing_of_cell}


def reference(name, logits, truth, positives, mask):
    """Cell by cell, with plain floats."""
    images, channels, height, width = logits.shape
    truth = np.where(mask, truth, 0.0)
    values = np.zeros(channels)
    for c in range(channels):
        cells = []
        for b, y, x in np.ndindex(images, height, width):
            if mask[b, c, y, x]:
                window = truth[b, c, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                dilated = window.max() >= 0.2
                cells.append(CELLS[name](logits[b, c, y, x], truth[b, c, y, x], positives[b, c, y, x], dilated))
        values[c] = math.fsum(cells) / len(cells) if cells else 0.0
    return values


def test_every_loss_has_a_reference():
    assert set(CELLS) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.0, 0.3, 0.9]))
def test_equals_the_formula_cell_by_cell(name, seed, share):
    logits, truth, positives, mask = make_targets(seed, share_masked=share)
    targets = as_targets(np.where(mask, truth, 0.0), positives, mask)
    found = LOSSES[name](torch.tensor(logits), targets)
    np.testing.assert_allclose(found.numpy(), reference(name, logits, truth, positives, mask), rtol=1e-9, atol=1e-12)


def test_values_by_hand():
    # Logit 0 is a probability of a half. BCE: ln 2 whatever the truth. MSE: (0.5 - 1)^2.
    targets = LossTargets(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1, dtype=torch.bool), torch.ones(1, 1, 1, 1) > 0)
    logits = torch.zeros(1, 1, 1, 1)
    assert LOSSES["bce"](logits, targets).item() == pytest.approx(math.log(2))
    assert LOSSES["mse"](logits, targets).item() == pytest.approx(0.25)
    # Focal: 0.5^2 * ln 2.
    assert LOSSES["focal"](logits, targets).item() == pytest.approx(0.25 * math.log(2))
    # Adaptive wing at the joint of its two parts: 14 ln(1 + 0.5^1.1), eleven times on a keypoint.
    assert LOSSES["awing"](logits, targets).item() == pytest.approx(11 * 14 * math.log(1 + 0.5**1.1), rel=1e-6)


@pytest.mark.parametrize("truth", [1.0, 0.3])
def test_constants_other_than_those_of_the_papers_by_hand(truth):
    # Logit 0 is a probability of a half.
    cell = torch.full((1, 1, 1, 1), truth, dtype=torch.float64)
    targets, logits = LossTargets(cell, cell == 1, cell > 0), torch.zeros_like(cell)
    found = LOSSES["focal"](logits, targets, focal_alpha=3.0, focal_beta=1.0).item()
    assert found == pytest.approx((1 if truth == 1 else 0.7) * 0.5**3 * math.log(2))
    constants = {"awing_omega": 10.0, "awing_theta": 0.4, "awing_epsilon": 0.5, "awing_alpha": 2.5, "awing_weight": 3.0}
    if truth == 1:  # the difference of 0.5 is beyond theta
        slope = 10 / (1 + 0.8**1.5) * 1.5 * 0.8**0.5 / 0.5
        expected = slope * 0.5 - (0.4 * slope - 10 * math.log(1 + 0.8**1.5))
    else:  # a difference of 0.2
        expected = 10 * math.log(1 + 0.4**2.2)
    assert LOSSES["awing"](logits, targets, **constants).item() == pytest.approx(4 * expected)


def own_huber(logits, targets, *, huber_delta: float = 0.1):
    """The loss of one's own in the README."""
    values = torch.nn.functional.huber_loss(logits.sigmoid(), targets.heatmaps, reduction="none", delta=huber_delta)
    return channel_mean(values, targets.mask)


def huber_of_cell(logit, truth, positive, dilated):
    difference = abs(sigmoid(logit) - truth)
    return difference**2 / 2 if difference < 0.1 else 0.1 * (difference - 0.05)


@pytest.mark.parametrize("name", [*LOSSES, "huber"])
def test_nan_where_masked_reaches_neither_loss_nor_gradient(name, monkeypatch):
    monkeypatch.setitem(LOSSES, "huber", own_huber)
    monkeypatch.setitem(CELLS, "huber", huber_of_cell)
    logits, truth, positives, mask = make_targets(5)
    expected = reference(name, logits, truth, positives, mask)
    truth[~mask] = np.nan
    logits[~mask] = np.nan
    tensor = torch.tensor(logits, requires_grad=True)
    losses, _ = evaluate_loss(name, {}, tensor, as_targets(truth, positives, mask))
    losses.sum().backward()
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=1e-5)
    assert tensor.grad.isfinite().all()
    assert not tensor.grad[torch.tensor(~mask)].any()
    assert tensor.grad[torch.tensor(mask)].any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_channel_without_cells_is_zero(name):
    logits, truth, positives, mask = make_targets(6)
    mask[:, 1] = False
    tensor = torch.tensor(logits, requires_grad=True)
    losses = LOSSES[name](tensor, as_targets(truth, positives, mask))
    losses.sum().backward()
    assert losses[1] == 0
    assert losses[0] > 0
    assert not tensor.grad[:, 1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*LOSSES, "huber"])
def test_16_bit_logits_give_the_float32_value(name, dtype, monkeypatch):
    monkeypatch.setitem(LOSSES, "huber", own_huber)
    logits, truth, positives, mask = make_targets(7)
    short = torch.tensor(logits).to(dtype)
    targets = as_targets(truth, positives, mask, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = evaluate_loss(name, {}, short, targets)
    assert losses.dtype == torch.float32
    heatmaps_that_count = torch.where(targets.mask, targets.heatmaps, 0.0)
    assert torch.equal(losses, LOSSES[name](short.float(), targets._replace(heatmaps=heatmaps_that_count)))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [30.0, 1000.0])
def test_extreme_logits_stay_finite(name, size):
    truth = torch.tensor([0.0, 1.0, 0.5]).view(1, 1, 1, 3)
    targets = LossTargets(truth, truth == 1, torch.ones_like(truth, dtype=torch.bool))
    for sign in (-1, 1):
        logits = torch.full((1, 1, 1, 3), sign * size, requires_grad=True)
        losses = LOSSES[name](logits, targets)
        losses.sum().backward()
        assert losses.isfinite().all()
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_finite_differences(name):
    logits, truth, positives, mask = make_targets(8, shape=(1, 2, 3, 3))
    targets = as_targets(truth, positives, mask)
    tensor = torch.tensor(logits, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, targets), tensor)
    assert torch.autograd.gradgradcheck(lambda x: LOSSES[name](x, targets), tensor)


def test_bce_of_the_truth_is_its_entropy():
    truth = heatmaps.render(torch.tensor([[[[10.3, 7.9], [3.0, 4.5]]]], dtype=torch.float64), (16, 20), 2.0)
    truth = truth.clamp(1e-9, 1 - 1e-9)
    targets = LossTargets(truth, truth > 2, torch.ones_like(truth, dtype=torch.bool))
    found = LOSSES["bce"](truth.logit(), targets).item()
    expected = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in truth.flatten().tolist()]
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-9)
    assert found == pytest.approx(heatmaps.entropy(truth).mean().item(), rel=1e-9)


@pytest.mark.parametrize("logit", [3.0, 9.0, 15.0, 17.0, 30.0, 80.0])
@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_bce_of_a_cell_that_is_nearly_right_keeps_its_digits(truth, logit):
    heatmap = torch.full((1, 1, 1, 1), truth)
    targets = LossTargets(heatmap, heatmap > 0.5, heatmap >= 0)
    found = LOSSES["bce"](torch.full_like(heatmap, logit if truth else -logit), targets).item()
    assert found == pytest.approx(math.log1p(math.exp(-logit)), rel=1e-6, abs=1e-36)


def test_bce_weights_keypoints_and_keeps_its_minimum():
    logits, truth, positives, mask = make_targets(10, shape=(1, 1, 4, 4), share_masked=0.0)
    targets = as_targets(truth, positives, mask)
    found = LOSSES["bce"](torch.tensor(logits), targets, bce_keypoint_weight=3.0).item()
    cells = [bce_of_cell(x, y, None, None) * (1 + 3 * y) for x, y in zip(logits.flat, truth.flat, strict=True)]
    assert found == pytest.approx(sum(cells) / 16, rel=1e-9)
    best = torch.tensor(truth).clamp(1e-6, 1 - 1e-6).logit().requires_grad_()
    LOSSES["bce"](best, as_targets(np.clip(truth, 1e-6, 1 - 1e-6), positives, mask), bce_keypoint_weight=3.0).backward()
    assert best.grad.abs().max() < 1e-12


@pytest.mark.parametrize(
    "arguments", [{"focal_alpha": math.nan}, {"focal_alpha": 0.5}, {"focal_alpha": -1.0}, {"focal_beta": -0.5}]
)
def test_focal_checks_its_exponents(arguments):
    logits, truth, positives, mask = make_targets(9)
    with pytest.raises(InputError, match="focal_alpha"):
        LOSSES["focal"](torch.tensor(logits), as_targets(truth, positives, mask), **arguments)


@pytest.mark.parametrize("logit", [-40.0, 0.0, 40.0])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, {}) for name in LOSSES),
        ("focal", {"focal_alpha": 0.0, "focal_beta": 0.5}),
        ("focal", {"focal_alpha": 1.0}),
        ("awing", {"awing_alpha": 2.0}),
    ],
)
def test_gradients_are_finite_however_sure_the_network_is(name, arguments, logit):
    truth = torch.tensor([0.0, 0.3, 1.0]).view(1, 1, 1, 3)
    logits = torch.full_like(truth, logit).requires_grad_()
    LOSSES[name](logits, LossTargets(truth, truth == 1, truth >= 0), **arguments).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("arguments", [{"awing_alpha": 1.9}, {"awing_epsilon": 0.0}, {"awing_alpha": math.nan}])
def test_awing_checks_its_constants(arguments):
    logits, truth, positives, mask = make_targets(9)
    with pytest.raises(InputError, match="awing_alpha"):
        LOSSES["awing"](torch.tensor(logits), as_targets(truth, positives, mask), **arguments)


@pytest.mark.parametrize(
    ("loss", "name"),
    [("awing", "awing_theta"), ("awing", "awing_omega"), ("awing", "awing_weight"), ("bce", "bce_keypoint_weight")],
)
def test_factors_that_are_negative_are_named(loss, name):
    logits, truth, positives, mask = make_targets(9)
    with pytest.raises(InputError, match=rf"{name} is -1\.0, expected"):
        LOSSES[loss](torch.tensor(logits), as_targets(truth, positives, mask), **{name: -1.0})


@pytest.mark.parametrize("share_masked", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_the_least_that_bce_can_be_is_the_entropy_of_the_cells_that_count(share_masked, weight):
    logits, truth, positives, mask = make_targets(11, share_masked=share_masked)
    expected = []
    for c in range(truth.shape[1]):
        cells = truth[:, c][mask[:, c]]
        entropy = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) * (1 + weight * p) for p in cells if 0 < p < 1]
        expected.append(sum(entropy) / max(len(cells), 1))
    truth[~mask] = np.nan
    targets = as_targets(truth, positives, mask, torch.float32)
    _, floor = evaluate_loss("bce", {"bce_keypoint_weight": weight}, torch.tensor(logits).float(), targets)
    assert floor.dtype == torch.float32
    np.testing.assert_allclose(floor.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("share_masked", [0.0, 0.4])
def test_losses_and_their_floor_are_on_other_devices_what_they_are_on_the_cpu(name, share_masked, monkeypatch):
    logits, truth, positives, mask = make_targets(12, share_masked=share_masked)
    truth[~mask] = np.nan
    given = name, {"bce_keypoint_weight": 5.0} if name == "bce" else {}, torch.tensor(logits)
    targets = as_targets(truth, positives, mask)
    on_cpu = evaluate_loss(*given, targets)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    for found, expected in zip(evaluate_loss(*given, targets), on_cpu, strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_counts_the_cells_of_each_channel():
    mask = torch.ones(2, 3, 4, 5, dtype=torch.bool)
    assert counted_cells(mask).tolist() == [40, 40, 40]
    assert counted_cells(mask).dtype == torch.int64
    mask[0, 1] = mask[1, 2, 0, 0] = False
    assert counted_cells(mask).tolist() == [40, 20, 39]


def test_the_entropy_of_no_images_is_0():
    nothing = torch.zeros(0, 2, 4, 5)
    losses, floor = evaluate_loss("bce", {}, nothing, LossTargets(nothing, nothing.bool(), nothing.bool()))
    assert losses.tolist() == floor.tolist() == [0, 0]


@pytest.mark.parametrize("masked", [False, True])
def test_averages_numbers_of_any_kind(masked):
    values, mask = torch.arange(24).view(2, 3, 2, 2), torch.ones(2, 3, 2, 2, dtype=torch.bool)
    mask[0, 0] = not masked
    expected = torch.tensor([13.5 if masked else 7.5, 11.5, 15.5])
    torch.testing.assert_close(channel_mean(values, mask), expected)
    torch.testing.assert_close(channel_mean(values.half(), mask), expected.half())
    above = torch.tensor([1.0 if masked else 0.5, 0.5, 0.5])
    torch.testing.assert_close(channel_mean(values > 11, mask), above)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_unmasked_numbers_of_any_precision_give_what_float32_gives(name, dtype):
    logits, truth, positives, mask = make_targets(12, share_masked=0.0)
    logits, truth = torch.tensor(logits).to(dtype), torch.tensor(truth).to(dtype)
    targets = LossTargets(truth, torch.tensor(positives), torch.tensor(mask))
    for loss, expected_loss in zip(
        evaluate_loss(name, {}, logits, targets),
        evaluate_loss(name, {}, logits.float(), targets._replace(heatmaps=truth.float())),
        strict=True,
    ):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected_loss, equal_nan=True)


def test_small_values_of_heatmaps_have_an_entropy():
    truth = torch.tensor([0.0, 1e-6, 0.003, 1.0]).view(1, 1, 2, 2)
    everything = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    _, floor = evaluate_loss("bce", {}, truth, LossTargets(truth, truth > 1, everything))
    expected = sum(-p * math.log(p) - (1 - p) * math.log1p(-p) for p in (1e-6, 0.003)) / 4
    torch.testing.assert_close(floor, torch.tensor([expected]), rtol=1e-4, atol=0)


def test_other_devices_are_not_asked_what_they_hold():
    values = torch.ones(2, 3, 4, 5, device="meta")  # which holds nothing, so that to ask is an error
    targets = LossTargets(values, values.bool(), values.bool())
    assert counted_cells(targets.mask).shape == (3,)
    for loss in LOSSES.values():
        assert loss(values, targets).device.type == "meta"
