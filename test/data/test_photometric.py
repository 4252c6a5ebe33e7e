import colorsys

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from keypoint_detection.data import photometric


@pytest.fixture
def image():
    # Away from 0 and 1, so that nothing is clipped.
    return 0.3 + 0.4 * torch.rand(3, 32, 40, generator=torch.Generator().manual_seed(0))


def test_brightness_and_saturation_are_those_of_torchvision(image):
    result = photometric.adjust_colour(image, 1.2, 1, 1, 0)
    torch.testing.assert_close(result, functional.adjust_brightness(image, 1.2), atol=1e-5, rtol=0)
    result = photometric.adjust_colour(image, 1, 1, 0.7, 0)
    torch.testing.assert_close(result, functional.adjust_saturation(image, 0.7), atol=1e-3, rtol=0)


def test_contrast_keeps_the_mean_luma():
    image = torch.full((3, 8, 8), 0.4)
    image[:, ::2] = 0.6  # every fourth row is 0.6, so the mean of the sampled rows is known
    result = photometric.adjust_colour(image.clone(), 1, 0.5, 1, 0)
    torch.testing.assert_close(result[:, ::2], torch.full((3, 4, 8), 0.6))
    torch.testing.assert_close(result[:, 1::2], torch.full((3, 4, 8), 0.5))


def test_contrast_does_nothing_to_one_colour_however_bright():
    grey = torch.full((3, 8, 8), 0.4)
    torch.testing.assert_close(photometric.adjust_colour(grey, 1.5, 0.5, 0.7, 0), torch.full((3, 8, 8), 0.6))


def test_contrast_goes_towards_the_luma_of_the_image():
    reddish = torch.tensor([0.8, 0.4, 0.2])[:, None, None].expand(3, 8, 8)
    luma = 0.299 * 0.8 + 0.587 * 0.4 + 0.114 * 0.2
    expected = torch.tensor([(value + luma) / 2 for value in (0.8, 0.4, 0.2)])[:, None, None].expand(3, 8, 8)
    torch.testing.assert_close(photometric.adjust_colour(reddish, 1, 0.5, 1, 0), expected, atol=1e-6, rtol=0)


def test_no_saturation_is_grayscale(image):
    result = photometric.adjust_colour(image, 1, 1, 0, 0)
    luma = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    torch.testing.assert_close(result, luma.expand(3, -1, -1), atol=1e-5, rtol=0)


def test_what_has_lost_its_colour_has_none_for_the_hue_to_turn(image):
    result = photometric.adjust_colour(image, 1, 1, 0, 0.3)
    torch.testing.assert_close(result, photometric.adjust_colour(image, 1, 1, 0, 0), atol=1e-5, rtol=0)


def test_hue_keeps_grey_and_luma_and_turns_the_colour():
    grey = torch.full((3, 4, 4), 0.5)
    torch.testing.assert_close(photometric.adjust_colour(grey, 1, 1, 1, 0.3), grey, atol=1e-5, rtol=0)
    reddish = torch.tensor([0.6, 0.4, 0.4])[:, None, None].expand(3, 4, 4).contiguous()
    turned = photometric.adjust_colour(reddish, 1, 1, 1, 1 / 3)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    torch.testing.assert_close((weights * turned).sum(0), (weights * reddish).sum(0), atol=1e-5, rtol=0)
    hue = colorsys.rgb_to_hsv(*turned[:, 0, 0].tolist())[0]
    assert 0.25 < min(hue, 1 - hue) < 0.42, "a third of the circle away from red"


def test_values_stay_in_range():
    image = torch.rand(3, 30, 30)
    random = np.random.default_rng(0)
    for result in (
        photometric.adjust_colour(image, 1.9, 1.9, 2, 0.5),
        photometric.add_noise(image, 0.5, random),
        photometric.compress(image, 20),
        photometric.blur(image, 2.0),
        photometric.erase(image, random),
    ):
        assert result.shape == image.shape
        assert result.dtype == torch.float32
        assert result.min() >= 0
        assert result.max() <= 1 + 1e-6


def test_noise_has_the_deviation_that_is_asked_for():
    result = photometric.add_noise(torch.full((3, 100, 100), 0.5), 0.05, np.random.default_rng(0))
    assert float(result.std()) == pytest.approx(0.05, rel=0.03)
    assert float(result.mean()) == pytest.approx(0.5, abs=0.002)


def test_blur_of_a_point_is_a_gaussian():
    image = torch.zeros(3, 21, 21)
    image[:, 10, 10] = 1
    row = photometric.blur(image, 1.5)[0, 10]
    assert float(row[11] / row[10]) == pytest.approx(np.exp(-1 / (2 * 1.5**2)), rel=1e-3)
    assert photometric.blur(torch.rand(3, 2, 1), 2.0).shape == (3, 2, 1)


def test_good_jpeg_is_close_and_bad_jpeg_is_not():
    smooth = torch.linspace(0.2, 0.8, 32).expand(3, 32, 32).contiguous()
    assert (photometric.compress(smooth, 95) - smooth).abs().max() < 0.03
    rough = torch.rand(3, 32, 32)
    assert (photometric.compress(rough, 10) - rough).abs().max() > 0.2


@pytest.mark.parametrize("seed", range(20))
def test_erasing_covers_one_rectangle_of_2_to_15_percent(seed):
    image = torch.full((3, 60, 80), 2.0)
    covered = (photometric.erase(image, np.random.default_rng(seed)) != 2)[0]
    rows, columns = covered.any(1).nonzero(), covered.any(0).nonzero()
    area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert int(covered.sum()) == int(area)
    assert 0.015 < int(area) / (60 * 80) < 0.16


def test_erasing_covers_flat_and_upright_rectangles_up_to_all_borders():
    random = np.random.default_rng(0)
    shapes, reached = [], set()
    for _ in range(500):
        covered = (photometric.erase(torch.full((3, 20, 20), 2.0), random) != 2)[0]
        rows, columns = covered.any(1).nonzero().flatten().tolist(), covered.any(0).nonzero().flatten().tolist()
        shapes.append(len(rows) / len(columns))
        reached |= {("row", rows[0]), ("row", rows[-1]), ("column", columns[0]), ("column", columns[-1])}
    assert min(shapes) < 1 / 3  # of at least 1 / 4, as each side changes by up to 2, but for rounding
    assert max(shapes) > 3
    assert reached >= {("row", 0), ("row", 19), ("column", 0), ("column", 19)}
    assert (photometric.erase(torch.full((3, 1, 1), 2.0), random) != 2).all()


def test_bits_do_not_depend_on_the_number_of_threads():
    image = torch.rand(3, 400, 500, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    results = []
    for number in (1, 2):
        torch.set_num_threads(number)
        random = np.random.default_rng(0)
        changed = photometric.blur(photometric.adjust_colour(image.clone(), 1.1, 0.8, 1.3, 0.1), 1.3)
        results.append(photometric.compress(photometric.erase(photometric.add_noise(changed, 0.1, random), random), 50))
    torch.set_num_threads(threads)
    assert torch.equal(*results)
