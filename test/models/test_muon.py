import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from keypoint_detection.models.muon import Muon, orthogonalize

BETAS = (0.9, 0.99)


@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31))
def test_singular_vectors_stay_and_singular_values_come_near_1(count, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    smaller = min(rows, columns)
    left = torch.linalg.qr(torch.randn(count, rows, smaller, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(count, columns, smaller, generator=generator, dtype=torch.float64))[0]
    values = torch.logspace(0, -1.2, smaller, dtype=torch.float64) * 7
    found = orthogonalize([((left * values) @ right.mT).float()])[0].double()
    assert found.shape == (count, rows, columns)
    inner = left.mT @ found @ right
    diagonal = inner.diagonal(dim1=1, dim2=2)
    assert torch.allclose(inner, torch.diag_embed(diagonal), atol=2e-3)
    assert ((diagonal > 0.65) & (diagonal < 1.25)).all()


class Tf32(TorchDispatchMode):
    """Rounds the factors of matrix products to 10 bits behind the first one, as the tensor cores of a GPU do."""

    def __init__(self):
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("bmm", "baddbmm"):
            self.products += 1
            args = (*args[:-2], *map(self.rounded, args[-2:]))
        return func(*args, **kwargs or {})

    @staticmethod
    def rounded(values):
        return ((values.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize(("rows", "columns"), [(16, 27), (64, 576), (256, 256)])
def test_products_in_tf32_bring_singular_values_as_near_1(rows, columns):
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(4, rows, rows, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(4, columns, rows, generator=generator, dtype=torch.float64))[0]
    for values in (torch.linspace(1, 0, rows) ** 3, torch.logspace(0, -3, rows), torch.rand(rows, generator=generator)):
        matrices = ((left * values) @ right.mT).float()
        with Tf32() as simulated:
            found = orthogonalize([matrices])[0].double()
        assert simulated.products == 11
        diagonal = (left.mT @ found @ right).diagonal(dim1=1, dim2=2)[:, values > 0.02 * values.norm()]
        assert diagonal.min() >= 0.675
        assert diagonal.max() <= 1.215


def test_matrices_of_one_smaller_side_are_told_apart():
    shapes = [(2, 6, 9), (1, 9, 6), (3, 6, 6), (1, 4, 6), (2, 6, 20)]
    stacks = [torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) for shape in shapes]
    for stack, found in zip(stacks, orthogonalize(stacks), strict=True):
        torch.testing.assert_close(found, orthogonalize([stack])[0])


@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1e9])
def test_the_length_of_a_gradient_does_not_matter(scale):
    stack = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalize([stack * scale]), orthogonalize([stack]))


@pytest.mark.parametrize("scale", [0, 1e-20, 1e-44])
def test_next_to_nothing_makes_no_step(scale):
    assert not orthogonalize([scale * torch.ones(1, 3, 4)])[0].any()


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
@pytest.mark.parametrize("tiny", [1e-12, 1e-20, 1e-30])
def test_a_unit_that_no_longer_learns_is_left_out(shape, tiny):
    stack = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    stack[:, 2] *= tiny
    rows = [row for row in range(shape[0]) if row != 2]
    (found,) = orthogonalize([stack])
    assert not found[:, 2].any()
    torch.testing.assert_close([found[:, rows]], orthogonalize([stack[:, rows]]), atol=1e-5, rtol=1e-4)


def test_momentum_stays_clear_of_subnormal_numbers():
    kernel = nn.Parameter(torch.ones(4, 4, 1, 1))
    optimizer = Muon([{"params": [kernel], "lr": 0.1, "orthogonal": True}], BETAS, fused=False)
    kernel.grad = torch.full_like(kernel, 1e-37)
    for _ in range(100):
        optimizer.step()
        kernel.grad = torch.zeros_like(kernel)
    momentum = optimizer.state[kernel]["momentum"]
    assert (momentum > 1e-30).all()
    assert (kernel == 1).all(), "next to nothing makes no step"


