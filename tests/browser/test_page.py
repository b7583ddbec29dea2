"""The page of a run in a browser: what a person sees and does with it."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from support.browser import OPTIONS, chromium
from support.run_folders import EVERY, make_run
from support.waiting import LIMIT, until

from dcgan_dist.__main__ import main

pytestmark = pytest.mark.browser

PHONE = {"width": 360, "height": 740}
PATIENCE = 1000 * LIMIT  # milliseconds


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        pytest.skip("there is no Chromium, and only root can install it")
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=OPTIONS, timeout=PATIENCE) as browser,
    ):
        yield browser


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("run") / "faces")
    assert main(["report", str(folder.root)]) == 0
    return folder.page


@pytest.fixture
def opened(browser, page_file):
    """Opens the page; at the end, nothing may have been said on the console and nothing asked of any server."""
    said: list[str] = []
    asked: list[str] = []

    def opened(file=page_file, **options) -> Page:
        view = browser.new_context(**options).new_page()
        view.set_default_timeout(PATIENCE)
        view.on("console", lambda message: said.append(message.text))
        view.on("pageerror", lambda error: said.append(str(error)))
        view.on("request", lambda request: asked.append(request.url))
        view.goto(file.as_uri())
        view.wait_for_selector("html[data-ready]", state="attached")
        return view

    yield opened
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert sum(url.startswith("file:") for url in asked) == 1


def label(view: Page) -> str:
    return view.inner_text("#grid-label")


def test_every_chart_is_drawn_and_described(opened):
    view = opened()
    view.click("section#more-curves summary")
    view.wait_for_selector("#more-curves .js-plotly-plot")
    charts = view.query_selector_all(".chart")
    assert len(charts) > 6
    for chart in charts:
        assert chart.query_selector("svg .trace, svg .bars .point, svg .scatterlayer .trace"), chart.get_attribute("id")
        assert len(chart.get_attribute("aria-label") or "") > 20
    titles = view.eval_on_selector_all("h3", "all => all.map(one => one.textContent)")
    assert titles[:3] == ["D(x) and D(G(z))", "Losses", "Gradients"]
    probabilities = "document.querySelector('.chart').layout.shapes"
    assert view.evaluate(f"{probabilities}.filter(one => one.y0 === 0.5 && one.y1 === 0.5).length") == 1
    assert view.evaluate(f"{probabilities}.filter(one => one.yref === 'paper').map(one => one.x0)") == [1000, 500]
    assert all(image.get_attribute("alt") for image in view.query_selector_all("img"))
    assert view.eval_on_selector_all("img", "all => all.every(one => one.naturalWidth === 38)")


def test_the_slider_moves_by_keys_anywhere_and_plays(opened):
    view = opened()
    assert label(view) == "2,000 images (grid 4 of 4)"
    last = view.get_attribute("#grid-0", "src")
    view.keyboard.press("ArrowLeft")
    assert label(view) == "1,500 images (grid 3 of 4)"
    assert view.get_attribute("#grid-0", "src") != last
    assert view.get_attribute("#grid-0", "alt") == "Generated images of faces after 1,500 real images"
    view.focus("#slider")
    view.keyboard.press("Home")
    assert label(view) == "500 images (grid 1 of 4)"
    view.keyboard.press("ArrowRight")
    assert label(view) == "1,000 images (grid 2 of 4)"
    view.focus("#play")
    view.keyboard.press("Enter")
    expect(view.locator("#grid-label")).to_contain_text("4 of 4", timeout=PATIENCE)
    expect(view.locator("#play")).to_have_text("Play", timeout=PATIENCE)
    assert view.get_attribute("#grid-0", "src") == last


def test_hover_and_zoom_in_all_charts(opened):
    view = opened()
    view.locator("#chart-0").scroll_into_view_if_needed()
    box = view.locator("#chart-0 .nsewdrag").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    view.mouse.move(x, y)
    view.wait_for_selector("#chart-0 .hoverlayer .legend")
    buttons = view.eval_on_selector_all("#chart-0 .modebar-btn", "all => all.map(one => one.dataset.title)")
    assert buttons == ["Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes", "Download plot as a PNG"]  # and no server
    assert "D(G(z))" in view.text_content("#chart-0 .hoverlayer")
    view.mouse.down()
    view.mouse.move(x + box["width"] / 4, y, steps=5)
    view.mouse.up()
    until(lambda: view.evaluate("document.getElementById('chart-2').layout.xaxis.range[0]") > 800)
    ranges = view.evaluate("[0, 1, 2].map(n => document.getElementById(`chart-${n}`).layout.xaxis.range)")
    assert ranges[0] == ranges[1] == ranges[2]


def test_the_axis_may_be_hours(opened):
    view = opened()
    view.check("input[value=hours]")
    until(lambda: view.evaluate("document.getElementById('chart-0').layout.xaxis.title.text") == "hours of training")
    ends = view.evaluate("document.getElementById('chart-0').data[0].x.at(-1)")
    assert ends == pytest.approx(20 / 36, rel=1e-4)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system(opened, scheme):
    view = opened(color_scheme=scheme)
    bright = [
        sum(map(int, re.findall(r"\d+", view.evaluate(f"getComputedStyle({what})"))[:3])) > 380
        for what in ("document.body).backgroundColor + (''", "document.querySelector('.xtick text')).fill + (''")
    ]
    assert bright == ([True, False] if scheme == "light" else [False, True])


def test_a_phone_shows_all_without_scrolling_sideways(opened):
    view = opened(viewport=PHONE, has_touch=True, is_mobile=True)
    assert view.evaluate("document.documentElement.scrollWidth") <= 360
    assert view.evaluate("document.getElementById('chart-0').layout.dragmode") is False
    assert view.locator("#chart-0 svg").first.bounding_box()["width"] <= 360


def test_two_runs_beside_each_other(opened, page_file, tmp_path, capsys):
    other = make_run(tmp_path / "other", reports=12, grids=3, seed=7)
    assert main(["report", str(page_file.parent), str(other.root), "--out", str(tmp_path / "both.html")]) == 0
    view = opened(tmp_path / "both.html")
    assert view.evaluate("document.getElementById('chart-0').data.slice(0, 4).map(one => one.name)") == [
        "faces: D(x)", "faces: D(G(z))", "other: D(x)", "other: D(G(z))",
    ]  # fmt: skip
    assert label(view) == "2,000 images (grid 7 of 7)"
    captions = view.eval_on_selector_all("figcaption", "all => all.map(one => one.textContent)")
    assert captions[0] == "faces: generated, at 2,000 images"
    assert captions[2] == f"other: generated, at {12 * EVERY:,} images"
    options = view.inner_text("section#options table")
    assert "seed\t0\t7" in options
    assert "batch_size" not in options


def test_names_are_text(opened, tmp_path):
    """Whoever can write into a run's folder cannot have a browser do anything."""
    evil = "<img src=x onerror=alert(1)></script><script>alert(1)</script>"
    folder = make_run(tmp_path / "a<b>&'\"")
    with folder.metrics.open("a") as file:
        file.write(f'{{"images": 9999, "{evil}": 1.5, "loss/d": "NaN"}}\n')
    folder.config.write_text(f"images: 5\nwandb:\n  group: {evil}\n")
    assert main(["report", str(folder.root)]) == 0
    view = opened(folder.page)
    assert view.inner_text("h1") == "a<b>&'\""
    assert view.evaluate("document.querySelectorAll('img').length") == 2
    assert evil in view.inner_text("section#options table")
