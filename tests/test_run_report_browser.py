"""The report in a real browser without a network: what a reader sees at two widths, two themes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import run_cases as cases

from matchwright.engine.records import to_frame
from matchwright.engine.runs.report.make import report_of
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE, NARROW = 1_280, 390
FONT_MIN = 10.0

pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium in /usr/bin"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="needs playwright"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a run with all, few and no matches."""
    folder = tmp_path_factory.mktemp("browser")
    with Store.open(cases.make_store(folder / "store", 300, 120)) as store:
        snapshot = store.snapshot()
        run, _ = cases.do(snapshot, folder / "runs", k=3, block=40, contributions=True, count=True)
        (folder / "report.html").write_bytes(report_of(run, snapshot, Ops(threads=1)))
    return folder / "report.html"


@pytest.fixture(scope="module")
def long_names(tmp_path_factory):
    """A report in which nothing is short: ids, titles and skills without blanks, and CJK."""
    folder = tmp_path_factory.mktemp("long")
    names = ["w" * 120, "求" * 40, "كلمة" * 20, "<b>&amp;" * 9, "m i" * 30]
    jobs = [
        {"id": f"{n}{name[:40]}", "title": name, "skills": [{"name": name, "must": False}],
         "status": "OPEN", "rate_max_cents": 10 ** (n + 2)}
        for n, name in enumerate(names * 6)
        if n < 6
    ]  # fmt: skip
    jobs += [{**jobs[0], "id": f"again {n}"} for n in range(8)]
    people = [
        {"id": f"{n}{name[:40]}", "title": name, "skills": [{"name": name}], "status": "AVAILABLE",
         "rate_cents": 10 ** (n % 5 + 2)}
        for n, name in enumerate(names)
    ]  # fmt: skip
    with Store.open(folder / "store", mode="w", create=True) as store:
        store.upsert("job", to_frame("job", jobs))
        store.upsert("freelancer", to_frame("freelancer", people))
        snapshot = store.snapshot()
        run, _ = cases.do(snapshot, folder / "runs", k=2)
        (folder / "report.html").write_bytes(report_of(run, snapshot, Ops(threads=1)))
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium with a profile of its own, without a network."""
    from playwright.sync_api import sync_playwright

    profile = tmp_path_factory.mktemp("profile")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=FLAGS, offline=True
        )
        context.set_offline(True)
        yield context
        context.close()


@pytest.fixture
def opened(browser):
    """``opened(path, width, scheme)``: a page that must stay without a word on the console."""
    pages, said = [], []

    def open_page(path, width=WIDE, scheme="light"):
        page = browser.new_page()
        pages.append(page)
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("requestfailed", lambda request: said.append(f"failed: {request.url}"))
        page.on(
            "request",
            lambda request: (
                said.append(f"asked for {request.url}")
                if not request.url.startswith(("file:", "data:"))
                else None
            ),
        )
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.goto(path.as_uri())
        return page

    yield open_page
    for page in pages:
        page.close()
    assert said == []


LAYOUT = """() => {
  const wrong = [];
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) wrong.push("the page scrolls sideways");
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  const say = (element, what) => {
    const text = element.textContent.slice(0, 60);
    wrong.push(`${element.tagName} ${element.getAttribute("class")} ${what}: ${text}`);
  };
  const scrolls = (element) => element.closest("nav, .skip") !== null;
  for (const element of document.body.querySelectorAll("*")) {
    const box = element.getBoundingClientRect();
    if (!box.width || !box.height || scrolls(element)) continue;
    if (box.left < -0.5 || box.right > width + 0.5) say(element, `spans ${box.left}..${box.right}`);
  }
  let texts = 0;
  for (const text of document.querySelectorAll("svg[role=img] text")) {
    const box = text.getBoundingClientRect();
    if (!box.width) continue;
    texts += 1;
    const chart = text.ownerSVGElement, frame = chart.getBoundingClientRect();
    const scale = frame.width / chart.viewBox.baseVal.width;
    const size = parseFloat(getComputedStyle(text).fontSize) * scale;
    if (size < FONT_MIN) say(text, `is ${size} pixels high`);
    const out = 1.5;
    const across = box.left >= frame.left - out && box.right <= frame.right + out;
    const down = box.top >= frame.top - out && box.bottom <= frame.bottom + out;
    if (!across || !down) say(text, "leaves its chart");
  }
  return { wrong, texts };
}""".replace("FONT_MIN", str(FONT_MIN))


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (WIDE, "light"),
        (WIDE, "dark"),
        (800, "light"),
        (NARROW, "light"),
        (NARROW, "dark"),
        (320, "light"),
    ],
)
def test_every_figure_is_readable(opened, report, width, scheme):
    page = opened(report, width, scheme)
    found = page.evaluate(LAYOUT)
    assert found["wrong"] == []
    assert found["texts"] > 100


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_screenshots_show_something(opened, report, tmp_path, width, scheme):
    page = opened(report, width, scheme)
    for section in ("glance", "found", "exposure"):
        shot = tmp_path / f"{section}-{width}-{scheme}.png"
        page.locator(f"#{section}").screenshot(path=shot)
        assert shot.stat().st_size > 10_000


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_long_names_stay_inside(opened, long_names, width):
    found = opened(long_names, width).evaluate(LAYOUT)
    assert found["wrong"] == []
    assert found["texts"] > 50


OVERLAP = """() => {
  const wrong = [];
  for (const chart of document.querySelectorAll("svg[role=img]")) {
    const texts = [...chart.querySelectorAll("text")]
      .map((text) => [text, text.getBoundingClientRect()]).filter(([, box]) => box.width);
    texts.forEach(([text, a], n) => texts.slice(n + 1).forEach(([other, b]) => {
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 1 && down > 3) wrong.push(`${text.textContent} | ${other.textContent}`);
    }));
  }
  return wrong;
}"""


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_no_text_of_a_chart_covers_another(opened, report, long_names, width):
    assert opened(report, width).evaluate(OVERLAP) == []
    assert opened(long_names, width).evaluate(OVERLAP) == []


def shown(page):
    return page.locator("details.query:visible").count()


def test_the_search_finds_and_tells_how_many(opened, report):
    page = opened(report)
    total = shown(page)
    assert total > 50
    assert page.locator("#count").inner_text() == f"{total} shown"
    first = page.locator("details.query").first
    name = first.get_attribute("data-way")
    ident = first.locator("summary small bdi").inner_text()
    page.fill("#words", ident.upper())
    found = shown(page)
    assert 1 <= found < total
    assert page.locator("#count").inner_text() == f"{found} shown"
    assert first.is_visible()
    page.fill("#words", f"{ident} no-such-word")
    assert shown(page) == 0
    assert page.locator("#nothing").is_visible()
    page.fill("#words", "")
    assert shown(page) == total
    page.select_option("#way", name)
    ways = page.locator("details.query:visible").evaluate_all("all => all.map(q => q.dataset.way)")
    assert set(ways) == {name}
    page.select_option("#way", "")
    page.select_option("#outcome", "none")
    none = page.locator("details.query:visible").evaluate_all(
        "all => all.map(q => q.dataset.outcome)"
    )
    assert none
    assert set(none) == {"none"}


def test_the_keyboard_reaches_everything(opened, report):
    page = opened(report)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "theme"
    page.focus("#words")
    page.keyboard.type("a")
    page.locator("details.query:visible > summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details.query[open]").count() == 1


def test_the_theme_changes_at_a_press(opened, report):
    page = opened(report)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("#theme")
    dark = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) == light != dark
    assert opened(report, scheme="dark").evaluate(ground) == dark


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [x, y, z] = [r, g, b].map((v) => linear(v / 255));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = rgb(getComputedStyle(at).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255];
  };
  const wrong = new Set();
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const box = element.getBoundingClientRect();
    if (!own || !box.width || ["TITLE", "SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const ink = rgb(element.ownerSVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(element))].sort((m, n) => n - m);
    const ratio = (a + 0.05) / (b + 0.05);
    const name = `${element.tagName}.${element.getAttribute("class")}`;
    if (ratio < 4.5) wrong.add(`${name} ${ratio.toFixed(2)}`);
  }
  return [...wrong];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(opened, report, scheme):
    assert opened(report, scheme=scheme).evaluate(CONTRAST) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_prints_on_white_without_the_controls(opened, report, scheme):
    page = opened(report, scheme=scheme)
    page.emulate_media(media="print", color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)"
    assert not page.locator("#search").is_visible()
    assert not page.locator("nav").is_visible()
    assert page.locator("#scores h2").is_visible()