def test_a_kernel_without_a_gradient_stays():
    frozen, other = nn.Parameter(torch.ones(4, 4, 3, 3)), nn.Parameter(torch.ones(3))
    other.grad = torch.ones(3)
    groups = [{"params": [frozen], "lr": 0.1, "orthogonal": True}, {"params": [other], "lr": 0.1, "orthogonal": False}]
    Muon(groups, BETAS, fused=False).step()
    assert (frozen == 1).all()
    assert (other != 1).all()


@pytest.mark.parametrize(("shape", "length"), [((4, 2, 3, 3), 0.5), ((8, 2, 1, 1), 1.0)])  # 4 x 18, and 8 x 2: sqrt(4)
def test_a_kernel_steps_along_every_direction_alike(shape, length):
    kernel = nn.Parameter(torch.zeros(shape))
    optimizer = Muon([{"params": [kernel], "lr": 0.5, "orthogonal": True}], BETAS, fused=False)
    kernel.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    optimizer.step()
    values = torch.linalg.svdvals(kernel.detach().flatten(1))
    assert ((values > length * 0.65) & (values < length * 1.25)).all()
    assert float((kernel.detach() * kernel.grad).sum()) < 0, "a step goes down the gradient"


def test_the_step_is_that_of_nesterovs_momentum():
    kernel = nn.Parameter(torch.zeros(4, 4, 1, 1))
    optimizer = Muon([{"params": [kernel], "lr": 1.0, "orthogonal": True}], BETAS, fused=False)
    first, second = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    for gradient in (first, second):
        before = kernel.detach().clone()
        kernel.grad = gradient[..., None, None].clone()
        optimizer.step()
    # The average holds 0.95 * 0.05 of the first gradient and 0.05 of the second one; the step looks ahead of it.
    momentum = 0.95 * 0.05 * first + 0.05 * second
    expected = orthogonalize([(0.95 * momentum + 0.05 * second)[None]])[0][0]
    torch.testing.assert_close((before - kernel.detach())[..., 0, 0], expected, atol=1e-4, rtol=1e-4)


def test_weight_decay_shrinks_a_kernel_apart_from_its_step():
    kernel = nn.Parameter(torch.ones(3, 3, 1, 1))
    plain = nn.Parameter(torch.zeros(3, 3, 1, 1))
    groups = [
        {"params": [p], "lr": 0.1, "weight_decay": decay, "orthogonal": True}
        for p, decay in ((kernel, 0.5), (plain, 0.0))
    ]
    optimizer = Muon(groups, BETAS, fused=False)
    kernel.grad = plain.grad = torch.eye(3)[..., None, None]
    optimizer.step()
    torch.testing.assert_close(kernel.detach() - 0.95, plain.detach())


@pytest.mark.parametrize("fused", [True, False])
def test_everything_else_is_turned_by_adamw(fused):
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3), None
    theirs = copy.deepcopy(ours)
    groups = [{"params": list(ours.parameters()), "lr": 1e-2, "weight_decay": 0.1, "orthogonal": False}]
    optimizers = (Muon(groups, BETAS, fused), torch.optim.AdamW(theirs.parameters(), 1e-2, BETAS, weight_decay=0.1))
    for _ in range(5):
        x = torch.randn(4, 5)
        for network, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_it_goes_on_from_its_state_to_the_same_bits():
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 1))

    def optimizer_of(network):
        groups = [{"params": [network[0].weight], "orthogonal": True, "lr": 0.02}]
        return Muon([*groups, {"params": list(network[2].parameters()), "lr": 1e-3}], BETAS, fused=True)

    def train(network, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            x = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(step))
            network(x).square().sum().backward()
            optimizer.step()

    whole = network()
    train(whole, optimizer_of(whole), range(4))
    first, second = network(), network()
    optimizer = optimizer_of(first)
    train(first, optimizer, range(2))
    second.load_state_dict(first.state_dict())
    resumed = optimizer_of(second)
    resumed.load_state_dict(optimizer.state_dict())
    train(second, resumed, range(2, 4))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
