import pytest
import torch
import torch.distributed as dist
from two_processes import run_in_two_processes

from keypoint_detection.models.backbones.layers import BatchNorm

# Means far from 0, as channels of a trained network have.
OFFSETS = torch.tensor([0.0, 60.0, -5.0])[:, None, None]
# So few values that their variance with and without Bessel's correction differ.
IMAGES = torch.rand(5, 3, 1, 2, generator=torch.Generator().manual_seed(0)) + OFFSETS
SHARES = ([0, 1, 2], [3, 4])


def train(images, weights):
    """Outputs of a step, and gradients and statistics after it."""
    norm = BatchNorm(3).train()
    torch.nn.init.constant_(norm.weight, 1.5)
    images = images.clone().requires_grad_()
    features = norm(images)
    (features * weights).sum().backward()
    parameters = [norm.weight.grad, norm.bias.grad]
    return features.detach(), images.grad, parameters, [norm.running_mean, norm.running_var]


def loss_weights():
    return torch.rand(IMAGES.shape, generator=torch.Generator().manual_seed(1))


def train_in_process(rank, rendezvous, results):
    """Body of one of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    found = train(IMAGES[SHARES[rank]], loss_weights()[SHARES[rank]])
    results.put((rank, torch.utils._pytree.tree_map(torch.Tensor.tolist, found)))
    for dtype in (torch.float64, torch.bfloat16):
        assert BatchNorm(3).to(dtype).train()(IMAGES.to(dtype)).dtype == dtype
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_normalise_as_one_with_all_images(tmp_path):
    found = run_in_two_processes(train_in_process, tmp_path / "rendezvous")
    features, gradient, parameters, statistics = train(IMAGES, loss_weights())
    for part, expected in ((0, features), (1, gradient)):
        together = torch.cat([torch.tensor(found[rank][part]) for rank in range(2)])
        torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-4)
    for position, expected in enumerate(parameters):
        total = sum(torch.tensor(found[rank][2][position]) for rank in range(2))
        torch.testing.assert_close(total, expected, atol=1e-3, rtol=1e-3)
    for rank in range(2):
        for statistic, expected in zip(found[rank][3], statistics, strict=True):
            torch.testing.assert_close(torch.tensor(statistic), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("images", [1, 2])
def test_a_single_value_per_channel_is_normalised_as_in_inference(images):
    norm = BatchNorm(2).train()
    torch.nn.init.constant_(norm.running_mean, 0.5)
    values = torch.tensor([0.5, 2.0])[None, :, None, None].expand(images, 2, 1, 1)
    expected = torch.tensor([0.0, 1.5]) if images == 1 else torch.tensor([0.0, 0.0])
    torch.testing.assert_close(norm(values)[0, :, 0, 0], expected, atol=1e-4, rtol=1e-4)
    assert norm.num_batches_tracked == images - 1


def test_on_mps_the_layout_whose_gradients_are_wrong_there_is_left():
    class OnMps(torch.Tensor):
        device = torch.device("mps")

    images = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    for norm in (BatchNorm(3).train(), BatchNorm(3).eval()):
        assert not norm(images).is_contiguous()
        found = norm(images.as_subclass(OnMps))
        assert found.is_contiguous()
        torch.testing.assert_close(found.as_subclass(torch.Tensor), norm(images), atol=1e-6, rtol=0)
