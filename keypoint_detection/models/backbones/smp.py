"""Decoders of segmentation-models-pytorch with encoders that may be pretrained.

B batch, H W image, h w heatmap.
"""

from __future__ import annotations

import inspect
import logging
import textwrap
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keypoint_detection.errors import InputError
from keypoint_detection.models.backbones.base import Backbone
from keypoint_detection.models.backbones.layers import normalization, replace_normalization
from keypoint_detection.models.backbones.pretrained import copy_weights, read_weights
from keypoint_detection.models.registry import look_up
from keypoint_detection.wording import did_you_mean, first_line

logger = logging.getLogger(__name__)

# Height and width are padded to multiples of the first of these that works. Windowed attention needs the larger ones.
_DIVISORS = (32, 64, 128, 224, 256, 384, 512)


class Smp(Backbone):
    """A decoder of segmentation-models-pytorch with an encoder from that library or from timm.

    It needs the extra `encoders`: `pip install "keypoint_detection[encoders]"`. Batch normalisation of a pretrained
    encoder keeps its pretrained statistics, and that of the decoder is replaced with group normalisation, so that small
    batches train as well. An encoder that has batch normalisation and is not pretrained needs batches of several
    images.

    Args:
        heatmap_stride: Pixels of the image per cell of the heatmap: 1, 2 or 4.
        n_channels_in: Channels of the images: 3 for RGB, 1 to average RGB to gray.
        decoder: Kind of decoder: unet, unetplusplus, manet, linknet, fpn, pspnet, deeplabv3, deeplabv3plus, pan,
            upernet, segformer or dpt (for vision transformers).
        encoder: Name of the encoder, such as resnet18 or mobilenet_v2; `tu-` plus a name selects any timm encoder, such
            as tu-convnext_femto.
        pretrained: Start the encoder from the weights that its library publishes; they are downloaded. These are the
            ImageNet weights, or the first ones listed if there are none for ImageNet.
        encoder_weights: File with weights that the encoder starts from, .safetensors or .pth, instead of a download.
            Images are normalised as timm prescribes for its encoders, and as for ImageNet otherwise.
        decoder_channels: Channels of the decoder's levels, the deepest first, for decoders that have this setting. The
            last value repeats. None uses the library's own.
    """

    def __init__(
        self,
        *,
        heatmap_stride: int,
        n_channels_in: int = 3,
        decoder: str = "unet",
        encoder: str = "tu-convnext_femto",
        pretrained: bool = False,
        encoder_weights: str | None = None,
        decoder_channels: list[int] | None = None,
    ) -> None:
        library = _import_library()
        model = _build(library, decoder, encoder, n_channels_in, decoder_channels)
        replace_normalization(model.decoder, nn.BatchNorm2d, lambda norm: normalization(norm.num_features))
        divisor = _size_divisor(model, encoder, n_channels_in)
        stride, channels = _fit_stride(model, heatmap_stride, divisor, n_channels_in)
        super().__init__(heatmap_stride, n_channels_in, channels, size_divisor=divisor)
        self.encoder: nn.Module = model.encoder
        self.decoder: nn.Module = model.decoder
        self.encoder_name = encoder
        self.pretrained = pretrained
        self.encoder_weights = encoder_weights
        self.decoder_stride = stride
        # An encoder of timm knows the normalisation that it was trained with.
        self._normalize_as(getattr(getattr(self.encoder, "model", None), "pretrained_cfg", None) or {})
        self._freeze_unused()

    def _normalize_as(self, config: Mapping[str, Any]) -> None:
        """Use the mean and standard deviation of a configuration, if it has them; for gray, their average over RGB."""
        if config.get("mean") is None:
            return
        mean, std = tuple(config["mean"]), tuple(config["std"])
        if self.n_channels_in != 3:
            mean, std = ((sum(values) / len(values),) * self.n_channels_in for values in (mean, std))
        self.set_normalization(mean, std)

    @torch.enable_grad()
    def _freeze_unused(self) -> None:
        """Freeze weights without a gradient, such as a classifier's: several processes need one for all that train."""
        if torch.is_inference_mode_enabled():  # weights created in it never train
            return
        self.eval()
        self.features(torch.zeros(1, self.n_channels_in, self.size_divisor, self.size_divisor)).sum().backward()
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        self.train()

    def features(self, images: Tensor) -> Tensor:
        """See `Backbone.features`."""
        features = _decode(self.encoder, self.decoder, images)
        if self.decoder_stride == self.heatmap_stride:
            return features
        size = (images.shape[-2] // self.heatmap_stride, images.shape[-1] // self.heatmap_stride)
        return F.interpolate(features, size=size, mode="bilinear", align_corners=False)

    def encoder_modules(self) -> list[nn.Module]:
        """See `Backbone.encoder_modules`."""
        return [self.encoder]

    @property
    def _has_pretrained_encoder(self) -> bool:
        return self.pretrained or self.encoder_weights is not None

    def untrained_modules(self) -> list[nn.Module]:
        """See `Backbone.untrained_modules`."""
        return [self.decoder] if self._has_pretrained_encoder else [self]

    def train(self, mode: bool = True) -> Smp:
        """Set the mode, but always keep the statistics of batch normalisation in a pretrained encoder."""
        super().train(mode)
        if self._has_pretrained_encoder:
            for module in self.encoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def load_pretrained(self) -> None:
        """Load the encoder's weights from `encoder_weights` or its library, if requested.

        Raises:
            InputError: when the file does not hold weights of this encoder, or when they cannot be downloaded or need
                images in another colour space or range.
        """
        if self.encoder_weights is not None:
            copied = copy_weights(self.encoder, read_weights(self.encoder_weights), self.encoder_weights)
            logger.info("loaded %d weights of encoder %s from %s", copied, self.encoder_name, self.encoder_weights)
        elif self.pretrained:
            self._download()

    def _download(self) -> None:
        library = _import_library()
        published = library.encoders.encoders.get(self.encoder_name, {}).get("pretrained_settings", {})  # none: timm's
        weights = "imagenet" if "imagenet" in published else next(iter(published), None)
        which = f"weights {weights}" if weights else "weights"
        logger.info("downloading %s of encoder %s, unless they are cached", which, self.encoder_name)
        decoder = "dpt" if type(self.encoder).__name__ == "TimmViTEncoder" else "unet"
        config: dict[str, Any] = {}
        try:
            model = _build(library, decoder, self.encoder_name, self.n_channels_in, None, weights=weights or True)
            if weights:
                config = library.encoders.get_preprocessing_params(self.encoder_name, weights)
        except Exception as error:  # whatever makes the hub unreachable, the remedy is the same
            raise InputError(
                f"{which} of encoder {self.encoder_name!r} could not be downloaded ({first_line(error)}), expected "
                "a reachable hub, or a file with the weights as encoder_weights"
            ) from error
        colours = config.get("input_space", "RGB"), list(config.get("input_range", [0, 1]))
        if colours != ("RGB", [0, 1]):
            raise InputError(
                f"{which} of encoder {self.encoder_name!r} are for images in {colours[0]} with values in {colours[1]}, "
                "expected RGB in [0, 1]"
            )
        self.encoder.load_state_dict(model.encoder.state_dict())
        self._normalize_as(config)


def _import_library() -> ModuleType:
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise InputError(
            "backbone_type 'Smp' needs the extra encoders: pip install \"keypoint_detection[encoders]\""
        ) from error
    return segmentation_models_pytorch


def _build(
    library: ModuleType,
    decoder: str,
    encoder: str,
    n_channels_in: int,
    decoder_channels: list[int] | None,
    weights: str | bool | None = None,
) -> nn.Module:
    """Build a whole model of the library; only its encoder and decoder are used."""
    architectures = library.MODEL_ARCHITECTURES_MAPPING
    architecture = look_up(architectures, decoder, "decoder")
    arguments: dict[str, Any] = {}
    if decoder == "dpt":
        arguments["dynamic_img_size"] = True
        if "patch14" in encoder:
            arguments["patch_size"] = 16  # the decoder doubles resolutions, which does not work with 14; timm resamples
    if decoder_channels is not None:
        default = inspect.signature(architecture).parameters.get("decoder_channels")
        if default is None or not decoder_channels or min(decoder_channels) < 1:
            raise InputError(
                f"decoder_channels is {decoder_channels} for decoder {decoder!r}, expected integers of at least 1 and "
                "a decoder that takes them, such as unet"
            )
        channels = list(decoder_channels)
        levels = len(default.default) if isinstance(default.default, (tuple, list)) else 0
        padded = (channels + [channels[-1]] * levels)[:levels]
        arguments["decoder_channels"] = padded if levels else channels[0]
    try:
        return architecture(
            encoder_name=encoder, encoder_weights=weights, in_channels=n_channels_in, classes=1, **arguments
        )
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        if weights is not None:
            raise
        raise InputError(_refusal(decoder, encoder, error)) from error


def _refusal(decoder: str, encoder: str, error: Exception) -> str:
    """What is wrong with an encoder that could not be built with a decoder, and what would work."""
    import timm
    from segmentation_models_pytorch.encoders import get_encoder_names

    own, name = get_encoder_names(), encoder.removeprefix("tu-")
    is_of_timm = name != encoder and timm.is_model(name) and ("." not in name or timm.is_model_pretrained(name))
    if encoder not in own and not is_of_timm:
        hint = did_you_mean(encoder, own + [f"tu-{model}" for model in timm.list_models()], most=3)
        return (
            f"encoder {encoder!r} is not known, expected a name that segmentation-models-pytorch knows, or 'tu-' and a "
            f"name that timm knows{hint}"
        )
    if decoder == "dpt":
        expected = "a vision transformer of timm, such as tu-vit_small_patch16_224"
    elif is_of_timm:
        expected = "another encoder, or --decoder dpt, which vision transformers need"
    else:
        expected = "another encoder or decoder"
    reason = textwrap.shorten(first_line(error), 80, placeholder=" ...")
    return f"encoder {encoder!r} does not work with decoder {decoder!r} ({reason}), expected {expected}"


def _decode(encoder: nn.Module, decoder: nn.Module, images: Tensor) -> Tensor:
    features = encoder(images)
    # Vision transformers return their prefix tokens, too.
    return decoder(*features) if isinstance(features, tuple) else decoder(features)


@torch.no_grad()
def _probe(model: nn.Module, size: int, n_channels_in: int) -> tuple[int, int]:
    """Stride and channels of the decoder's output, found by running it on an image."""
    model.eval()
    for width in (2 * size, size):
        features = _decode(model.encoder, model.decoder, torch.zeros(1, n_channels_in, size, width))
    model.train()
    return size // features.shape[-2], features.shape[1]


def _size_divisor(model: nn.Module, encoder: str, n_channels_in: int) -> int:
    for divisor in _DIVISORS:
        try:
            _probe(model, divisor, n_channels_in)
        except (AssertionError, RuntimeError, ValueError):
            continue
        return divisor
    raise InputError(f"encoder {encoder!r} takes images of only one size, expected one that takes any size")


def _fit_stride(model: nn.Module, heatmap_stride: int, divisor: int, n_channels_in: int) -> tuple[int, int]:
    """Drop the last blocks of a decoder that is finer than the heatmaps, if it is a list of blocks that double it."""
    stride, channels = _probe(model, divisor, n_channels_in)
    blocks = getattr(model.decoder, "blocks", None)
    while stride < heatmap_stride and isinstance(blocks, nn.ModuleList) and len(blocks) > 1:
        model.decoder.blocks = blocks = blocks[:-1]
        stride, channels = _probe(model, divisor, n_channels_in)
    return stride, channels
