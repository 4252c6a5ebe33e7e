"""The report in a real browser, headless: Chromium of the system, or else the one that playwright installed."""

import shutil

import pytest
from playwright.sync_api import sync_playwright

from keypoint_detection.report import write_report

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


@pytest.fixture(scope="session")
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
