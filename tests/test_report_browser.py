"""The report in headless Chromium: slider, blinking, zoom and keys, on wide and narrow screens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from converter.presentation.report.make_report import make_report
from tests.browser import Tab, needs_browser, running_browser
from tests.published import published_summary
from tests.reports import write_measurements
from tests.test_card_browser import hostile_text, write_evidence

pytestmark = needs_browser
#: What the stage shows: pixels by which the right image is cut, the value of the slider, the zoom.
_STATE = """(() => {
  const [over, slider, level] = ['.over', '.slider', '.level'].map(name => document.querySelector(name));
  const cut = Number(over.style.clipPath.match(/ ([0-9.]+)px\\)/)?.[1] ?? 0);
  return {cut, slider: Number(slider.value), level: level.textContent, shown: document.querySelector('.shown').id,
    width: over.clientWidth, pixelated: getComputedStyle(over).imageRendering};
})()"""
_OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report with all measurements."""
    return make_report(write_measurements(tmp_path_factory.mktemp("measured"))).report.as_uri()


@pytest.fixture(scope="module")
def opened() -> Iterator[Tab]:
    """A tab in a browser of its own."""
    with running_browser() as browser:
        yield browser.new_tab()


@pytest.fixture
def tab(opened: Tab) -> Iterator[Tab]:
    """A tab whose page asks for nothing else, and whose console is empty."""
    opened.requests.clear()
    yield opened
    assert {address.partition("#")[0].rpartition("/")[2] for address in opened.requests} <= {"report.html"}
    assert opened.complaints == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_divide_follows_keys_mouse_and_fingers(tab: Tab, page: str, width: int) -> None:
    tab.open(page, width=width)
    whole = tab.ask(_STATE)["width"]
    # P01 has 128 pixels a side; on a narrow screen they fit twice.
    assert whole == 128 * (4 if width == 1280 else 2)

    def cut() -> float:
        state = tab.ask(_STATE)
        assert state["cut"] == pytest.approx(whole * state["slider"] / 100, abs=whole / 100)
        slider: float = state["slider"]
        return slider

    assert cut() == 50
    tab.press("ArrowLeft")
    assert cut() == 48
    tab.ask("document.querySelector('.slider').focus()")
    tab.press("ArrowRight")
    assert cut() == 49
    tab.press("Home")
    assert cut() == 0
    tab.press("End")
    assert cut() == 100
    tab.ask("document.querySelector('.stage').scrollIntoView({block: 'center'})")
    x, y = tab.middle(".stage")
    tab.drag((x, y), (x + whole / 4, y))
    assert cut() == 75
    tab.touch([(x, y)], [(x - 40, y)], [(x - whole / 4, y)])
    assert cut() == 25


def test_prompts_are_reached_by_keys_links_and_addresses(tab: Tab, page: str) -> None:
    def shown() -> str:
        state: str = tab.ask(_STATE)["shown"]
        return state

    tab.open(f"{page}#P02")
    assert shown() == "P02"
    tab.press("j")
    assert (shown(), tab.ask("location.hash")) == ("P03", "#P03")
    # There is nothing to compare: the images and the reason stand side by side.
    assert tab.ask("document.querySelector('.stage').checkVisibility()") is False
    tab.press("j", "j")
    assert shown() == "flat-field"
    tab.press("k")
    assert "not measured: timeout" in tab.ask("document.querySelector('.shown').innerText")
    tab.press("k")
    assert shown() == "P02"
    tab.click(".list li:first-child a")
    assert shown() == "P01"
    tab.click("[data-do=next]")
    assert shown() == "P02"
    assert tab.ask("document.querySelectorAll('.list [aria-current]').length") == 1


def test_the_list_follows_the_prompt_and_the_page_stays(tab: Tab, page: str) -> None:
    seen = "(() => { const [list, link] = ['.list', '.list [aria-current]'].map(name => document.querySelector(name)"
    seen += ".getBoundingClientRect()); return link.top >= list.top && link.bottom <= list.bottom"
    seen += " && link.left >= list.left && link.right <= list.right; })()"
    for width, size in ((1280, "height"), (390, "width")):
        tab.open(page, width=width)
        tab.ask(f"document.querySelector('.list').style.{size} = '120px'")
        tab.ask("document.querySelector('.list').scrollIntoView()")
        before = tab.ask("scrollY")
        tab.press("j", "j", "j")
        assert tab.ask(seen) is True
        assert tab.ask("scrollY") == before


def test_images_blink(tab: Tab, page: str) -> None:
    tab.open(page)
    both = "(() => { const cuts = new Set(); const end = performance.now() + 1400; return new Promise(done => {"
    both += f"const look = () => {{ cuts.add({_STATE}.cut); performance.now() < end ? setTimeout(look, 50) :"
    both += " done([...cuts].sort((a, b) => a - b)); }; look(); }); })()"
    tab.press("b")
    assert tab.ask("document.querySelector('[data-do=blink]').ariaPressed") == "true"
    assert tab.ask(both) == [0, 512]
    tab.press("b")
    assert tab.ask(_STATE)["cut"] == 256
    tab.prefer("prefers-reduced-motion", "reduce")
    tab.press("b")
    assert tab.ask(both) == [0]
    tab.press("b")
    assert tab.ask(_STATE)["cut"] == 512
    tab.press("Escape")
    assert tab.ask(_STATE)["cut"] == 256
    # The second seed takes the place of the quantized model.
    before = tab.ask("document.querySelector('.over').src")
    tab.press("s")
    assert tab.ask("document.querySelector('.badge.right').textContent") == "Original, second seed"
    assert tab.ask("document.querySelector('.over').src") != before


