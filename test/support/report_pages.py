"""What tests of the report do in a browser."""


def frame(page):
    """Waits until what was changed has been drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def set_slider(page, name, value):
    page.locator(f"#{name}-number").fill(str(value))
    frame(page)
