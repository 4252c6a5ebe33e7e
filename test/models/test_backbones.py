import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import SMALL

from keypoint_detection.errors import InputError
from keypoint_detection.models.backbones import BACKBONES, Backbone, build_backbone
from keypoint_detection.models.backbones.base import IMAGENET_MEAN
from keypoint_detection.models.backbones.layers import ResidualBlock

STRIDES = (1, 2, 4)
_cache = {}


def small(name, stride=2):
    if (name, stride) not in _cache:
        torch.manual_seed(0)
        _cache[name, stride] = build_backbone(name, stride, SMALL.get(name, {})).eval()
    return _cache[name, stride]


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("name", BACKBONES)
@settings(max_examples=8)
@given(height=st.integers(1, 70), width=st.integers(1, 70), images=st.integers(1, 2))
def test_any_image_size_gives_the_ceiling_of_size_over_stride(name, stride, height, width, images):
    backbone = small(name, stride)
    with torch.no_grad():
        features = backbone(torch.rand(images, 3, height, width))
    assert features.shape == (images, backbone.out_channels, math.ceil(height / stride), math.ceil(width / stride))
    assert features.isfinite().all()


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("name", BACKBONES)
def test_gradient_reaches_every_parameter_and_a_batch_of_one_trains(name, stride):
    torch.manual_seed(1)
    backbone = build_backbone(name, stride, SMALL.get(name, {})).train()
    with torch.no_grad():
        for parameter in backbone.parameters():  # some scales start at 0, which hides what is beneath them
            parameter.add_(0.1 * torch.randn_like(parameter))
    backbone(torch.rand(1, 3, 64, 64)).square().mean().backward()
    without = [n for n, p in backbone.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


@pytest.mark.parametrize("normalization", ["batch", "group"])
def test_a_unet_trains_on_a_single_value_at_its_coarsest_level(normalization):
    backbone = build_backbone("Unet", 4, SMALL["Unet"] | {"normalization": normalization}).train()
    features = backbone(torch.rand(1, 3, 8, 8))
    features.square().mean().backward()
    assert features.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters())


def test_group_normalisation_does_not_look_at_other_images_while_training():
    images = torch.rand(3, 3, 40, 40)
    for normalization in ("group", "batch"):
        torch.manual_seed(0)
        backbone = build_backbone("Unet", 2, SMALL["Unet"] | {"normalization": normalization}).train()
        with torch.no_grad():
            alone = torch.cat([backbone(image[None]) for image in images])
            assert torch.allclose(backbone(images), alone, atol=1e-4) == (normalization == "group")


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("name", BACKBONES)
def test_shifted_image_gives_shifted_features(name, stride):
    # A small pattern far from all borders, moved by what the deepest level can follow exactly.
    backbone = small(name, stride)
    shift = backbone.size_divisor
    size = 384
    pattern = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    image = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1).expand(1, 3, size, size).clone()
    moved = image.clone()
    image[..., 160:168, 160:168] = pattern
    moved[..., 160 + shift : 168 + shift, 160 - shift : 168 - shift] = pattern
    with torch.no_grad():
        features, moved_features = backbone(image), backbone(moved)
    cells = shift // stride
    inner = slice(160 // stride - 4, 168 // stride + 4)
    expected = features[..., inner, inner]
    found = moved_features[..., inner.start + cells : inner.stop + cells, inner.start - cells : inner.stop - cells]
    assert expected.std() > 1e-3  # the pattern is seen
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", BACKBONES)
def test_state_dict_round_trip_gives_the_same_features(name):
    torch.manual_seed(3)
    first = build_backbone(name, 2, SMALL.get(name, {})).eval()
    second = build_backbone(name, 2, SMALL.get(name, {})).eval()
    images = torch.rand(1, 3, 33, 50)
    assert not torch.equal(first(images), second(images))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images), second(images))