def test_zoom_shows_single_pixels(tab: Tab, page: str) -> None:
    tab.open(f"{page}#P02")
    fitting = tab.ask(_STATE)
    assert (fitting["width"] < 1500, fitting["pixelated"]) == (True, "auto")
    tab.press("0")
    native = tab.ask(_STATE)
    assert (native["width"], native["level"], native["pixelated"]) == (1500, "100 %", "auto")
    tab.press("+", "+")
    tab.click("[data-do=larger]")
    enlarged = tab.ask(_STATE)
    assert (enlarged["width"], enlarged["level"], enlarged["pixelated"]) == (6000, "400 %", "pixelated")
    # The divide stays in the middle of what is seen, also after the image was dragged.
    seen = "(view => [view.scrollLeft, view.scrollLeft + view.clientWidth / 2])(document.querySelector('.view'))"
    left, middle = tab.ask(seen)
    assert enlarged["cut"] == pytest.approx(middle, abs=1)
    x, y = tab.middle(".stage")
    tab.drag((x - 200, y - 100), (x - 240, y - 130))
    moved, middle = tab.ask(seen)
    assert moved == pytest.approx(left + 40, abs=1)
    assert tab.ask(_STATE)["cut"] == pytest.approx(middle, abs=1)
    tab.press("-")
    assert tab.ask(_STATE)["level"] == "300 %"
    tab.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=120, modifiers=2)
    tab.ask("new Promise(done => setTimeout(done, 100))")
    assert tab.ask(_STATE)["level"] == "200 %"
    tab.touch([(x - 50, y), (x + 50, y)], [(x - 100, y), (x + 100, y)])
    assert tab.ask(_STATE)["level"] == "400 %"
    tab.press("f")
    assert tab.ask(_STATE)["width"] == fitting["width"]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_screens_and_follows_the_theme(tab: Tab, page: str, width: int) -> None:
    colors = []
    for dark in (False, True):
        tab.open(page, width=width, dark=dark)
        assert tab.ask(_OVERFLOW) == 0
        colors.append(tab.ask("getComputedStyle(document.body).backgroundColor"))
        assert tab.ask("[...document.images].every(image => image.naturalWidth)") is True
    assert colors == ["rgb(255, 255, 255)", "rgb(13, 17, 23)"]
    # The keyboard begins at the top, and what it has reached is seen.
    tab.press("Tab")
    assert tab.ask("document.activeElement.className") == "skip"
    assert tab.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.call("Emulation.setEmulatedMedia", media="print")
    visible = "[...document.querySelectorAll('article figure')].filter(figure => figure.checkVisibility()).length"
    assert tab.ask(visible) == 11
    tab.call("Emulation.setEmulatedMedia", media="")


def test_without_scripts_images_stand_side_by_side(tab: Tab, page: str, tmp_path: Path) -> None:
    text = Path(page.removeprefix("file://")).read_text("utf-8")
    copy = tmp_path / "report.html"
    copy.write_text(re.sub("<script>.*</script>", "", text, flags=re.DOTALL), "utf-8")
    tab.open(copy.as_uri())
    assert tab.ask("document.querySelectorAll('.js, article.shown').length") == 0
    tops = "[...document.querySelectorAll('#P01 figure')].map(figure => figure.getBoundingClientRect().top)"
    first, *others = tab.ask(tops)
    assert others == [first, first]
    assert tab.ask("document.querySelector('.compare').checkVisibility()") is False


def test_images_beside_the_page_are_shown(opened: Tab, tmp_path: Path) -> None:
    done = make_report(write_measurements(tmp_path, only_images=True), embedded_bytes=0)
    opened.open(f"{done.report.as_uri()}#P02")
    width = "document.querySelector('.over').decode().then(() => document.querySelector('.over').naturalWidth)"
    assert opened.ask(width) == 160
    assert opened.complaints == []


def test_nothing_comes_of_hostile_texts(tab: Tab, tmp_path: Path) -> None:
    summary = tmp_path / "sdnq_quantization_summary.json"
    summary.write_text(json.dumps(published_summary()))
    write_evidence(tmp_path, "0" * 64, hostile_text)
    # It is of other weights.
    summary.unlink()
    matrix = json.loads((tmp_path / "comparison_matrix.json").read_text())
    matrix["prompts"][0]["scenario"] = "x" * 100_000
    for row in matrix["prompts"]:
        if "failed" not in row["original"]:
            row["original"] |= row["quantized"]
    (tmp_path / "comparison_matrix.json").write_text(json.dumps(matrix))
    page = make_report(tmp_path).report
    for width in (390, 1280):
        tab.open(page.as_uri(), width=width)
        assert tab.ask(_OVERFLOW) == 0
    tab.press("b", "+", "s", *["j"] * len(matrix["prompts"]))
    assert tab.ask("document.querySelector('.shown') === [...document.querySelectorAll('article')].at(-1)") is True
    assert tab.ask("window.ran") is None
    assert tab.ask(_OVERFLOW) == 0
    attributes = "[...document.querySelectorAll('*')].flatMap(element => [...element.attributes].map(one => one.name))"
    assert not [name for name in tab.ask(attributes) if name.startswith("on")]
    elements = set(tab.ask("[...document.querySelectorAll('body *')].map(element => element.localName)"))
    assert not elements & {"iframe", "form", "svg", "math", "object", "meta", "base", "marquee"}
    assert tab.ask("document.scripts.length") == 1
