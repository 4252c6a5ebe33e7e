"""Pictures and curves: where things are drawn, in which colour, and how large the result is."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from keypoint_detection import heatmaps
from keypoint_detection.curves import group_series, plot_curves
from keypoint_detection.markers import draw_keypoints, to_picture
from keypoint_detection.picture_layout import (
    add_legend,
    add_title,
    channel_colours,
    image_grid,
    named_grid,
    paper_colours,
    resize,
)
from keypoint_detection.visualization import compose_heatmaps, heatmap_panel, keypoint_panel, overlay_heatmaps

SERIES = {
    "train/loss": ([0, 1, 2], [1.0, 0.5, 0.2]),
    "validation/gt_loss": ([0, 1, 2], [0.1, 0.1, 0.1]),
    "validation/loss/nose": ([0, 1, 2], [1.0, float("nan"), 0.3]),
    "validation/AP/nose/d=2": ([2], [0.4]),
    "validation/meanAP": ([1, 2], [0.1, 0.4]),
    "validation/median_distance": ([1, 2], [4.0, 2.0]),
    "learning_rate": ([0, 1], [1e-3, 1e-4]),
}


@pytest.mark.parametrize("count", [0, 1, 7, 8, 32, 50])
def test_colours_are_distinct(count):
    colours = channel_colours(count)
    assert colours.shape == (count, 3)
    assert len({tuple(colour) for colour in colours.tolist()}) == count
    # Channels next to one another, such as left and right of a part, look unlike.
    assert np.abs(np.diff(colours.astype(int), axis=0)).sum(axis=1).min(initial=765) > 110


@pytest.mark.parametrize("count", [1, 7, 8, 32, 50])
def test_colours_on_paper_are_dark_enough_distinct_and_of_the_same_hue(count):
    bright, dark = (colours(count).astype(float) for colours in (channel_colours, paper_colours))
    assert len({tuple(colour) for colour in dark.tolist()}) == count
    gray = np.asarray(Image.fromarray(dark[None].astype(np.uint8)).convert("L"))
    assert gray.max() <= 0.6 * 255
    proportions = [colours / colours.max(axis=1, keepdims=True) for colours in (bright, dark)]
    assert proportions[0] == pytest.approx(proportions[1], abs=0.01)
    enough = bright @ (0.299, 0.587, 0.114) <= 150
    assert np.array_equal(dark[enough], bright[enough])


def test_float_images_become_bytes():
    image = torch.tensor([[[0.0, 1.0]], [[0.5, 2.0]], [[-1.0, 0.2]]])
    assert to_picture(image).tolist() == [[[0, 128, 0], [255, 255, 51]]]


def test_a_zero_heatmap_shows_the_darkened_gray_image():
    images = torch.tensor([0.2, 0.5, 0.8]).view(1, 3, 1, 1).expand(1, 3, 4, 5)  # half as bright as white
    for picture in (overlay_heatmaps(images, torch.zeros(1, 4, 5)), compose_heatmaps(images, torch.zeros(1, 2, 4, 5))):
        assert (picture == round(255 * 0.8 * 0.5)).all()


@settings(max_examples=25)
@given(st.integers(12, 40), st.integers(12, 40), st.sampled_from([1, 2, 4]), st.floats(0, 1), st.floats(0, 1))
def test_overlay_is_brightest_at_the_keypoint_at_every_stride(height, width, stride, u, v):
    # Keep away from the border, where half of the blob lies outside and the cells' centres are clamped.
    x, y = 4 + u * (width - 8), 4 + v * (height - 8)
    heatmap = heatmaps.render(torch.tensor([[x, y]]), (height, width), 3.0, stride)
    picture = overlay_heatmaps(torch.zeros(1, 3, height, width), heatmap[None])[0].astype(float).sum(axis=2)
    weights = np.where(picture > 0.6 * picture.max(), picture, 0)
    rows, columns = np.indices(picture.shape)
    centre = [(weights * (2 * index + 1)).sum() / weights.sum() / 2 for index in (columns, rows)]
    assert centre == pytest.approx([x, y], abs=0.75 + 0.4 * stride)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "stride", "cell"), [(5, 9, 4, 1), (9, 9, 4, 1), (3, 5, 2, 1), (33, 41, 4, 9), (41, 33, 2, 15)]
)
def test_cells_are_shown_where_they_lie_where_their_stride_does_not_divide(height, width, stride, cell, turned):
    images, maps = torch.zeros(1, 3, height, width), torch.zeros(1, -(-height // stride), -(-width // stride))
    maps[..., cell] = 1
    if turned:
        images, maps = images.mT, maps.mT
    picture = overlay_heatmaps(images, maps)[0].sum(axis=2, dtype=int)
    brightest = np.argwhere(picture == picture.max())[:, 0 if turned else 1]
    assert (2 * brightest + 1).mean() / 2 == stride * (cell + 0.5)


def test_each_channel_has_its_colour_in_the_composite():
    maps = torch.zeros(1, 2, 6, 6)
    maps[0, 0, 1, 1] = maps[0, 1, 4, 4] = 1.0
    picture = compose_heatmaps(torch.zeros(1, 3, 6, 6), maps)[0]
    for place, colour in ((1, 0), (4, 1)):
        assert picture[place, place] == pytest.approx(0.9 * channel_colours(2)[colour], abs=1)


def test_keypoints_are_drawn_where_they_are_and_nan_is_skipped():
    image = torch.zeros(3, 50, 100)
    nan = [float("nan")] * 2
    colours = channel_colours(2)
    picture = draw_keypoints(image, {"a": np.array([[30.0, 20.0], nan])}, {"a": np.zeros((0, 2)), "b": np.array([nan])})
    drawn = np.argwhere((np.abs(picture.astype(int) - colours[0]) < 90).all(axis=2))
    assert len(drawn) > 0
    assert (2 * drawn + 1).mean(axis=0) / 2 == pytest.approx([20, 30], abs=0.5)
    ring = draw_keypoints(image, true={"a": np.zeros((0, 2)), "b": np.array([[60.0, 25.0], nan])}, width=200)
    assert ring.shape == (100, 200, 3)
    drawn = np.argwhere((np.abs(ring.astype(int) - colours[1]) < 90).all(axis=2))
    assert (2 * drawn + 1).mean(axis=0) / 2 == pytest.approx([50, 120], abs=0.5)
    assert (ring[49:51, 119:121] == 0).all()  # the ring is hollow


def test_a_cross_grows_with_its_score():
    def size(score):
        picture = draw_keypoints(torch.zeros(3, 60, 60), {"a": np.array([[30.0, 30.0]])}, scores={"a": [score]})
        return (picture.sum(axis=2) > 0).sum()

    assert size(0.1) < size(0.5) < size(1.0)


@pytest.mark.parametrize("kind", ["predicted", "true"])
def test_markers_in_large_pictures_keep_their_looks(kind):
    # Scaled down to the same size, as a viewer does, a picture shows as much of them.
    def share(width):
        keypoints = {"a": np.array([[width / 2, width / 4]])}
        picture = draw_keypoints(torch.zeros(3, width // 2, width), **{kind: keypoints})
        return (np.abs(picture.astype(int) - channel_colours(1)[0]) < 90).all(axis=2).mean()

    assert share(3600) == pytest.approx(share(1800), rel=0.2)


def radii(picture, colour, centre):
    """Distances from a centre of the pixels of about a colour, the least and the greatest."""
    rows, columns = np.nonzero((np.abs(picture.astype(int) - colour) < 60).all(axis=2))
    away = np.hypot(columns + 0.5 - centre[0], rows + 0.5 - centre[1])
    return away.min(), away.max()


def test_rings_of_several_channels_at_one_place_lie_about_one_another():
    place = np.array([[30.0, 30.0]])
    true = {"a": place, "b": place + 0.4, "c": place, "d": np.array([[80.0, 30.0]])}
    picture = draw_keypoints(torch.zeros(3, 60, 120), true=true)
    colours = channel_colours(4)
    inner, middle, outer = (radii(picture, colour, (30, 30)) for colour in colours[:3])
    assert inner[1] < middle[0] < middle[1] < outer[0]
    # A ring elsewhere is as small as the first one.
    assert radii(picture, colours[3], (80, 30)) == pytest.approx(inner, abs=0.2)


@pytest.mark.parametrize("kind", ["true", "predicted"])
def test_many_channels_have_numbers_in_the_picture_and_in_the_legend(kind):
    def white(picture):
        return (picture.min(axis=2) > 200).sum()

    def draw(channels, width=300):
        nowhere = np.zeros((0, 2))
        keypoints = {f"c{i}": nowhere for i in range(channels - 1)} | {"last": np.array([[50.0, 50.0]])}
        return draw_keypoints(torch.zeros(3, 100, 100), **{kind: keypoints}, width=width)

    assert white(draw(10)) == 0
    assert white(draw(11)) > 0
    assert white(draw(11, width=200)) == 0  # too small for them
    blank = np.zeros((4, 300, 3), np.uint8)
    few, many = (add_legend(blank, dict.fromkeys("abcdefghijkl"[:n], ""), "") for n in (10, 11))
    assert white(many) > 1.3 * white(few)  # without numbers it would be a letter more


@pytest.mark.parametrize("kind", ["true", "predicted"])
def test_the_number_beside_a_mark_is_that_of_its_channel_in_the_legend(kind, monkeypatch):
    written, write = [], ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda draw, place, text, **how: written.append(text) or write(draw, place, text, **how),
    )
    names = [f"c{i}" for i in range(12)]
    keypoints = dict.fromkeys(names, np.zeros((0, 2))) | {"c4": np.array([[150.0, 50.0]])}
    picture = draw_keypoints(torch.zeros(3, 100, 300), **{kind: keypoints})
    (number,) = written
    add_legend(picture, dict.fromkeys(names, ""), "")
    assert f"{number} c4" in written
    rows, columns = np.nonzero(picture.min(axis=2) > 200)
    assert np.hypot(columns.mean() - 150, rows.mean() - 50) > 300 / 70  # the radius of a ring


@pytest.mark.parametrize("place", [(99.9, 50), (50, 0.1), (99.9, 0.1)])
def test_a_number_at_the_border_is_inside_the_picture(place):
    def ink(x, y):
        keypoints = {f"{number}": [(x, y)] if number == 19 else [] for number in range(20)}
        picture = draw_keypoints(np.zeros((100, 100, 3), np.uint8), true=keypoints, width=400)
        return (picture.min(axis=-1) > 60).sum()  # nearer to white than a channel's colour

    assert ink(*place) >= 0.9 * ink(50, 50)


def test_the_legend_of_a_narrow_picture_names_the_channels_only():
    narrow, wide = (np.zeros((8, width, 3), dtype=np.uint8) for width in (192, 300))
    entries = {"nose": "", "left_paw": ""}
    explained, other = ([add_legend(picture, entries, marks) for picture in (narrow, wide)] for marks in ("a", "b"))
    assert np.array_equal(explained[0], other[0])
    assert not np.array_equal(explained[1], other[1])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_a_name_with_the_end_of_a_line_is_written_on_one(end):
    picture = np.zeros((40, 300, 3), dtype=np.uint8)
    space = len(end) * " "
    written, plain = (
        np.concatenate([add_legend(picture, {name: ""}, "ring"), image_grid([[picture]], [name])[:64, :300]])
        for name in (f"left{end}eye", f"left{space}eye")
    )
    assert np.array_equal(written, plain)


def test_what_marks_mean_goes_on_in_the_next_line_at_a_comma():
    picture = np.zeros((8, 300, 3), dtype=np.uint8)
    heights = [
        len(add_legend(picture, {}, marks)) for marks in ("cross: predicted", ", ".join(["cross: predicted"] * 6))
    ]
    assert heights[1] > heights[0]


def test_a_panel_shows_detections_from_the_threshold_of_their_channel_and_says_so(monkeypatch):
    legends = []
    monkeypatch.setattr(
        "keypoint_detection.visualization.add_legend", lambda grid, *texts: legends.append(texts) or grid
    )
    nothing = torch.full((1, 2, 2, 2), float("nan"))
    xy = nothing.clone()
    xy[0, :, 0] = torch.tensor([[10.0, 10.0], [40.0, 40.0]])
    scores = torch.tensor([[[0.25, 0.0], [0.25, 0.0]]])

    def draw(keypoints, thresholds):
        return keypoint_panel(torch.zeros(1, 3, 50, 50), keypoints, scores, nothing, ["a", "b"], thresholds, [""])

    only_a = draw(torch.where(torch.tensor([True, False])[None, :, None, None], xy, nothing), [0.0, 0.0])
    assert np.array_equal(draw(xy, [0.25, 0.26]), only_a)
    assert not np.array_equal(draw(xy, [0.25, 0.25]), only_a)
    assert np.array_equal(draw(xy, [0.26, 0.26]), draw(nothing, [0.0, 0.0]))
    entries, marks = legends[1]
    assert entries == {"a": "≥ 0.25, max 0.25", "b": "≥ 0.26, max 0.25"}
    assert "larger cross: higher score" in marks


def test_grid_places_pictures_in_rows_and_columns():
    red, green, blue = (
        np.full((10, 20, 3), colour, dtype=np.uint8) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    )
    grid = image_grid([[red, green], [blue]])
    assert grid.shape == (4 + 10 + 4 + 10 + 4, 4 + 20 + 4 + 20 + 4, 3)
    assert grid[8, 10].tolist() == [255, 0, 0]
    assert grid[8, 36].tolist() == [0, 255, 0]
    assert grid[21, 10].tolist() == [0, 0, 255]
    captioned = image_grid([[red, green]], ["a", "a name that is far too long for its column"])
    assert captioned.shape[1] == 4 + 20 + 4 + 20 + 4


def test_a_name_stands_above_each_picture():
    """Names change only the strip above their own picture, however long they are and however narrow it is."""
    pictures = [np.full((height, 60, 3), 100, dtype=np.uint8) for height in (50, 40, 30)]
    plain, named = (named_grid(pictures, ["", "", last], columns=2) for last in ("", "a/very/long/name/of/a.png"))
    assert plain.shape == named.shape
    assert plain.shape[1] == 4 + 60 + 4 + 60 + 4
    rows, columns = np.nonzero((plain != named).any(axis=2))
    assert columns.min() >= 4
    assert columns.max() < 64
    top = plain.shape[0] - 4 - 30  # of the third picture
    assert (named[top : top + 30, 4:64] == 100).all()
    assert top - 20 < rows.min() <= rows.max() < top


def test_keypoints_are_shown_under_the_names_of_their_images():
    images, nothing = torch.zeros(5, 3, 32, 32), torch.full((5, 1, 1, 2), float("nan"))

    def panel(*names):
        return keypoint_panel(images, nothing, torch.zeros(5, 1, 1), nothing, ["a"], [0.5], names).astype(int)

    empty = [""] * 5
    changed = np.abs(panel("", "", "", "b.png", "c.png") - panel(*empty)).sum(axis=2)
    width = changed.shape[1]
    rows, columns = np.nonzero(changed)
    first, second = columns[rows < 300], columns[rows > 300]  # four side by side, then one
    assert first.min() > 3 * width / 4
    assert second.max() < width / 4


def test_resize_repeats_pixels_of_whole_multiples():
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert (resize(picture, 6) == picture.repeat(3, axis=0).repeat(3, axis=1)).all()


def test_legend_goes_below_the_picture_in_the_channels_colours():
    picture = np.zeros((30, 300, 3), dtype=np.uint8)
    names = [f"channel_{i}" for i in range(12)]
    legend = add_legend(picture, dict.fromkeys(names, "0.50"), "ring: true")
    assert legend.shape[1] == 300
    assert (legend[:30] == 0).all()
    for colour in channel_colours(12):
        assert (legend[30:] == colour).all(axis=2).any()


@settings(max_examples=60)
@given(
    height=st.integers(1, 700), image_width=st.integers(1, 700), stride=st.sampled_from([1, 2, 4]),
    width=st.integers(1, 400),
)  # fmt: skip
def test_heatmaps_fit_pictures_of_any_width(height, image_width, stride, width):
    images = torch.zeros(1, 3, height, image_width)
    maps = torch.rand(1, 2, -(-height // stride), -(-image_width // stride))
    expected = (max(1, round(height * width / image_width)), width, 3)
    for pictures in (overlay_heatmaps(images, maps[0], width=width), compose_heatmaps(images, maps, width)):
        assert pictures.shape[1:] == expected


@pytest.mark.parametrize("width", [100, 200, 500, 1000])
def test_a_peak_stays_at_its_place_and_visible_in_a_smaller_picture(width):
    for x, y in ((100.5, 200.5), (333.2, 71.9)):
        maps = heatmaps.render(torch.tensor([[[x, y]]]), (400, 500), 1.5)
        picture = overlay_heatmaps(torch.zeros(1, 3, 400, 500), maps, width=width)[0].sum(axis=2, dtype=int)
        row, column = np.unravel_index(picture.argmax(), picture.shape)
        scale = width / 500
        assert abs(column + 0.5 - x * scale) <= 1 + scale
        assert abs(row + 0.5 - y * scale) <= 1 + scale
        assert (
            picture.max() > 0.65 * overlay_heatmaps(torch.zeros(1, 3, 400, 500), maps)[0].sum(axis=2, dtype=int).max()
        )


@pytest.mark.parametrize(("channels", "stride", "batch"), [(1, 1, 1), (2, 4, 3), (32, 2, 2)])
def test_panels_hold_every_image_and_channel(channels, stride, batch):
    names = [f"c{i}" for i in range(channels)]
    keypoints = torch.rand(batch, channels, 2, 2) * 40
    keypoints[:, :, 1] = float("nan")
    images = torch.rand(batch, 3, 41, 47)
    true = heatmaps.render(keypoints, (41, 47), 3.0, stride)
    panel = heatmap_panel(images, torch.zeros_like(true), true, names)
    assert panel.dtype == np.uint8
    assert panel.shape[1] <= 2300
    blocks = -(-(channels + 1) // 11)
    columns = -(-(channels + 1) // blocks)
    cell = min(2200 // columns, 288) // 47 * 47
    across = min(batch, 2200 // (columns * cell)) if blocks == 1 else 1
    across = -(-batch // -(-batch // across))
    assert panel.shape[1] == across * columns * (cell + 4) + 4
    assert panel.shape[0] > blocks * 2 * -(-batch // across) * cell * 41 / 47
    # Rows of the heatmaps that are predicted to be empty are gray; the true ones are not.
    first_row = panel[60 : 60 + cell // 2, cell + 12 : 2 * cell]
    assert (first_row.max(axis=2) == first_row.min(axis=2)).all()
    scores = torch.rand(batch, channels, 2)
    lowest = [0.5] * channels
    files = [f"{i}.png" for i in range(batch)]
    assert keypoint_panel(images, keypoints, scores, keypoints, names, lowest, files).dtype == np.uint8
    nothing = torch.full((batch, channels, 1, 2), float("nan"))
    assert keypoint_panel(images, nothing, torch.zeros(batch, channels, 1), nothing, names, lowest, files).shape[2] == 3


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("size", [(4000, 20), (4000, 1), (20, 4000), (1, 4000), (1, 1)])
def test_pictures_of_very_tall_and_very_wide_images_stay_pictures(size, batch, tmp_path):
    images = torch.rand(batch, 3, *size)
    keypoints = torch.rand(batch, 2, 3, 2) * torch.tensor([size[1], size[0]])
    true = heatmaps.render(keypoints, size, 3.0, 4)
    panels = [
        heatmap_panel(images, true, true, ["a", "b"]),
        keypoint_panel(images, keypoints, torch.rand(batch, 2, 3), keypoints, ["a", "b"], [0.5, 0.5], [""] * batch),
    ]
    for panel in panels:
        assert max(panel.shape) < 20_000
        Image.fromarray(panel).save(tmp_path / "panel.jpg")  # which is at most 65500 pixels high


def test_a_very_tall_image_stands_in_the_middle_of_its_picture_no_more_than_three_times_as_high():
    image = np.full((4000, 20, 3), 255, dtype=np.uint8)
    picture = draw_keypoints(image, true={"a": np.array([[10.0, 1000.0]])}, width=400)
    assert picture.shape == (1200, 400, 3)  # 1200 pixels in place of 4000 are 6 in place of 20
    assert (picture[::1100, 197:203] == 255).all()
    assert (picture[:, :196] < 30).all()
    assert (picture[:, 204:] < 30).all()
    rows = np.flatnonzero((picture[:, 197:203] != 255).any(axis=(1, 2)))
    assert (rows[0] + rows[-1] + 1) / 2 == pytest.approx(300, abs=0.5)
    assert draw_keypoints(image).shape == (4000, 20, 3)  # as large as it is


def test_images_of_few_channels_stand_side_by_side_each_with_its_own_heatmaps():
    images, true = torch.zeros(3, 3, 32, 32), torch.zeros(3, 1, 32, 32)
    true[torch.arange(3), 0, 16, 4 + 8 * torch.arange(3)] = 1  # from image to image further to the right
    panel = heatmap_panel(images, torch.zeros_like(true), true, ["a"]).astype(int)
    assert panel.shape[1] > 2 * panel.shape[0]
    cell = 288 + 4
    bright = [panel[-cell:, (2 * i + 1) * cell : (2 * i + 2) * cell].max(axis=(0, 2)).argmax() for i in range(3)]
    assert bright == pytest.approx([4 + 9 * (4.5 + 8 * i) for i in range(3)], abs=9)


def test_a_title_stands_in_the_upper_left_corner_of_the_heatmaps_that_it_names(monkeypatch):
    picture = np.zeros((100, 200, 3), dtype=np.uint8)
    rows, columns = np.nonzero(add_title(picture, "true").any(axis=2))
    assert len(rows) > 50
    assert rows.max() < 30
    assert columns.max() < 100
    titled = {}
    monkeypatch.setattr(
        "keypoint_detection.visualization.add_title", lambda picture, text: titled.setdefault(text, picture)
    )
    heatmap_panel(torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 32, 32), torch.ones(1, 1, 32, 32), ["a"])
    assert {text: picture.any() for text, picture in titled.items()} == {"predicted": False, "true": True}


def test_panels_do_not_change_their_inputs():
    images, maps = torch.rand(1, 3, 16, 16), torch.rand(1, 1, 16, 16)
    copies = images.clone(), maps.clone()
    heatmap_panel(images, maps, maps, ["a"])
    assert torch.equal(images, copies[0])
    assert torch.equal(maps, copies[1])


def test_series_share_a_plot_by_what_they_mean():
    assert group_series(SERIES) == {
        "loss": ["train/loss", "validation/gt_loss", "validation/loss/nose"],
        "average precision": ["validation/AP/nose/d=2", "validation/meanAP"],
        "median distance of matched keypoints": ["validation/median_distance"],
        "learning rate": ["learning_rate"],
    }


def test_a_channel_has_one_colour_and_legends_cover_no_curve(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("keypoint_detection.curves.FigureCanvasAgg.print_png", lambda canvas, _: figures.append(canvas))
    names = [f"{stage}/loss/{channel}" for channel in "ab" for stage in ("train", "validation")]
    names += [f"validation/AP/{channel}/d={distance}" for channel in "ab" for distance in (2, 10)]
    plot_curves(dict.fromkeys(names, ([0, 1], [1.0, 0.1])), tmp_path / "curves.png", channel_names=["b", "a"])
    (canvas,) = figures
    canvas.draw()
    losses, precisions = canvas.figure.axes
    lines = dict(zip(names, [*losses.lines, *precisions.lines], strict=True))
    expected = dict(zip("ba", paper_colours(2) / 255, strict=True))
    for name, line in lines.items():
        assert line.get_color() == pytest.approx(expected[name.split("/")[2]])
    dashes = {name: line.get_linestyle() for name, line in lines.items()}
    assert dashes["train/loss/a"] == dashes["train/loss/b"] != dashes["validation/loss/a"]
    assert dashes["validation/AP/a/d=2"] == dashes["validation/AP/b/d=2"] != dashes["validation/AP/a/d=10"]
    legends = [losses.get_legend(), precisions.get_legend(), *canvas.figure.legends]
    assert [text.get_text() for text in legends[1].texts] == ["d=2", "d=10"]
    assert [text.get_text() for text in legends[2].texts] == ["all channels", "b", "a"]
    for legend in legends:
        assert not any(legend.get_window_extent().overlaps(axes.bbox) for axes in (losses, precisions))


def test_the_legend_has_names_of_channels_as_they_are_written(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("keypoint_detection.curves.FigureCanvasAgg.print_png", lambda canvas, _: figures.append(canvas))
    names = ["$a$", "ab", "$\\none$", "no formula", "  "]
    series = {f"validation/loss/{name}": ([0, 1], [1.0, 0.1]) for name in names}
    plot_curves(series, tmp_path / "curves.png", channel_names=names)
    figures[0].draw()
    widths = [text.get_window_extent().width for text in figures[0].figure.legends[0].texts[1:]]
    assert widths[0] > widths[1] > widths[4]  # as a formula `$a$` is one letter, which is narrower than `ab`
    assert widths[1] < widths[2] < widths[3]


def test_a_name_in_letters_that_the_font_lacks_is_drawn_without_a_warning(tmp_path):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        plot_curves({"validation/loss/左前足": ([0, 1], [1.0, 0.1])}, tmp_path / "curves.png", channel_names=["左前足"])
    assert not [warning for warning in warned if "Glyph" in str(warning.message)]
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_a_channel_that_is_called_like_a_distance_or_nothing_is_no_total(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("keypoint_detection.curves.FigureCanvasAgg.print_png", lambda canvas, _: figures.append(canvas))
    channels = ["d=2", "a/d=4", "", "mean"]
    names = [f"validation/loss/{channel}" for channel in channels]
    plot_curves(dict.fromkeys(names, ([0, 1], [1.0, 0.1])), tmp_path / "curves.png", channel_names=channels)
    (figure,) = (canvas.figure for canvas in figures)
    assert [line.get_color() for line in figure.axes[0].lines] == [tuple(c) for c in (paper_colours(4) / 255).tolist()]
    assert figure.axes[0].get_title() == "loss, validation"
    assert [text.get_text() for text in figure.legends[0].texts] == ["all channels", *channels]


def test_distances_say_their_unit(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("keypoint_detection.curves.FigureCanvasAgg.print_png", lambda canvas, _: figures.append(canvas))
    for unit in ((), ("diagonals of the image",)):
        plot_curves(SERIES, tmp_path / "curves.png", "epoch", ["nose"], *unit)
    titles = {axes.get_title(): axes.get_ylabel() for axes in figures[0].figure.axes}
    assert titles.pop("median distance of matched keypoints, validation") == "pixels"
    assert set(titles.values()) == {""}
    assert "diagonals of the image" in [axes.get_ylabel() for axes in figures[1].figure.axes]


def test_what_all_lines_of_a_plot_mean_is_in_its_title_and_the_rest_in_a_legend(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("keypoint_detection.curves.FigureCanvasAgg.print_png", lambda canvas, _: figures.append(canvas))
    for left_out in ("none", "gt_loss", "train"):
        series = {name: curve for name, curve in SERIES.items() if left_out not in name}
        plot_curves(series, tmp_path / "curves.png")
    seen = []
    for canvas in figures:
        losses = canvas.figure.axes[0]
        seen.append((losses.get_title(), sorted(text.get_text() for text in losses.get_legend().texts)))
    assert seen == [
        ("loss", ["train", "validation", "validation, lowest possible BCE"]),
        ("loss", ["train", "validation"]),
        ("loss", ["validation", "validation, lowest possible BCE"]),
    ]
    plot_curves({"train/loss": ([0, 1], [1.0, 0.5])}, tmp_path / "curves.png")
    (axes,) = figures[-1].figure.axes
    assert (axes.get_title(), axes.get_legend()) == ("loss, train", None)


@pytest.mark.parametrize("series", [SERIES, {}, {"train/loss": ([0], [float("nan")])}])
def test_curves_are_written(tmp_path, series):
    many = {f"validation/AP/channel{i}/d=2": ([0, 1], [0, i / 40]) for i in range(40)} if series else {}
    plot_curves({**series, **many}, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert min(image.size) > 300
        # Only with curves there is something coloured to see.
        assert (np.ptp(np.asarray(image.convert("RGB")).astype(int), axis=2).max() > 60) == bool(many)


def test_channels_at_one_place_are_mixed_by_the_squares_of_their_heights():
    heatmaps = torch.tensor([0.9, 0.3]).view(1, 2, 1, 1)
    (picture,) = compose_heatmaps(torch.zeros(1, 3, 1, 1), heatmaps)
    first, second = channel_colours(2).astype(float)
    expected = 0.9 * math.sqrt(0.9) * (0.81 * first + 0.09 * second) / 0.9
    assert picture[0, 0].tolist() == pytest.approx(expected.tolist(), abs=0.51)


@pytest.mark.parametrize("width", [40, 100, 257, 500, 1000, 1001])
@pytest.mark.parametrize("channels", [1, 3, 12])
def test_a_legend_keeps_the_height_of_a_video_even(width, channels):
    picture = np.zeros((6, width, 3), np.uint8)
    entries = {f"channel {number}": "" for number in range(channels)}
    assert add_legend(picture, entries, "cross: predicted, ring: true").shape[0] % 2 == 0
