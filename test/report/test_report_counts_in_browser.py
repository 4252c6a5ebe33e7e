"""What the page counts, against what Python counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matching import match
from report_data import random_report
from report_pages import frame, set_slider

from keypoint_detection.metrics.error_kinds import (
    BACKGROUND,
    DUPLICATE,
    IMPRECISE,
    TRUE,
    WRONG_CHANNEL,
    classify_detections,
)
from keypoint_detection.report import worst_images, write_report
from keypoint_detection.report.measured import measure
from keypoint_detection.report.statistics import image_errors


def count_table(page):
    """Channel -> (true positives, false positives, false negatives) as the page shows them."""
    rows = page.locator("#count-table tbody tr").all()
    cells = [[cell.strip() for cell in row.locator("th, td").all_inner_texts()] for row in rows]
    return {row[0]: tuple(int(value) for value in row[1:4]) for row in cells}


def python_counts(data, images, distance, threshold):
    """The same counts from the matching that the metrics use."""
    points = measure(data).points
    shown = points.labelled[..., None] & (points.scores >= threshold) & ~points.xy.isnan().any(-1)
    scores = points.scores.masked_fill(~shown, -torch.inf)
    xy = points.xy.masked_fill(~shown[..., None], torch.nan)
    hits = ~match(xy, scores, points.truths, torch.tensor([distance], dtype=torch.float64))[..., 0].isnan()
    true = (~points.truths.isnan().any(-1) & points.labelled[..., None]).sum(-1)
    counts = torch.stack([hits.sum(-1), shown.sum(-1) - hits.sum(-1), true - hits.sum(-1)], -1)[images].sum(0)
    return {name: tuple(row) for name, row in zip(data.channel_names, counts.tolist(), strict=True)}


def test_counts_are_those_of_the_metric(open_report):
    data = random_report(seed=1, images=12)
    page = open_report(data)
    first = [worst_images(data)[0]]
    everything = list(range(12))
    for distance, threshold in [(4, 0.5), (2, 0.3), (0.5, 0), (7.9, 0.9), (3.3, 0.1)]:
        set_slider(page, "score", threshold)
        set_slider(page, "distance", distance)
        for scope, images in (("this image", first), ("all 12 images", everything)):
            page.locator("#scope").get_by_text(scope).click()
            frame(page)
            expected = python_counts(data, images, distance, threshold)
            shown = count_table(page)
            total = tuple(sum(values) for values in zip(*expected.values(), strict=True))
            assert shown == {"channels shown": total, **expected}


def test_counts_with_a_threshold_per_channel(open_report):
    data = random_report(seed=2, images=8)
    page = open_report(data)
    thresholds = torch.tensor(measure(data).thresholds, dtype=torch.float64)[:, None]
    page.locator("#scope").get_by_text("all 8 images").click()
    frame(page)
    shown = count_table(page)
    shown.pop("channels shown")
    assert shown == python_counts(data, list(range(8)), 4.0, thresholds)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([0.7, 1.5, 3.0]), st.integers(0, 9))
def test_every_detection_gets_the_same_name_as_in_python(classifier, seed, distance, tenths):
    data = random_report(seed=seed, images=4)
    points, threshold = measure(data).points, tenths / 10
    below = (points.scores < threshold)[..., None]
    expected = classify_detections(
        points.xy.masked_fill(below, torch.nan), points.scores, points.truths, points.labelled, distance
    )
    for i in range(4):
        kinds, missed = classifier(data, i, distance, threshold)
        for c in range(3):
            order = points.scores[i, c].masked_fill(expected.kinds[i, c] < 0, -1).argsort(descending=True, stable=True)
            ranked = expected.kinds[i, c][order]
            assert kinds[c] == ranked[ranked >= 0].tolist()
            assert missed[c] == int(expected.missed[i, c].sum())


@pytest.fixture(scope="module")
def classifier(browser, tmp_path_factory):
    """Runs the page's own `classify` on an image of any report's data."""
    path = tmp_path_factory.mktemp("classifier") / "report.html"
    write_report(random_report(images=1), path)
    page = browser.new_page()
    page.goto(path.as_uri())
    names = "[TRUE, DUPLICATE, IMPRECISE, WRONG_CHANNEL, BACKGROUND]"
    assert page.evaluate(names) == [TRUE, DUPLICATE, IMPRECISE, WRONG_CHANNEL, BACKGROUND]

    def classify(data, index, distance, threshold):
        image = data.images[index]
        channels = range(len(data.channel_names))
        rows = [
            sorted(zip(*image.xy[c].T.tolist(), image.scores[c].tolist(), strict=True), key=lambda r: -r[2])
            for c in channels
        ]
        flags = [bool(flag) for flag in image.labelled]
        return page.evaluate(
            """([truths, detections, distance, threshold]) => {
                const channels = classify({ truths, detections }, distance, truths.map(() => threshold));
                return [channels.map((c) => c === null ? [] : c.detections.map((d) => d.kind)),
                        countChannels(channels).map((c) => c.missed)];
            }""",
            [
                [image.truths[c].tolist() if flags[c] else None for c in channels],
                [rows[c] if flags[c] else None for c in channels],
                distance,
                threshold,
            ],
        )

    yield classify
    page.close()


def test_marks_follow_sliders_and_channels(open_report, tmp_path):
    data = random_report(seed=4, pictures=tmp_path)
    page = open_report(data)
    image = [worst_images(data)[0]]
    for distance, threshold in [(4, 0.2), (1, 0.2), (4, 0.8)]:
        set_slider(page, "score", threshold)
        set_slider(page, "distance", distance)
        found, false, missed = (
            sum(values) for values in zip(*python_counts(data, image, distance, threshold).values(), strict=True)
        )
        assert page.locator("#picture [data-outcome=found]").count() == 2 * found  # the true keypoint and its detection
        assert page.locator("#picture [data-outcome=wrong]").count() == false
        assert page.locator("#picture [data-outcome=missed]").count() == missed
        assert page.locator("#counts").inner_text().startswith(f"{found} found, {missed} missed, {false} false")
    page.locator("#count-table").get_by_label("paws").uncheck()
    frame(page)
    assert page.locator("#picture [data-channel='1']").count() == 0
    assert not page.locator("#chips").get_by_label("paws").is_checked()
    counts = python_counts(data, image, 4, 0.8)
    assert count_table(page)["channels shown"] == tuple(
        a + b for a, b in zip(counts["nose"], counts["tail"], strict=True)
    )
    page.locator("#gallery").get_by_role("button", name="Hide all").click()
    frame(page)
    assert page.locator("#picture [data-outcome]").count() == 0


def test_outcomes_differ_in_shape(open_report):
    page = open_report(random_report(seed=4))
    paths = page.evaluate(
        "['circle', 'diamond', 'cross'].map((shape) => outline(shape, [0, 0], 5).replace(/[\\d.-]+/g, ''))"
    )
    assert len(set(paths)) == 3


def test_sorted_worst_first_and_again_at_new_thresholds(open_report):
    data = random_report(seed=6, images=9)
    page = open_report(data)

    def names():
        return [
            text.split(",")[0]
            for text in page.locator("#strip button").evaluate_all("all => all.map((b) => b.ariaLabel)")
        ]

    assert names() == [data.images[i].name for i in worst_images(data)]
    set_slider(page, "score", 0.9)
    set_slider(page, "distance", 2)
    page.get_by_role("button", name="Sort again").click()
    measured = measure(data)
    errors = image_errors(measured.points, measured.matches, 0, 2.0, [0.9] * 3).tolist()
    by_name = {image.name: error for image, error in zip(data.images, errors, strict=True)}
    assert [by_name[name] for name in names()] == sorted(errors, reverse=True)
    # Within no distance at all, none is found that is not exact: all others are errors.
    set_slider(page, "distance", 0)
    page.get_by_role("button", name="Sort again").click()
    counts = [python_counts(data, [i], 0.0, 0.9) for i in range(9)]
    wrong = {image.name: sum(fp + fn for _, fp, fn in c.values()) for image, c in zip(data.images, counts, strict=True)}
    assert [wrong[name] for name in names()] == sorted(wrong.values(), reverse=True)
