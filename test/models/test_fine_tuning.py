import pytest
import torch

from keypoint_detection.errors import InputError
from keypoint_detection.models.detector import KeypointDetector

SMALL = {"n_channels": 4, "n_channels_out": 0, "n_downsampling_layers": 2, "n_resnet_blocks": 1}


def make(channels, seed, **backbone):
    torch.manual_seed(seed)
    values = {"heatmap_sigma": 4.0, "heatmap_stride": 4, "learning_rate": 6e-3}
    return KeypointDetector(channels, backbone={**SMALL, **backbone}, **values)


def save(detector, path):
    torch.save({"state_dict": detector.state_dict(), "hyper_parameters": dict(detector.hparams)}, path)
    return path


def test_rows_of_channels_that_both_know_are_kept(tmp_path):
    trained = make(["nose", "tail", "paws"], 1)
    trained.score_thresholds.copy_(torch.tensor([0.1, 0.2, 0.3]))
    with torch.no_grad():
        trained.head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    own = make(["paws", "ears", "nose", "whiskers"], 2)
    fresh = own.head.weight.detach().clone(), own.head.bias.detach().clone()
    report = own.load_matching_weights(save(trained, tmp_path / "a.ckpt"))
    assert report.kept_channels == ["paws", "nose"]
    assert report.new_channels == ["ears", "whiskers"]
    assert report.missing == []
    assert report.unused == []
    for row, source in ((0, 2), (2, 0)):
        assert torch.equal(own.head.weight[row], trained.head.weight[source])
        assert own.head.bias[row] == trained.head.bias[source]
    for row in (1, 3):
        assert torch.equal(own.head.weight[row], fresh[0][row])
        assert torch.equal(own.head.bias[row], fresh[1][row])
    # A thing that follows from both: the heatmap of a known channel is the trained one.
    images = torch.rand(1, 3, 20, 24)
    torch.testing.assert_close(own.eval()(images)[:, 0], trained.eval()(images)[:, 2])
    assert own.score_thresholds.isnan().all()
    assert own.score_thresholds.shape == (4,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rows_of_another_precision_are_taken_over_in_ones_own(tmp_path, dtype):
    trained = make(["nose", "tail"], 1).to(dtype)
    own = make(["tail"], 2)
    own.load_matching_weights(save(trained, tmp_path / "a.ckpt"))
    assert own.head.weight.dtype == torch.float32
    assert torch.equal(own.head.weight[0], trained.head.weight[1].float())


def test_another_backbone_is_reported_and_starts_anew(tmp_path):
    trained = make(["nose"], 1, n_channels=8)
    own = make(["nose"], 2)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    report = own.load_matching_weights(save(trained, tmp_path / "a.ckpt"))
    assert "head.weight" in report.missing
    assert "head.weight" in report.unused
    assert torch.equal(own.head.bias, trained.head.bias)
    for name in report.missing:
        assert torch.equal(own.state_dict()[name], before[name])


def test_a_head_of_other_features_starts_anew_as_a_whole(tmp_path):
    trained = make(["nose", "tail"], 1, n_channels_out=16)
    with torch.no_grad():
        trained.head.bias.fill_(3.0)
    own = make(["nose", "ears"], 2, n_channels_out=8)
    before = own.head.bias.detach().clone()
    report = own.load_matching_weights(save(trained, tmp_path / "a.ckpt"))
    assert report.kept_channels == []
    assert report.new_channels == ["nose", "ears"]
    assert report.dropped_channels == ["nose", "tail"]
    assert {"head.weight", "head.bias"} <= set(report.missing) & set(report.unused)
    assert torch.equal(own.head.bias, before)


def test_a_head_without_a_common_channel_starts_anew(tmp_path):
    own = make(["ears"], 2)
    before = own.head.weight.detach().clone()
    report = own.load_matching_weights(save(make(["nose", "tail"], 1), tmp_path / "a.ckpt"))
    assert report.missing == report.unused == ["head.weight", "head.bias"]
    assert torch.equal(own.head.weight, before)


@pytest.mark.parametrize("content", [None, b"", b"nonsense", {"state_dict": {}}, [1]])
def test_what_is_no_checkpoint_is_an_input_error(tmp_path, content):
    path = tmp_path / "a.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=r"a\.ckpt") as error:
        make(["nose"], 1).load_matching_weights(path)
    assert "\n" not in str(error.value)
