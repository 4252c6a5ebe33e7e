import builtins
import json
import sys
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import segmentation_models_pytorch
import timm
import torch
from model_cases import make_batch
from safetensors.torch import save_file
from torch import nn

from keypoint_detection.errors import InputError
from keypoint_detection.models.backbones import build_backbone
from keypoint_detection.models.backbones.pretrained import read_weights
from keypoint_detection.models.detector import KeypointDetector

TINY = {"encoder": "tu-convnext_atto", "decoder_channels": [16]}


def trained_encoder():
    """A whole timm model with its classifier, whose weights are unlike those of a new one."""
    torch.manual_seed(7)
    model = timm.create_model("convnext_atto", num_classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def features_of(model, images):
    """The deepest features of a whole timm model."""
    with torch.no_grad():
        return model.eval().forward_features(images)


@pytest.mark.parametrize("form", ["safetensors", "pth", "nested", "features"])
def test_weights_from_a_file_are_those_that_were_written(tmp_path, form):
    model = trained_encoder()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(model.state_dict(), path)
    elif form == "pth":
        torch.save(model.state_dict(), path)
    elif form == "nested":
        torch.save({"epoch": 3, "state_dict": {f"module.{n}": v for n, v in model.state_dict().items()}}, path)
    else:
        extractor = timm.create_model("convnext_atto", features_only=True)
        names = {name.replace("_", "."): name for name in extractor.state_dict()}
        weights = {names[n.replace("_", ".")]: v for n, v in model.state_dict().items() if n.replace("_", ".") in names}
        assert set(weights) == set(extractor.state_dict())
        torch.save(weights, path)
    backbone = build_backbone("Smp", 4, {**TINY, "encoder_weights": str(path)})
    images = torch.rand(1, 3, 64, 64)
    expected = features_of(model, images)
    before = backbone.encoder(images)[-1]
    backbone.load_pretrained()
    with torch.no_grad():
        found = backbone.encoder(images)[-1]
    assert not torch.allclose(before, expected, atol=1e-2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_weights_with_other_names_are_matched_by_order_and_shape(tmp_path):
    model = trained_encoder()
    extractor = timm.create_model("convnext_atto", features_only=True)
    # The order in which the extractor has them, and a classifier after them, under names of another library.
    canonical = {n.replace(".", "_"): v for n, v in model.state_dict().items()}
    values = [canonical[n.replace(".", "_")] for n in extractor.state_dict()] + [torch.zeros(5, 320), torch.zeros(5)]
    path = tmp_path / "renamed.pth"
    torch.save({f"layer{i}": value for i, value in enumerate(values)}, path)
    backbone = build_backbone("Smp", 4, {**TINY, "encoder_weights": str(path)})
    backbone.load_pretrained()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found = backbone.encoder(images)[-1]
    torch.testing.assert_close(found, features_of(model, images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"not a file of weights", "cannot be read"),
        ({"layer": torch.zeros(3)}, "does not fit the encoder"),
        ({"epoch": 3}, "holds no weights"),
        ([1, 2], "holds no weights"),
    ],
)
def test_a_file_without_these_weights_is_an_input_error(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    backbone = build_backbone("Smp", 4, {**TINY, "encoder_weights": str(path)})
    with pytest.raises(InputError, match=message) as error:
        backbone.load_pretrained()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_need_an_extra_name_the_install_command(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)  # to import it is an ImportError now
    with pytest.raises(InputError) as error:
        read_weights(str(path))
    needed = 'needs the extra safetensors: pip install "keypoint_detection[safetensors]"'
    assert str(error.value) == f"encoder_weights {path} {needed}"


def test_without_the_extra_the_error_names_the_install_command(monkeypatch):
    real_import = builtins.__import__

    def without_library(name, *arguments, **keywords):
        if name.startswith("segmentation_models_pytorch"):
            raise ImportError(name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_library)
    with pytest.raises(InputError) as error:
        build_backbone("Smp", 4, {})
    assert 'pip install "keypoint_detection[encoders]"' in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoder": "unnet"}, "did you mean 'unet'"),
        ({"encoder": "tu-convnext_fento"}, "tu-convnext_femto"),
        ({"encoder": "resnet19"}, "resnet18"),
        ({"encoder": "tu-swin_tiny_patch4_window7_224"}, "only one size"),
        ({"decoder": "fpn", "decoder_channels": [8]}, "decoder_channels"),
        ({"decoder_channels": [0]}, "decoder_channels"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        build_backbone("Smp", 4, arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "tu-vit_small_patch14_dinov2"}, "--decoder dpt, which"),
        ({"encoder": "tu-vit_tiny_patch16_224_in21k"}, "--decoder dpt, which"),  # an older name
        ({"encoder": "tu-vit_tiny_patch16_224.augreg_in21k", "decoder": "fpn"}, "--decoder dpt, which"),
        ({"encoder": "tu-resnet18", "decoder": "dpt"}, "expected a vision transformer of timm"),
        ({"encoder": "resnet18", "decoder": "dpt"}, "expected a vision transformer of timm"),
        ({"encoder": "mit_b0", "decoder": "linknet"}, "expected another encoder or decoder"),
    ],
)
@pytest.mark.filterwarnings("ignore:Mapping deprecated model name")
def test_an_encoder_that_does_not_suit_the_decoder_is_no_wrong_name(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        build_backbone("Smp", 4, arguments)
    assert "did you mean" not in str(error.value)
    assert "a name" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_tag_is_a_wrong_name():
    with pytest.raises(InputError, match=r"a name that timm knows \(did you mean .*tu-vit_tiny_patch16_224\b"):
        build_backbone("Smp", 4, {"decoder": "dpt", "encoder": "tu-vit_tiny_patch16_224.augreg_in22"})


@pytest.mark.parametrize(
    ("decoder", "encoder"),
    [
        ("fpn", "resnet18"),
        ("unet", "tu-mobilenetv4_conv_small"),
        ("linknet", "mobilenet_v2"),
        ("dpt", "tu-vit_tiny_patch16_224"),
    ],
)
@pytest.mark.parametrize("stride", [2, 4])
def test_decoders_and_encoders_at_odd_sizes(decoder, encoder, stride):
    backbone = build_backbone("Smp", stride, {"decoder": decoder, "encoder": encoder}).eval()
    with torch.no_grad():
        features = backbone(torch.rand(1, 3, 45, 70))
    assert features.shape == (1, backbone.out_channels, -(-45 // stride), -(-70 // stride))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.decoder.modules())


def test_normalisation_is_that_of_the_encoder():
    lite = build_backbone("Smp", 4, {"encoder": "tu-tf_efficientnet_lite0", "decoder_channels": [16]})
    assert lite.image_mean.flatten().tolist() == [0.5, 0.5, 0.5]
    usual = build_backbone("Smp", 4, TINY)
    assert usual.image_mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_statistics_of_a_pretrained_encoder_stay(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), path)
    arguments = {"encoder": "tu-mobilenetv3_small_050", "decoder_channels": [16], "encoder_weights": str(path)}
    pretrained = build_backbone("Smp", 4, arguments).train()
    new = build_backbone("Smp", 4, {**arguments, "encoder_weights": None}).train()
    for backbone, changes in ((pretrained, False), (new, True)):
        before = {name: value.clone() for name, value in backbone.named_buffers()}
        backbone(torch.rand(2, 3, 64, 64))
        after = dict(backbone.named_buffers())
        assert any(not torch.equal(before[name], after[name]) for name in before) is changes


def test_statistics_of_a_pretrained_encoder_stay_when_it_is_released(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), path)
    detector = KeypointDetector(
        ["a", "b", "c"], heatmap_sigma=4.0, heatmap_stride=4, learning_rate=1e-3, freeze_encoder_epochs=1,
        backbone_type="Smp",
        backbone={"encoder": "tu-mobilenetv3_small_050", "decoder_channels": [16], "encoder_weights": str(path)},
    )  # fmt: skip
    before = {name: value.clone() for name, value in detector.backbone.encoder.state_dict().items()}
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(detector, torch.utils.data.DataLoader([make_batch(seed) for seed in range(2)], batch_size=None))
    after = detector.backbone.encoder.state_dict()
    changed = {name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"weight", "bias"}


def test_a_checkpoint_needs_neither_the_file_nor_a_download(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(trained_encoder().state_dict(), path)
    arguments = {**TINY, "encoder_weights": str(path), "pretrained": True}
    detector = KeypointDetector(
        ["a"], backbone_type="Smp", backbone=arguments, heatmap_sigma=4.0, heatmap_stride=4, learning_rate=6e-3
    )
    torch.save(
        {
            "state_dict": detector.state_dict(),
            "hyper_parameters": dict(detector.hparams),
            "pytorch-lightning_version": "2.6.0",
        },
        tmp_path / "detector.ckpt",
    )
    path.unlink()
    loaded = KeypointDetector.load_from_checkpoint(tmp_path / "detector.ckpt").eval()
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded(images), detector.eval()(images))


def test_parameters_that_nothing_depends_on_do_not_train():
    # The classifier's last convolution is part of this encoder, and the decoder does not use it.
    backbone = build_backbone("Smp", 4, {"decoder": "dpt", "encoder": "tu-vit_tiny_patch16_224"})
    unused = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert {"encoder.model.head.weight", "encoder.model.head.bias"} <= unused
    assert not any(name.startswith(("decoder", "encoder.model.blocks.0.")) for name in unused)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_detector_can_be_built_where_no_gradients_are_recorded(without):
    values = {"backbone_type": "Smp", "backbone": TINY, "heatmap_sigma": 2.0, "heatmap_stride": 2, "learning_rate": 1.0}
    with without():
        detector = KeypointDetector(["a"], **values)
        assert detector(torch.rand(1, 3, 40, 33)).shape == (1, 1, 20, 17)
    assert all(parameter.requires_grad for parameter in detector.parameters())
    assert all(parameter.grad is None for parameter in detector.parameters())


def test_an_unreachable_hub_is_one_line_that_names_the_way_out(monkeypatch):
    backbone = build_backbone("Smp", 4, {**TINY, "pretrained": True})

    def unreachable(*arguments, **keywords):
        raise OSError("name or service not known\nand many more lines")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(InputError, match="encoder_weights") as error:
        backbone.load_pretrained()
    assert "name or service not known" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """What the library would download for mobilenet_v2: a new encoder's weights, and a configuration to change."""
    encoder = segmentation_models_pytorch.encoders.get_encoder("mobilenet_v2")
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.1, 0.3]}))
    fetched = []

    def download(repository, filename, revision):
        fetched.append(repository)
        return str(tmp_path / filename)

    monkeypatch.setattr(segmentation_models_pytorch.encoders, "hf_hub_download", download)
    return SimpleNamespace(folder=tmp_path, fetched=fetched, encoder=encoder)


