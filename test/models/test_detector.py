import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from model_cases import SMALL, make_batch, quiet_trainer

from keypoint_detection import heatmaps
from keypoint_detection.batch import Batch
from keypoint_detection.errors import InputError
from keypoint_detection.models.backbones import BACKBONES, Backbone
from keypoint_detection.models.detections import decode_detections
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.models.losses import LOSSES, evaluate_loss
from keypoint_detection.models.targets import loss_targets, positive_cells

CHANNELS = ["nose", "paws", "tail"]


def make_detector(**arguments):
    torch.manual_seed(0)
    arguments = {
        "backbone": SMALL["Unet"],
        "heatmap_stride": 2,
        "heatmap_sigma": 4.0,
        "learning_rate": 6e-3,
        **arguments,
    }
    return KeypointDetector(**{"keypoint_channels": CHANNELS, **arguments})


def fit(detector, batches=4, **arguments):
    loader = torch.utils.data.DataLoader([make_batch(seed) for seed in range(batches)], batch_size=None)
    trainer = quiet_trainer(**arguments)
    trainer.fit(detector, loader)
    return trainer


def draw_heatmaps(detector, keypoints, size):
    """Make a detector predict the heatmaps of these keypoints, whatever the image."""
    values = detector.hparams
    drawn = heatmaps.render(keypoints, size, values.heatmap_sigma, values.heatmap_stride)
    detector.forward = lambda images: drawn.clamp(1e-6, 1 - 1e-6).logit()


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_heatmaps_start_near_zero(name, stride):
    detector = make_detector(backbone_type=name, backbone=SMALL.get(name, {}), heatmap_stride=stride)
    with torch.no_grad():
        probabilities = detector(torch.rand(2, 3, 45, 37)).sigmoid()
    assert probabilities.shape == (2, 3, -(-45 // stride), -(-37 // stride))
    assert probabilities.mean().item() == pytest.approx(0.005, rel=0.5)


def test_a_backbone_of_ones_own(monkeypatch):
    class Mine(Backbone):
        """One convolution."""

        def __init__(self, *, heatmap_stride: int, width: int = 4):
            super().__init__(heatmap_stride, 3, width, heatmap_stride)
            self.layer = torch.nn.Conv2d(3, width, heatmap_stride, stride=heatmap_stride)

        def features(self, images):
            return self.layer(images)

    monkeypatch.setitem(BACKBONES, "Mine", Mine)
    detector = make_detector(backbone_type="Mine", backbone={"width": 6}, heatmap_stride=4)
    assert detector(torch.rand(1, 3, 9, 8)).shape == (1, 3, 3, 2)
    assert fit(detector, max_epochs=1).global_step == 4


def test_a_loss_of_ones_own(monkeypatch):
    def huber(logits, targets, *, huber_delta: float = 1.0):
        return torch.full((3,), huber_delta) + 0 * logits.sum()

    monkeypatch.setitem(LOSSES, "huber", huber)
    detector = make_detector(loss="huber", loss_arguments={"huber_delta": 0.25})
    assert detector.training_step(make_batch())["loss"].item() == 0.25


def test_arguments_of_ones_own_need_no_star_before_them(monkeypatch):
    class Mine(Backbone):
        """One convolution."""

        def __init__(self, heatmap_stride: int = 2, width: int = 4):
            super().__init__(heatmap_stride, 3, width, heatmap_stride)
            self.layer = torch.nn.Conv2d(3, width, heatmap_stride, stride=heatmap_stride)

        def features(self, images):
            return self.layer(images)

    def huber(logits, targets, huber_delta: float = 1.0):
        return torch.full((3,), huber_delta) + 0 * logits.sum()

    monkeypatch.setitem(BACKBONES, "Mine", Mine)
    monkeypatch.setitem(LOSSES, "huber", huber)
    detector = make_detector(backbone_type="Mine", backbone={"width": 6}, loss="huber", heatmap_stride=4)
    assert detector(torch.rand(1, 3, 9, 8)).shape == (1, 3, 3, 2)
    assert detector.backbone.out_channels == 6
    # A checkpoint has to hold the defaults, which may change.
    assert (detector.hparams.backbone, detector.hparams.loss_arguments) == ({"width": 6}, {"huber_delta": 1.0})
    detector = make_detector(loss="huber", loss_arguments={"huber_delta": 0.25})
    assert detector.training_step(make_batch())["loss"].item() == 0.25
    for wrong in (
        {"loss": "huber", "loss_arguments": {"targets": 1}},
        {"loss": "huber", "loss_arguments": {"delta": 1}},
    ):
        with pytest.raises(InputError, match=r"takes no argument '(targets|delta)', expected one of: huber_delta"):
            make_detector(**wrong)
    with pytest.raises(InputError, match="takes no argument 'heatmap_stride', expected one of: width"):
        make_detector(backbone_type="Mine", backbone={"heatmap_stride": 4}, heatmap_stride=4)


def test_a_loss_or_a_backbone_of_the_wrong_form_is_named(monkeypatch):
    monkeypatch.setitem(LOSSES, "scalar", lambda logits, targets: logits.mean())
    with pytest.raises(InputError, match=r"^loss scalar: expected one value per channel, \(3,\), got \(\)$"):
        make_detector(loss="scalar").training_step(make_batch())
    monkeypatch.setitem(LOSSES, "nothing", lambda logits, targets: None)  # as without a return
    with pytest.raises(InputError, match=r"^loss nothing: expected one value per channel, \(3,\), got None$"):
        make_detector(loss="nothing").training_step(make_batch())
    detector = make_detector(heatmap_stride=2)
    monkeypatch.setattr(detector.backbone, "heatmap_stride", 4)
    monkeypatch.setattr(detector.backbone, "out_channels", 24)
    monkeypatch.setattr(
        type(detector.backbone), "features", lambda self, images: images[..., ::4, ::4].repeat(1, 8, 1, 1)
    )
    detector.head = torch.nn.Conv2d(24, 3, 1)
    expected = "predicted and true heatmaps are 3x8x8 and 3x16x16: expected a backbone with the stride heatmap_stride"
    with pytest.raises(InputError, match=expected):
        detector.training_step(make_batch(size=(32, 32)))


@pytest.mark.parametrize("loss", LOSSES)
def test_training_step_leaves_padding_and_unlabelled_channels_out(loss):
    detector = make_detector(loss=loss, heatmap_stride=2)
    batch = make_batch(size=(48, 40))
    sizes = torch.tensor([[48, 40], [21, 30]])
    labelled = torch.tensor([[True, True, False], [True, False, False]])
    xy = batch.keypoints.clone()
    xy[1] = torch.rand(3, 2, 2) * torch.tensor([29.0, 20.0])
    batch = batch._replace(sizes=sizes, labelled=labelled, keypoints=xy)
    result = detector.training_step(batch)
    # 24 x 20 cells of the first image, 11 x 15 of the second.
    assert result["weights"].tolist() == [480 + 165, 480, 0]
    assert result["losses"][2] == 0
    assert result["loss"].item() == pytest.approx(result["losses"][:2].mean().item())
    # The same from each image without its padding, as its own batch.
    truth = heatmaps.render(xy, (48, 40), detector.hparams.heatmap_sigma, 2)
    floor = heatmaps.entropy(truth)
    expected = (floor[0, 0].sum() + floor[1, 0, :11, :15].sum()) / 645
    assert result["gt_losses"][0].item() == pytest.approx(
        expected.item() if loss == "bce" else math.nan, rel=1e-5, nan_ok=True
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_no_loss_depends_on_the_size_of_the_other_images_of_a_batch(loss, stride):
    # Keypoints on the right and the lower border of the smaller images too.
    sizes = torch.tensor([[40, 52], [31, 37], [40, 36], [28, 52]])
    corners = sizes.flip(1)[:, None, None].float()
    xy = corners * torch.tensor([[[1.0, 0.4], [0.3, 0.6]], [[0.2, 1.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    batch = make_batch(images=4, size=(40, 52))._replace(keypoints=xy, sizes=sizes)
    logits = torch.randn(4, 3, -(-40 // stride), -(-52 // stride), generator=torch.Generator().manual_seed(0))
    together, _ = evaluate_loss(loss, {}, logits, loss_targets(batch, 3.0, stride))
    expected, cells = 0, 0
    for index, (height, width) in enumerate(sizes.tolist()):
        rows, columns = -(-height // stride), -(-width // stride)
        alone = Batch(*(None if value is None else value[index : index + 1] for value in batch))
        targets = loss_targets(alone._replace(images=alone.images[..., :height, :width]), 3.0, stride)
        assert (targets.positives & targets.mask).sum() == 6
        losses, _ = evaluate_loss(loss, {}, logits[index : index + 1, :, :rows, :columns], targets)
        expected, cells = expected + losses * rows * columns, cells + rows * columns
    torch.testing.assert_close(together, expected / cells, rtol=1e-5, atol=0)


def test_training_step_is_the_same_with_rendered_heatmaps_and_nothing_labelled_is_zero():
    detector = make_detector()
    batch = make_batch()
    values = detector.hparams
    drawn = heatmaps.render(batch.keypoints, (48, 40), values.heatmap_sigma, values.heatmap_stride)
    assert detector.training_step(batch)["loss"] == detector.training_step(batch._replace(heatmaps=drawn))["loss"]
    result = detector.training_step(make_batch(labelled=False))
    result["loss"].backward()
    assert result["loss"] == 0
    assert all(p.grad is None or not p.grad.any() for p in detector.parameters())


def test_gt_loss_is_the_entropy_weighted_as_the_loss():
    batch = make_batch()
    detector = make_detector(loss_arguments={"bce_keypoint_weight": 5.0})
    values = detector.hparams
    truth = heatmaps.render(batch.keypoints, (48, 40), values.heatmap_sigma, values.heatmap_stride)
    expected = (heatmaps.entropy(truth) * (1 + 5 * truth)).mean((0, 2, 3))
    torch.testing.assert_close(detector.training_step(batch)["gt_losses"], expected, atol=1e-6, rtol=1e-4)
    draw_heatmaps(detector, batch.keypoints, (48, 40))
    torch.testing.assert_close(detector.training_step(batch)["losses"], expected, atol=1e-5, rtol=1e-4)


def test_loss_stays_in_float32_under_autocast():
    detector = make_detector()
    batch = make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        short = detector.training_step(batch)
    assert short["losses"].dtype == torch.float32
    assert short["loss"].item() == pytest.approx(detector.training_step(batch)["loss"].item(), rel=2e-2)


@pytest.mark.parametrize("name", BACKBONES)
def test_logits_are_not_rounded_to_16_bits_under_autocast(name):
    torch.manual_seed(0)
    detector = make_detector(backbone_type=name, backbone=SMALL[name]).eval()
    torch.nn.init.normal_(detector.head.weight)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits, features = detector(images), detector.backbone(images)
    weight, bias = detector.head.weight.double()[:, :, 0, 0], detector.head.bias.double()
    expected = torch.einsum("bfhw,cf->bchw", features.double(), weight) + bias[:, None, None]
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)


def test_weights_of_16_bits_may_be_under_autocast_too():
    detector = make_detector().eval().bfloat16()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert detector(torch.rand(1, 3, 16, 16)).dtype == torch.bfloat16


def test_shapes_are_known_without_computing_anything():
    with torch.device("meta"):
        assert make_detector()(torch.rand(2, 3, 9, 8)).shape == (2, 3, 5, 4)


def test_positive_cells():
    nan = math.nan
    keypoints = torch.tensor([[[[0.0, 0.0], [7.9, 5.0]], [[nan, nan], [nan, nan]], [[3.99, 4.0], [nan, nan]]]])
    found = positive_cells(keypoints, torch.tensor([[6, 9]]), (6, 9), 2)
    assert found.shape == (1, 3, 3, 5)
    # Cells as (row, column): pixels are halved and floored.
    assert found.nonzero().tolist() == [[0, 0, 0, 0], [0, 0, 2, 3], [0, 2, 2, 1]]
    # The last cells of 5 x 7 pixels, with padding below and beside them, are the third row and the fourth column.
    border = torch.tensor([[[[7.0, 1.0]], [[1.0, 5.0]], [[7.0, 5.0]]]])
    found = positive_cells(border, torch.tensor([[5, 7]]), (10, 12), 2)
    assert found.shape == (1, 3, 5, 6)
    assert found.nonzero().tolist() == [[0, 0, 0, 3], [0, 1, 2, 0], [0, 2, 2, 3]]


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_detect_returns_pixels_of_the_images(stride):
    detector = make_detector(heatmap_stride=stride, heatmap_sigma=3.0, max_keypoints=3)
    keypoints = torch.full((1, 3, 2, 2), math.nan)
    keypoints[0, 0] = torch.tensor([[10.25, 33.5], [40.0, 12.75]])
    keypoints[0, 2, 0] = torch.tensor([20.5, 20.5])
    draw_heatmaps(detector, keypoints, (48, 56))
    xy, scores = detector.detect(torch.zeros(1, 3, 48, 56))
    assert xy.shape == (1, 3, 3, 2)
    found = {tuple(np.round(point, 1)) for point in xy[0, 0, :2].numpy().astype(float)}
    assert found == {(10.2, 33.5), (40.0, 12.8)}
    assert xy[0, 1].isnan().all()
    assert not scores[0, 1].any()
    torch.testing.assert_close(xy[0, 2, 0], torch.tensor([20.5, 20.5]), atol=0.01, rtol=0)
    assert (scores[0, 2] > 0).tolist() == [True, False, False]


def test_caps_of_channels():
    detector = make_detector(max_keypoints=4, keypoint_channel_max_keypoints=[-1, 1, 2], heatmap_sigma=1.0)
    keypoints = torch.tensor([[5.0, 5], [20, 5], [5, 20], [20, 20]]).expand(1, 3, 4, 2)
    draw_heatmaps(detector, keypoints, (30, 30))
    xy, scores = detector.detect(torch.zeros(1, 3, 30, 30))
    assert (scores[0] > 0).sum(1).tolist() == [4, 1, 2]
    assert (~xy[0].isnan().any(-1)).sum(1).tolist() == [4, 1, 2]


def test_no_keypoint_lies_outside_of_its_image():
    # The last cells of 33 x 30 pixels reach to 36 and 32, with their centres at 34 and 30.
    probabilities = torch.zeros(2, 1, 9, 10)
    probabilities[0, 0, 7, 8] = probabilities[1, 0, 7, 7] = 0.9
    alone = decode_detections(probabilities[:1], torch.tensor([[30, 33]]), [1], 1.0, 4)
    assert alone.xy[0, 0, 0].tolist() == [33, 30]
    together = decode_detections(probabilities, torch.tensor([[30, 33], [31, 40]]), [1], 1.0, 4)
    assert together.xy[:, 0, 0].tolist() == [[33, 30], [30, 30]]


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_padding_changes_no_detection(stride):
    # Keypoints at the very border of an image, whose Gaussians would go on into the padding.
    generator = torch.Generator().manual_seed(3)
    sizes = torch.tensor([[40, 52], [31, 52], [40, 37], [40, 52]])
    for height, width in sizes.unique(dim=0).tolist():
        assert height <= 40
        assert width <= 52
    probabilities = torch.rand(4, 2, -(-40 // stride), -(-52 // stride), generator=generator)
    together = decode_detections(probabilities, sizes, [5, 3], 4.0, stride)
    for index, (height, width) in enumerate(sizes.tolist()):
        crop = probabilities[index : index + 1, :, : -(-height // stride), : -(-width // stride)]
        alone = decode_detections(crop, sizes[index : index + 1], [5, 3], 4.0, stride)
        torch.testing.assert_close(together.xy[index], alone.xy[0], equal_nan=True, rtol=0, atol=0)
        torch.testing.assert_close(together.scores[index], alone.scores[0], rtol=0, atol=0)


def test_predictions_keep_nothing_of_a_batch_that_a_worker_shares_since_each_holds_a_file_open():
    batch = make_batch()
    shared = Batch(*(None if value is None else value.share_memory_() for value in batch))
    found = make_detector().predict_step(shared)
    assert found["indices"].tolist() == [0, 1]
    assert not any(value.is_shared() for value in found.values())


def test_validation_step_maps_to_the_image_files_and_keeps_padding_at_zero():
    detector = make_detector(heatmap_stride=2, heatmap_sigma=2.0, max_keypoints=1)
    keypoints = torch.tensor([[20.5, 10.25], [8.0, 16.0], [30.0, 20.5]]).view(1, 3, 1, 2)
    batch = make_batch(images=1, keypoints=1, size=(32, 48))
    # Pixels of the batch are 3 pixels of the file; the file's crop began at (7, 5).
    transform = torch.tensor([[3.0, 0, 7], [0, 3, 5], [0, 0, 1]], dtype=torch.float64)[None]
    batch = batch._replace(keypoints=keypoints, transforms=transform, sizes=torch.tensor([[32, 41]]))
    draw_heatmaps(detector, keypoints, (32, 48))
    result = detector.validation_step(batch)
    expected = torch.tensor([[68.5, 35.75], [31.0, 53.0], [97.0, 66.5]]).view(1, 3, 1, 2)
    torch.testing.assert_close(result["xy"], expected, atol=0.05, rtol=0)
    assert result["heatmaps"].shape == (1, 3, 16, 24)
    assert not result["heatmaps"][..., 21:].any()
    assert result["heatmaps"][..., :21].all()
    # These heatmaps are the truth, so BCE is at its floor.
    torch.testing.assert_close(result["losses"], result["gt_losses"], atol=1e-4, rtol=1e-3)
    assert result["weights"].tolist() == [16 * 21] * 3
    assert set(detector.test_step(batch)) == set(result)


def test_training_overfits_one_batch():
    detector = make_detector(heatmap_sigma=2.0, max_keypoints=2, backbone=None)
    batch = make_batch(images=1, keypoints=2)
    loader = torch.utils.data.DataLoader([batch] * 120, batch_size=None)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(detector, loader)
    found = detector.eval().detect(batch.images).xy
    distances = torch.cdist(found[0], batch.keypoints[0]).amin(1)
    assert distances.nan_to_num(99).max() < 1.0


def test_detecting_is_inference_in_any_mode_and_changes_nothing():
    detector = make_detector(backbone=None)  # with batch normalisation
    torch.nn.init.normal_(detector.head.weight)  # or there would be nothing to find
    images = torch.rand(2, 3, 64, 64)
    expected = copy.deepcopy(detector).eval().detect(images)
    assert (expected.scores > 0).any()
    encoder = detector.backbone.encoder.eval()  # as a frozen one
    modes = [module.training for module in detector.modules()]
    before = copy.deepcopy(detector.state_dict())
    found = detector.detect(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    for name, value in detector.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    assert [module.training for module in detector.modules()] == modes
    assert detector.training
    assert not encoder.training


def test_same_seed_gives_the_same_weights_after_training():
    states = []
    for _ in range(2):
        detector = make_detector()
        fit(detector, max_epochs=2)
        states.append(detector.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0] if name != "score_thresholds")


def test_checkpoint_loads_without_running_code_and_without_anything_else(tmp_path):
    detector = make_detector(
        loss="focal",
        loss_arguments={"focal_beta": np.float64(3.0)},
        image_size=(64, 48),
        learning_rate=np.float32(0.5),
        keypoint_channel_max_keypoints=[1, -1, 2],
    )
    detector.score_thresholds.copy_(torch.tensor([0.25, math.nan, 0.5]))
    trainer = fit(detector, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert content["hyper_parameters"]["learning_rate"] == 0.5
    assert "load_pretrained" not in content["hyper_parameters"]
    loaded = KeypointDetector.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.hparams == detector.hparams
    assert loaded.hparams.image_size == [64, 48]
    torch.testing.assert_close(loaded.score_thresholds, torch.tensor([0.25, math.nan, 0.5]), equal_nan=True)
    images = torch.rand(1, 3, 33, 30)
    assert torch.equal(loaded.eval()(images), detector.eval()(images))
    changed = KeypointDetector.load_from_checkpoint(tmp_path / "a.ckpt", learning_rate=0.125)
    assert changed.hparams.learning_rate == 0.125


@pytest.mark.parametrize("epochs", [1, -1])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_frozen_encoder_keeps_its_weights_until_it_is_released(monkeypatch, epochs, processes):
    class Watch(pl.Callback):
        """Remembers the weights after each epoch, and which of the encoder had a gradient before it was dropped."""

        def __init__(self):
            self.encoder, self.head, self.had_gradient = [], [], []

        def on_after_backward(self, trainer, detector):
            self.had_gradient.append(next(detector.backbone.encoder_modules()[0].parameters()).grad is not None)

        def on_train_epoch_end(self, trainer, detector):
            self.encoder.append(encoder_weights(detector))
            self.head.append(detector.head.weight.detach().clone())

    def encoder_weights(detector):
        return torch.cat([p.detach().flatten() for m in detector.backbone.encoder_modules() for p in m.parameters()])

    monkeypatch.setattr(pl.Trainer, "world_size", property(lambda trainer: processes))
    detector = make_detector(freeze_encoder_epochs=epochs)
    start = encoder_weights(detector)
    watch = Watch()
    fit(detector, max_epochs=2, callbacks=[watch], gradient_clip_val=1.0)
    assert torch.equal(start, watch.encoder[0])
    assert torch.equal(start, watch.encoder[1]) is (epochs == -1)
    assert not torch.equal(watch.head[0], watch.head[1])
    # Alone, the gradients of the frozen part are not even computed.
    assert watch.had_gradient[0] is (processes == 2)


@pytest.mark.parametrize(
    ("schedule", "last"),
    [("one_cycle", 1e-7), ("cosine", 0.0), ("cosine_to_half", 5e-4), ("constant", 1e-3), ("plateau", 1e-3)],
)
def test_schedules_train(schedule, last):
    detector = make_detector(learning_rate_schedule=schedule, learning_rate_warmup=0.25, learning_rate=1e-3)
    trainer = fit(detector, max_epochs=2)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(last)


def test_plateau_reduces_by_a_relative_threshold():
    detector = make_detector(
        learning_rate_schedule="plateau",
        plateau_factor=0.5,
        plateau_patience=1,
        plateau_relative_threshold=0.1,
        learning_rate=1.0,
    )
    detector._trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    configured = detector.configure_optimizers()
    scheduler = configured["lr_scheduler"]["scheduler"]
    rates = []
    for loss in [10.0, 9.5, 9.2, 8.9, 8.5, 8.2]:  # below 9.0 counts; then not below 8.01
        scheduler.step(loss)
        rates.append(configured["optimizer"].param_groups[0]["lr"])
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25]
    assert configured["lr_scheduler"]["monitor"] == "validation/loss"


def test_a_plateau_goes_on_in_an_epoch_that_was_validated_before_its_checkpoint():
    stopped, goes_on = make_detector(), make_detector()
    losses, checkpoint = [], {}
    scheduler = SimpleNamespace(step=losses.append)
    stopped._validated = True
    stopped.on_save_checkpoint(checkpoint)
    goes_on.on_load_checkpoint(checkpoint)
    for loss in (0.3, 0.2):  # at the end of that epoch, and of one that is not validated
        goes_on.lr_scheduler_step(scheduler, loss)
    assert losses == [0.3]


@pytest.mark.parametrize(("step", "sanity_checking", "counts"), [(0, False, False), (5, True, False), (5, False, True)])
def test_a_plateau_counts_epochs_whose_training_was_validated(step, sanity_checking, counts):
    detector, losses = make_detector(), []
    detector._trainer = SimpleNamespace(global_step=step, sanity_checking=sanity_checking)
    detector.on_validation_end()
    detector.lr_scheduler_step(SimpleNamespace(step=losses.append), 0.3)
    assert losses == [0.3] * counts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keypoint_channels": []}, "keypoint_channels"),
        ({"keypoint_channels": ["a", "a"]}, "keypoint_channels"),
        ({"keypoint_channels": "nose"}, "keypoint_channels"),
        ({"loss": "vocal"}, "did you mean 'focal'"),
        ({"loss": "focal", "loss_arguments": {"alpha": 1}}, "focal_alpha"),
        ({"backbone_type": "unet"}, "did you mean 'Unet'"),
        ({"backbone": {"channels": 3}}, "n_channels"),
        ({"heatmap_sigma": 0.0}, "heatmap_sigma is 0.0"),
        ({"heatmap_stride": 3}, "heatmap_stride is 3"),
        ({"max_keypoints": 0}, "max_keypoints is 0"),
        ({"keypoint_channel_max_keypoints": [1, 2]}, "3 channels"),
        ({"keypoint_channel_max_keypoints": [1, 2, 0]}, "keypoint_channel_max_keypoints"),
        ({"minimal_keypoint_extraction_pixel_distance": -1.0}, "minimal_keypoint_extraction_pixel_distance"),
        ({"image_size": [256]}, "image_size"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"weight_decay": math.inf}, "weight_decay is inf"),
        ({"learning_rate_schedule": "cosin"}, "did you mean 'cosine'"),
        ({"learning_rate_warmup": 1.0}, "learning_rate_warmup is 1.0"),
        ({"plateau_factor": 1.0}, "plateau_factor is 1.0"),
        ({"plateau_patience": -1}, "plateau_patience is -1"),
        ({"plateau_relative_threshold": 1.0}, "plateau_relative_threshold"),
        ({"encoder_learning_rate_factor": -1.0}, "encoder_learning_rate_factor"),
        ({"encoder_learning_rate_factor": math.inf}, "encoder_learning_rate_factor"),
        ({"freeze_encoder_epochs": -2}, "freeze_encoder_epochs is -2"),
        ({"backbone_type": "DilatedCnn", "freeze_encoder_epochs": 1}, "has no encoder"),
        ({"backbone_type": "DilatedCnn", "encoder_learning_rate_factor": 0.1}, "has no encoder"),
        ({"backbone": {"n_channels": object()}}, "n_channels"),
    ],
)
def test_wrong_hyperparameters_are_named_in_one_line(arguments, message):
    with pytest.raises(InputError) as error:
        make_detector(**{"backbone": None, **arguments})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_loss_targets_render_what_the_batch_lacks():
    batch = make_batch()
    targets = loss_targets(batch, 2.0, 4)
    expected = heatmaps.render(batch.keypoints, (48, 40), 2.0, 4)
    assert torch.equal(targets.heatmaps, expected)
    assert targets.mask.all()
    assert targets.positives.sum() <= 12
