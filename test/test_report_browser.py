"""The report in a real browser, headless: Chromium of the system, or the one that playwright installed."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import sync_playwright
from report_data import random_report

from keypoint_detection.metrics import match
from keypoint_detection.metrics.errors import BACKGROUND, DUPLICATE, IMPRECISE, TRUE, WRONG_CHANNEL, classify_detections
from keypoint_detection.report import ReportData, worst_images, write_report
from keypoint_detection.report.measured import measure
from keypoint_detection.report.statistics import image_errors

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


@pytest.fixture(scope="module")
def browser():
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0] if found else None, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_report(browser, tmp_path):
    """Opens a report; after the test, asserts that the page had no error and asked for nothing but itself."""
    pages, errors, requests = [], [], []

    def open_page(data, width=1200, height=900):
        path = tmp_path / f"report{len(pages)}.html"
        write_report(data, path)
        page = browser.new_page(viewport={"width": width, "height": height})
        pages.append(page)
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_timeout(100)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert errors == []
    own = [url for url in requests if not url.startswith("data:image/")]
    assert own == [(tmp_path / f"report{i}.html").as_uri() for i in range(len(pages))]


def frame(page):
    """Waits until what was changed has been drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def set_slider(page, name, value):
    page.locator(f"#{name}-number").fill(str(value))
    frame(page)


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


@settings(max_examples=15, deadline=None)
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


def test_marks_follow_sliders_and_channels(open_report):
    data = random_report(seed=4, pictures=True)
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


def test_heatmap_is_blended_over_the_image(open_report):
    page = open_report(random_report(seed=7, pictures=True, heatmaps=True))
    layer = page.locator("#heat-layer")
    assert layer.get_attribute("href") is None
    page.get_by_label("Heatmap", exact=True).check()
    page.wait_for_function("document.querySelector('#heat-layer').getAttribute('href')")
    all_channels = layer.get_attribute("href")
    assert all_channels.startswith("data:image/png")
    assert [layer.get_attribute(name) for name in ("x", "y", "width", "height")] == ["0", "0", "60", "40"]
    page.locator("#opacity").fill("0.25")
    frame(page)
    assert layer.get_attribute("opacity") == "0.25"
    page.locator("#count-table").get_by_label("paws").uncheck()
    page.wait_for_function(
        "old => ![null, old].includes(document.querySelector('#heat-layer').getAttribute('href'))", arg=all_channels
    )


def test_works_from_the_keyboard(open_report):
    data = random_report(seed=8, pictures=True, heatmaps=True)
    page = open_report(data)
    order = [data.images[i].name for i in worst_images(data)]
    name = page.locator("#image-name")
    page.locator("#stage").focus()
    for key, place in [
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", 5),
        ("ArrowRight", 5),
        ("Home", 0),
    ]:
        page.keyboard.press(key)
        assert name.inner_text() == f"{order[place]} ({place + 1} of 6)"
    page.locator("#stage").focus()
    page.keyboard.press("h")
    assert page.locator("#heat").is_checked()
    page.keyboard.press("+")
    frame(page)
    assert page.locator("#picture").get_attribute("viewBox").split()[2:] == ["40", str(40 / 1.5)]
    # In a slider, an arrow moves the slider and not the gallery.
    page.locator("#score").focus()
    before = float(page.locator("#score").input_value())
    page.keyboard.press("ArrowRight")
    assert float(page.locator("#score").input_value()) > before
    assert name.inner_text() == f"{order[0]} (1 of 6)"
    assert not page.locator("#own").is_checked()
    # A channel's box keeps the focus when the table is drawn again.
    page.locator("#count-table").get_by_label("nose").focus()
    page.keyboard.press("Space")
    frame(page)
    assert page.evaluate("document.activeElement.dataset.channel") == "0"
    assert not page.locator("#count-table").get_by_label("nose").is_checked()


def test_tab_reaches_everything_and_focus_can_be_seen(open_report):
    page = open_report(random_report(seed=8, heatmaps=True))
    reached, previous = [], None
    for _ in range(80):
        page.keyboard.press("Tab")
        here = page.evaluate(
            """() => {
                const e = document.activeElement;
                const style = getComputedStyle(e.type === 'radio' ? e.nextElementSibling : e);
                const name = e.id || e.textContent || e.name || e.dataset.channel;
                return e === document.body ? null : [name, style.outlineStyle, style.outlineWidth];
            }"""
        )
        if here is None or here == previous:
            break
        previous = here
        reached.append(here[0])
        assert here[1:] == ["solid", "3px"], here
    for control in (
        "previous",
        "next",
        "stage",
        "score",
        "own",
        "distance",
        "heat",
        "opacity",
        "marks",
        "colours",
        "order",
        "sort",
    ):
        assert control in reached


def test_controls_and_pictures_have_names(open_report):
    page = open_report(random_report(seed=8, pictures=True))
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, a')].filter((e) =>
            !e.ariaLabel && !e.textContent.trim() && ![...(e.labels || [])].some((l) => l.textContent.trim())
        ).map((e) => e.outerHTML)"""
    )
    assert nameless == []
    assert page.locator(".chart svg:not([aria-label])").count() == 0
    assert page.locator("#picture").get_attribute("aria-labelledby") == "image-name"


@pytest.mark.parametrize("width", [375, 768])
def test_fits_a_phone(open_report, width):
    names = ("a channel with a rather long name", *(f"channel_{i}" for i in range(8)))
    page = open_report(random_report(seed=9, names=names, pictures=True, heatmaps=True), width=width, height=800)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    outside = page.evaluate(
        """() => [...document.querySelectorAll('input[type=range], .chart svg, #picture, h1, button')].filter((e) => {
            const box = e.getBoundingClientRect();
            return !e.closest('#strip, .scroll') && (box.left < 0 || box.right > innerWidth);
        }).map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    assert page.locator("#picture").bounding_box()["width"] > 0.75 * min(width, 576 * 1.5)


def test_names_stay_text(open_report):
    evil = "</script><script>window.broken = 1</script><img src=x onerror='window.broken=1'>"
    data = random_report(names=(evil, "b"))
    data.title = evil
    data.run_info = {evil: evil}
    data.images[0].name = evil
    page = open_report(data)
    assert page.evaluate("window.broken") is None
    assert page.locator("h1").inner_text() == evil
    assert evil in page.locator("#chips").inner_text()
    assert page.locator("img[src=x]").count() == 0


def test_nothing_to_show_is_no_error(open_report):
    page = open_report(ReportData("empty", ["a", "b"], [2], []))
    assert page.locator("#gallery-note").inner_text() == "There are no images to show."
    assert page.locator(".viewer").is_hidden()
    assert page.locator("#training").is_hidden()
    assert "nothing to show" in page.locator("#precision-recall").text_content()


def test_charts_follow_distance_and_channels(open_report):
    data = random_report(seed=10, images=20)
    page = open_report(data)
    lines = page.locator("#precision-recall path.line")
    assert lines.count() == 3
    before = lines.first.get_attribute("d")
    page.locator("#distances").get_by_text("2 px").click()
    assert lines.first.get_attribute("d") != before
    page.locator("#chips").get_by_label("tail").uncheck()
    assert lines.count() == 2
    page.locator("#precision-recall svg").hover()
    assert "recall" in page.locator("#precision-recall .tip").inner_text()
    rows = page.locator("#taxonomy tbody tr")
    assert [text.split("\n")[0] for text in rows.locator("th").all_inner_texts()] == [
        *("miss", "duplicate", "imprecise", "wrong channel", "background")
    ]


def test_theme_can_be_switched(open_report):
    page = open_report(random_report())
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate(paper) != light