MOBILENET = {"encoder": "mobilenet_v2", "decoder_channels": [16], "pretrained": True}


def test_images_are_normalised_as_the_downloaded_weights_were_trained(hub):
    backbone = build_backbone("Smp", 4, MOBILENET)
    backbone.load_pretrained()
    assert set(hub.fetched) == {"smp-hub/mobilenet_v2.imagenet"}
    assert torch.equal(backbone.encoder.state_dict()["features.0.0.weight"], hub.encoder.features[0][0].weight)
    assert backbone.image_mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert backbone.image_std.flatten().tolist() == pytest.approx([0.2, 0.1, 0.3])
    # Another build takes them from what was stored, without a download.
    again = build_backbone("Smp", 4, MOBILENET)
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(again.image_mean, backbone.image_mean)
    assert torch.equal(again.image_std, backbone.image_std)


def test_gray_images_are_normalised_by_the_average_of_the_colours(hub):
    backbone = build_backbone("Smp", 4, MOBILENET | {"n_channels_in": 1})
    backbone.load_pretrained()
    assert (backbone.image_mean.item(), backbone.image_std.item()) == pytest.approx((0.4, 0.2))
    lite = build_backbone(
        "Smp", 4, {"encoder": "tu-tf_efficientnet_lite0", "decoder_channels": [16], "n_channels_in": 1}
    )
    assert (lite.image_mean.item(), lite.image_std.item()) == (0.5, 0.5)


