"""What the page does when it is looked at, touched and typed to."""

import re

import pytest
from report_data import image_of, random_report
from report_pages import frame

from keypoint_detection.report import ReportData, worst_images


def test_heatmap_is_blended_over_the_image(open_report, tmp_path):
    page = open_report(random_report(seed=7, pictures=tmp_path, heatmaps=True))
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


def test_works_from_the_keyboard(open_report, tmp_path):
    data = random_report(seed=8, pictures=tmp_path, heatmaps=True)
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


def test_controls_and_pictures_have_names(open_report, tmp_path):
    page = open_report(random_report(seed=8, pictures=tmp_path))
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, a')].filter((e) =>
            !e.ariaLabel && !e.textContent.trim() && ![...(e.labels || [])].some((l) => l.textContent.trim())
        ).map((e) => e.outerHTML)"""
    )
    assert nameless == []
    assert page.locator(".chart svg:not([aria-label])").count() == 0
    assert page.locator("#picture").get_attribute("aria-labelledby") == "image-name"


@pytest.mark.parametrize("width", [375, 768])
def test_fits_a_phone(open_report, width, tmp_path):
    names = ("a channel with a rather long name", *(f"channel_{i}" for i in range(8)))
    page = open_report(random_report(seed=9, names=names, pictures=tmp_path, heatmaps=True), width=width, height=800)
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


def test_names_may_break_at_their_underscores_alone(open_report):
    names = ["left_hind_paw", "_nose_", "tail"]
    page = open_report(random_report(names=names))
    for shown in (page.locator("#table tbody th").filter(has_not_text="mean"), page.locator("#chips .channel")):
        assert shown.all_inner_texts() == names
        parts = shown.evaluate_all("(all) => all.map((e) => e.innerHTML.replace(/<(?!wbr).*?>/g, '').split('<wbr>'))")
        assert parts == [["left_", "hind_", "paw"], ["_", "nose_", ""], ["tail"]]


@pytest.mark.parametrize("name", ["left_hind_paw_" * 8, "lefthindpaw" * 10])
def test_a_long_name_is_shown_in_full(open_report, name, tmp_path):
    data = random_report(names=(name, "b"), pictures=tmp_path)
    data.curves = {f"validation/loss/{channel}": ([0, 1], [1.0, 0.1]) for channel in data.channel_names}
    page = open_report(data, width=400)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    for shown in ("#table th", "#curves .legend", "#chips", "#count-table th"):
        place = page.locator(shown).filter(has_text=name).first
        right_edges = place.evaluate(
            """(e) => {
                const text = document.createRange();
                text.selectNodeContents(e);
                return [...text.getClientRects()].map((box) => box.right).concat(e.getBoundingClientRect().right);
            }"""
        )
        assert max(right_edges) <= right_edges[-1] + 1 <= 400, shown


def test_a_name_is_on_the_line_of_its_counts(open_report):
    row = open_report(random_report()).locator("#count-table tbody tr").nth(1)
    tops = row.locator("th .name, td").evaluate_all(
        """(all) => all.map((e) => {
            const text = document.createRange();
            text.selectNodeContents(e);
            return text.getBoundingClientRect().top;
        })"""
    )
    assert tops == pytest.approx([tops[-1]] * len(tops), abs=0.5)


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


def test_f1_is_drawn_in_steps_with_the_dot_at_the_threshold(open_report):
    # Hits with scores 0.9 and 0.3, a false detection with 0.6, two truths: above 0.9 nothing counts.
    image = image_of([[(10, 10), (50, 50)]], [[(10, 10, 0.9), (90, 70, 0.6), (50, 50, 0.3)]])
    page = open_report(ReportData("t", ["c"], [2], [image], score_thresholds=[0.402]))
    path = page.locator("#f1 path.line").get_attribute("d")
    pixels = [tuple(map(float, point.split())) for point in re.split("[ML]", path)[1:]]
    right, bottom, left = *pixels[0], pixels[-1][0]
    top = min(float(line.get_attribute("y1")) for line in page.locator("#f1 line.grid").all())

    def value(x, y):
        return (x - left) / (right - left), (bottom - y) / (bottom - top)

    steps = [(1, 0), (0.9, 0), (0.9, 2 / 3), (0.6, 2 / 3), (0.6, 1 / 2), (0.402, 1 / 2), (0.3, 1 / 2), (0.3, 4 / 5)]
    drawn = [value(*point) for point in pixels]
    assert [value for point in drawn for value in point] == pytest.approx(
        [value for point in [*steps, (0, 4 / 5)] for value in point], abs=2e-3
    )
    dot = page.locator("#f1 circle.dot")
    assert value(*(float(dot.get_attribute(name)) for name in ("cx", "cy"))) == pytest.approx((0.402, 1 / 2), abs=2e-3)


def test_curves_of_a_very_long_training_are_drawn(open_report):
    epochs = [float(epoch) for epoch in range(200_000)]
    curves = {"validation/loss": (epochs, [0.5] * len(epochs))}
    data = ReportData("t", ["c"], [2], [image_of([[]], [[]])], curves=curves)
    assert open_report(data).locator("#curves path.line").count() == 1


def test_names_of_axes_are_shown_in_full(open_report):
    data = random_report()
    data.curves_unit = "of the image's diagonal"
    data.curves = {f"validation/AP/{name}/d=0.05": ([0, 1], [0.1, 0.5]) for name in data.channel_names}
    charts = open_report(data).locator(".chart svg")
    left_out = charts.evaluate_all(
        """(all) => all.flatMap((svg) => [...svg.querySelectorAll('.axis')].filter((text) => {
            const inner = text.getBoundingClientRect(), outer = svg.getBoundingClientRect();
            return inner.top < outer.top || inner.bottom > outer.bottom || inner.left < outer.left;
        }).map((text) => text.textContent))"""
    )
    assert left_out == []


def test_calibration_bars_are_the_shares_of_true_detections(open_report):
    # In the bin from 0.4, one of two is true and their mean score is 0.425; in that from 0.9, two of three, and 0.95.
    truths = [(10, 10), (50, 50), (90, 70)]
    detections = [(10, 10, 0.92), (50, 50, 0.98), (90, 70, 0.41), (10, 60, 0.95), (60, 10, 0.44)]
    page = open_report(ReportData("t", ["c"], [2], [image_of([truths], [detections])]))

    def places(selector, *names):
        return [[float(item.get_attribute(n)) for n in names] for item in page.locator(selector).all()]

    ((left, bottom, right, top),) = places("#calibration line.diagonal", "x1", "y1", "x2", "y2")
    bars = places("#calibration rect.bar", "x", "width", "height")
    expected = [(0.4, 0.1, 1 / 2), (0.9, 0.1, 2 / 3)]
    drawn = [((x - left) / (right - left), w / (right - left), h / (bottom - top)) for x, w, h in bars]
    assert [value for bar in drawn for value in bar] == pytest.approx([v for bar in expected for v in bar], abs=0.01)
    # (2 * |1/2 - 0.425| + 3 * |2/3 - 0.95|) / 5
    assert "Expected calibration error: 0.200" in page.locator("#calibration-note").inner_text()


def test_seven_distances_fit_the_table_and_more_scroll_inside_its_box(open_report):
    data = random_report(seed=3)
    for distances, wider in (((1, 2, 3, 4, 6, 8, 12), False), (range(1, 16), True)):
        data.threshold_distances = tuple(map(float, distances))
        page = open_report(data, width=1300)
        assert page.evaluate("document.documentElement.scrollWidth") == 1300
        box = page.locator("#table")
        assert box.evaluate("(box) => box.scrollWidth > box.clientWidth") == wider
        name = box.get_by_role("rowheader", name="tail")
        before = name.bounding_box()["x"]
        box.evaluate("(box) => { box.scrollLeft = 1000; }")
        assert name.bounding_box()["x"] == before


def test_theme_can_be_switched(open_report):
    page = open_report(random_report())
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate(paper) != light