@pytest.mark.parametrize("name", BACKBONES)
def test_same_seed_gives_the_same_weights_and_memory_format_does_not_change_features(name):
    backbones = []
    for _ in range(2):
        torch.manual_seed(4)
        backbones.append(build_backbone(name, 2, SMALL.get(name, {})).eval())
    images = torch.rand(2, 3, 40, 24)
    with torch.no_grad():
        expected = backbones[0](images)
        assert torch.equal(expected, backbones[1](images))
        last = backbones[1].to(memory_format=torch.channels_last)
        found = last(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_images_of_a_batch_do_not_see_each_other(name):
    backbone = small(name)
    images = torch.rand(3, 3, 40, 40)
    with torch.no_grad():
        together = backbone(images)
        alone = torch.cat([backbone(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_gray_images(name):
    backbone = build_backbone(name, 4, {**SMALL.get(name, {}), "n_channels_in": 1}).eval()
    rgb = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone(rgb), backbone(rgb.mean(1, keepdim=True)))


def test_image_of_the_mean_colour_is_zero_inside():
    class Identity(Backbone):
        def __init__(self, *, heatmap_stride):
            super().__init__(heatmap_stride, 3, 3, 4)

        def features(self, images):
            self.seen = images
            return images

    backbone = Identity(heatmap_stride=1)
    image = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1) + torch.tensor([0.229, 0.0, -0.225]).view(1, 3, 1, 1)
    features = backbone(image.expand(1, 3, 5, 6))
    torch.testing.assert_close(features, torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 5, 6))
    assert backbone.seen.shape == (1, 3, 8, 8)
    assert not backbone.seen[..., 5:, :].any()
    assert not backbone.seen[..., 6:].any()


@pytest.mark.parametrize("mode", [True, False])
def test_a_new_residual_block_passes_its_input_on(mode):
    features = torch.rand(2, 8, 5, 6)
    torch.testing.assert_close(ResidualBlock(8, 3).train(mode)(features), features)


@pytest.mark.parametrize(("channels", "scale"), [(5, 0.5), (4, 1.0), (4, 0.25)])
def test_features_of_another_size_than_was_said_are_refused(channels, scale):
    class Mine(Backbone):
        def __init__(self, *, heatmap_stride):
            super().__init__(heatmap_stride, 3, 4, 4)

        def features(self, images):
            height, width = (int(side * scale) for side in images.shape[-2:])
            return images.new_zeros(len(images), channels, height, width)

    got = f"{channels}x{int(8 * scale)}x{int(12 * scale)}"
    with pytest.raises(InputError, match=f"^backbone Mine: features of 8x12 pixels are {got}, expected 4x4x6, that is"):
        Mine(heatmap_stride=2)(torch.rand(2, 3, 7, 9))


@pytest.mark.parametrize(("features", "got"), [([torch.zeros(2, 4, 4, 6)], "a list"), (None, "a NoneType")])
def test_features_that_are_no_tensor_are_refused(features, got):
    """As the maps of all levels, in a list, that the encoders of other libraries return."""

    class Mine(Backbone):
        def __init__(self, *, heatmap_stride):
            super().__init__(heatmap_stride, 3, 4, 4)

        def features(self, images):
            return features

    with pytest.raises(InputError, match=f"^backbone Mine: features are {got}, expected a tensor$"):
        Mine(heatmap_stride=2)(torch.rand(2, 3, 7, 9))


def test_unet_computes_no_level_finer_than_the_heatmaps():
    arguments = {"n_channels": 4, "n_channels_out": 0}
    widths = {stride: build_backbone("Unet", stride, arguments).out_channels for stride in STRIDES}
    assert widths == {1: 2, 2: 2, 4: 4}


@pytest.mark.parametrize(
    ("stride", "encoder", "decoder"),
    [(1, [0, 0, 1, 1, 3], [1, 1, 1, 1]), (2, [0, 0, 1, 1, 3], [1, 1, 1]), (4, [0, 0, 1, 1, 3], [1, 1])],
)
def test_unet_has_residual_blocks_where_it_says(stride, encoder, decoder):
    unet = build_backbone("Unet", stride, {"n_downsampling_layers": 4, "n_resnet_blocks": 3})
    for levels, expected in ((unet.encoder, encoder), (unet.decoder, decoder)):
        assert [sum(isinstance(block, ResidualBlock) for block in level) for level in levels] == expected


def test_unet_has_as_many_output_channels_as_it_is_told():
    for stride, channels in ((4, 24), (2, 12), (1, 6)):
        backbone = build_backbone("Unet", stride, {"n_channels": 4, "n_channels_out": 24})
        assert backbone(torch.rand(1, 3, 32, 64)).shape == (1, channels, 32 // stride, 64 // stride)


def test_unet_doubles_its_channels_down_to_the_largest_number():
    backbone = build_backbone("Unet", 4, {"n_channels": 16, "max_channels": 48, "n_downsampling_layers": 5})
    strides = [layer.weight.shape[0] for layer in backbone.encoder.modules() if getattr(layer, "stride", 1) == (2, 2)]
    assert strides == [8, 16, 32, 48, 48]


def test_dilated_cnn_sees_as_far_as_its_dilations_say():
    # 3x3 kernels with dilations 1, 2 and 3 reach 1 + 2 + 3 cells to each side; normalisation sees everything, so it
    # is taken out.
    backbone = build_backbone("DilatedCnn", 1, {"n_channels": 4, "dilations": [1, 2, 3]})
    for module in backbone.layers:
        module[1] = torch.nn.Identity()
        module[2] = torch.nn.Identity()
    image = torch.rand(1, 3, 21, 21, requires_grad=True)
    backbone(image)[0, :, 10, 10].sum().backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
    assert (min(rows), max(rows)) == (4, 16)


@pytest.mark.parametrize(
    ("name", "stride", "arguments", "message"),
    [
        ("Unett", 2, {}, "Unet"),
        ("Unet", 3, {}, "heatmap_stride is 3"),
        ("Unet", 2, {"kernel_sise": 3}, "kernel_size"),
        ("Unet", 2, {"heatmap_stride": 2}, "takes no argument 'heatmap_stride', expected one of: "),
        ("Unet", 2, {"n_channels_in": 2}, "n_channels_in is 2, expected 3 (colours) or 1"),
        ("DilatedCnn", 2, {"n_channels_in": 4}, "n_channels_in is 4, expected 3 (colours) or 1"),
        ("Unet", 2, {"kernel_size": 4}, "kernel_size is 4"),
        ("Unet", 2, {"n_channels": 1}, "n_channels is 1"),
        ("Unet", 4, {"n_downsampling_layers": 1}, "n_downsampling_layers is 1"),
        ("Unet", 4, {"n_resnet_blocks": -1}, "n_resnet_blocks is -1"),
        ("Unet", 4, {"max_channels": 1}, "max_channels is 1"),
        ("Unet", 4, {"n_channels_out": -1}, "n_channels_out is -1"),
        ("Unet", 4, {"n_channels_out": 1}, "n_channels_out is 1"),
        ("DilatedCnn", 4, {"dilations": []}, "dilations"),
        ("DilatedCnn", 4, {"dilations": [2, 0]}, "dilations"),
        ("Unet", 4, {"normalization": "layer"}, "normalization is 'layer'"),
        ("S3K", 4, {"n_resnet_blocks": -1}, "n_resnet_blocks is -1"),
        ("S3K", 1, {"kernel_size": 0}, "kernel_size is 0"),
        ("DilatedCnn", 2, {"kernel_size": 1}, "kernel_size is 1, expected an odd integer of at least 3"),
        ("Unet", 2, {"kernel_size": 1}, "kernel_size is 1, expected an odd integer of at least 3"),
        ("S3K", 2, {"kernel_size": 1}, "kernel_size is 1, expected an odd integer of at least 3"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(name, stride, arguments, message):
    with pytest.raises(InputError) as error:
        build_backbone(name, stride, arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError) as error:
        build_backbone("Resnet", 2, {})
    assert all(name in str(error.value) for name in BACKBONES)