@pytest.mark.parametrize("strange", [{"input_space": "BGR"}, {"input_range": [0, 255]}])
def test_weights_that_were_trained_on_other_colours_are_refused(hub, strange):
    config = hub.folder / "config.json"
    config.write_text(json.dumps({"input_space": "RGB", "input_range": [0, 1]} | json.loads(config.read_text())))
    backbone = build_backbone("Smp", 4, MOBILENET)
    backbone.load_pretrained()
    config.write_text(json.dumps(json.loads(config.read_text()) | strange))
    with pytest.raises(InputError, match=r"expected RGB in \[0, 1\]") as error:
        backbone.load_pretrained()
    assert "\n" not in str(error.value)
    assert "mobilenet_v2" in str(error.value)


def test_weights_other_than_those_of_imagenet_are_taken_where_there_are_no_such(hub, monkeypatch, caplog):
    settings = segmentation_models_pytorch.encoders.encoders["mobilenet_v2"]["pretrained_settings"]
    published = {name: {"repo_id": f"hub/{name}", "revision": "1"} for name in ("instagram", "ssl", "imagenet")}
    caplog.set_level("INFO")
    for names, expected in ((("instagram", "ssl"), "instagram"), (("ssl", "imagenet"), "imagenet")):
        hub.fetched.clear()
        caplog.clear()
        with monkeypatch.context() as patch:
            for name in list(settings):
                patch.delitem(settings, name)
            for name in names:
                patch.setitem(settings, name, published[name])
            build_backbone("Smp", 4, MOBILENET).load_pretrained()
        assert set(hub.fetched) == {f"hub/{expected}"}
        assert f"weights {expected} of encoder mobilenet_v2" in caplog.text
