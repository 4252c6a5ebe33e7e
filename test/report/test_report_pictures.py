import base64
import io

import numpy as np
import pytest
from PIL import Image
from report_data import image_of, payload_of

from keypoint_detection.errors import InputError
from keypoint_detection.report import ReportData, build_report
from keypoint_detection.report.pictures import encode_preview, heatmap_payload


def test_pictures_are_read_from_files_and_missing_ones_are_named(tmp_path):
    pixels = np.zeros((300, 900, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    image = image_of([[]], [[]], path=tmp_path / "wide.png", width=900, height=300)
    payload = payload_of(build_report(ReportData("t", ["c"], [2], [image])))
    assert payload["images"][0]["source"].startswith("data:image/jpeg;base64,")
    image.path = tmp_path / "gone.png"
    with pytest.raises(InputError, match=r"gone\.png"):
        build_report(ReportData("t", ["c"], [2], [image]))


def test_previews_keep_their_shape_and_fit_their_budget():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (600, 1200, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_preview(noise))) as preview:
        assert preview.size == (640, 320)
    small = encode_preview(noise, max_bytes=40_000)
    assert len(small) <= 40_000
    with Image.open(io.BytesIO(small)) as preview:
        assert preview.width == 2 * preview.height
    with Image.open(io.BytesIO(encode_preview(noise[:40, :60]))) as preview:
        assert preview.size == (60, 40)


def test_many_images_stay_around_the_limit(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    images = [image_of([[]], [[]], name=str(i), path=tmp_path / "noise.png", width=640, height=480) for i in range(20)]
    page = build_report(ReportData("t", ["c"], [2], images, max_bytes=1_000_000))
    assert len(payload_of(page)["images"]) == 20
    assert len(page) < 1_150_000


def test_heatmaps_are_stacked_and_their_extent_holds_after_reduction():
    heatmaps = np.zeros((2, 30, 401), np.float32)
    heatmaps[0, 29, 400] = 1.0
    heatmaps[1, 0, 0] = 0.5
    payload = heatmap_payload(heatmaps, (0.0, 0.0, 802.0, 60.0))
    # Blocks of 3 x 3 cells: 134 columns (402 cells) and 10 rows.
    assert payload["extent"] == pytest.approx([0, 0, 804, 60])
    tall = heatmap_payload(heatmaps.transpose(0, 2, 1), (0.0, 0.0, 60.0, 802.0))
    assert tall["extent"] == pytest.approx([0, 0, 60, 804])
    with Image.open(io.BytesIO(base64.b64decode(payload["source"].split(",")[1]))) as picture:
        gray = np.asarray(picture)
    assert gray.shape == (20, 134)
    assert gray[9, 133] == 255
    assert gray[10, 0] == 128
    assert (gray > 0).sum() == 2
