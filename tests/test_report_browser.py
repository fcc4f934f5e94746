"""The report in a real browser: quiet, alone, whole on a phone and on a desk, by keyboard, in the dark, script-free.

Skipped where no Chromium is installed; `.ci/run` installs one where it can.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import invented_runs as invented
import pytest
from browser import Browser, found

from mmard.report.page import Live, page
from mmard.report.runs import read_runs

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(found() is None, reason="no Chromium here; MMARD_BROWSER names one")

WIDE, NARROW = (1440, 900), (390, 844)
FOCUS = """(() => {
  const e = document.activeElement, box = e.getBoundingClientRect();
  const rings = [e, e.nextElementSibling].map(o => o && getComputedStyle(o).outlineStyle != "none");
  const name = e.className || e.id || e.getAttribute("href") || e.tagName;
  return [name, rings.some(Boolean), box.width > 0 && box.height > 0];
})()"""
"""What has the focus: its name, whether a ring is around it (or, of a switch, its label), whether it has a size."""
METHODS = ("rslad", "rslad+mmard", "adaad", "ard")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    file = folder / "report.html"
    file.write_text(page(read_runs(invented.comparison(folder / "runs", methods=METHODS))), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


def test_the_browser_tells_what_a_page_does(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "loud.html"
    file.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('oh'); undefined_thing()</script>")
    browser.view(*WIDE)
    browser.open(file)
    assert browser.requests == ["http://127.0.0.1:9/x.png"]
    told = " ".join(browser.complaints)
    assert "oh" in told
    assert "undefined_thing is not defined" in told
    assert "x.png" in told


def test_it_opens_without_a_complaint_or_a_request(browser: Browser, report: Path) -> None:
    browser.view(*WIDE)
    browser.open(report)
    assert browser.requests == []
    assert browser.complaints == []
    assert browser.value("document.querySelectorAll('main > section').length") == 14


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["desk", "phone"])
def test_every_figure_is_seen_and_nothing_sticks_out(browser: Browser, report: Path, size: tuple[int, int]) -> None:
    browser.view(*size, phone=size == NARROW)
    browser.open(report)
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    sizes = browser.value(
        "[...document.querySelectorAll('svg.plot, .triple img')].map(e => e.getBoundingClientRect())"
        ".map(r => [r.width, r.height])"
    )
    assert len(sizes) > 80
    assert all(width > 60 and height > 60 for width, height in sizes)
    assert browser.value("document.documentElement.scrollWidth") == size[0]
    if size == NARROW:
        cut = browser.value(
            "[...document.querySelectorAll('.scroll:not(:has(.compact))')]"
            ".filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.getAttribute('aria-label'))"
        )
        assert cut == []
    # Letters of plots are no smaller on a phone than beside each other on a desk.
    letters = browser.value(
        "Math.min(...[...document.querySelectorAll('svg.plot')].map(e => 11 * e.getBoundingClientRect().width / 320))"
    )
    assert letters >= 9.5


def test_every_stop_of_the_keyboard_can_be_seen(browser: Browser, report: Path) -> None:
    browser.view(*WIDE)
    browser.open(report)
    seen = []
    for _ in range(40):
        browser.key("Tab", "Tab", 9)
        seen.append(browser.value(FOCUS))
    names = [name for name, _, _ in seen]
    assert names[:2] == ["skip", "theme-auto"]
    assert "#results" in names
    assert "flag" in names
    assert all(outlined and there for _, outlined, there in seen)


def test_the_skip_link_leads_to_the_report(browser: Browser, report: Path) -> None:
    browser.view(*WIDE)
    browser.open(report)
    browser.key("Tab", "Tab", 9)
    browser.key("Enter", "Enter", 13)
    assert browser.value("location.hash") == "#main"
    assert browser.value("document.activeElement.id") == "main"


def background(browser: Browser) -> str:
    return str(browser.value("getComputedStyle(document.body).backgroundColor"))


def test_the_colours_follow_the_reader_and_then_the_switch(browser: Browser, report: Path) -> None:
    light, dark = "rgb(252, 252, 250)", "rgb(20, 23, 27)"
    line = "getComputedStyle(document.querySelector('svg.plot path')).stroke"
    browser.view(*WIDE)
    browser.open(report)
    in_light = browser.value(line)
    assert background(browser) == light
    browser.view(*WIDE, dark=True)
    assert background(browser) == dark
    assert browser.value(line) != in_light
    browser.value("document.getElementById('theme-light').click()")
    assert background(browser) == light
    browser.open(report)
    assert browser.value("document.querySelector('input[name=theme]:checked').value") == "light"
    browser.value("document.getElementById('theme-auto').click()")
    assert background(browser) == dark


def test_it_is_whole_without_scripts(browser: Browser, report: Path) -> None:
    browser.view(*WIDE)
    browser("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(report)
        browser.value("document.getElementById('theme-dark').click()")
        assert background(browser) == "rgb(20, 23, 27)"
        assert browser.value("document.querySelectorAll('svg.plot').length") > 40
        assert browser.complaints == []
    finally:
        browser("Emulation.setScriptExecutionDisabled", value=False)


def test_it_prints_on_paper_of_any_reader(browser: Browser, report: Path, tmp_path: Path) -> None:
    browser.view(*WIDE, dark=True, paper=True)
    browser.open(report)
    assert background(browser) == "rgb(255, 255, 255)"
    hidden = "['.theme', '.contents', '.numbers'].map(c => getComputedStyle(document.querySelector(c)).display)"
    assert browser.value(hidden) == ["none"] * 3
    assert browser.value("getComputedStyle(document.querySelector('svg.plot text')).fill") == "rgb(89, 99, 110)"
    browser.paper(tmp_path / "report.pdf")
    pages = len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "report.pdf").read_bytes()))
    assert 8 <= pages <= 40


def test_a_live_page_loads_itself_and_keeps_what_was_opened(browser: Browser, tmp_path: Path) -> None:
    runs = [invented.run(tmp_path / "r", epochs=4, done=2, kinds=(), scores=False)]
    file = tmp_path / "live.html"
    file.write_text(page(read_runs(runs), Live(1)), encoding="utf-8")
    browser.view(*WIDE)
    browser.open(file)
    browser.value("document.querySelector('main details').open = true")
    browser.events.clear()
    browser.wait_for("Page.loadEventFired")
    assert browser.value("document.querySelector('main details').open") is True
    assert browser.value("document.querySelector('.live').textContent") == "live, every 1 s"
    assert browser.complaints == []
    browser("Page.navigate", url="about:blank")


def test_figures_are_named_for_those_who_hear_the_page(browser: Browser, report: Path) -> None:
    browser.view(*WIDE)
    browser.open(report)
    browser("Accessibility.enable")
    nodes = browser("Accessibility.getFullAXTree")["nodes"]
    roles = [
        (n.get("role", {}).get("value"), n.get("name", {}).get("value", "")) for n in nodes if not n.get("ignored")
    ]
    images = [name for role, name in roles if role in ("image", "img", "graphics-document")]
    assert len(images) > 40
    assert all(images)
    assert {name for role, name in roles if role == "navigation"} == {"Contents"}
    headings = [name for role, name in roles if role == "heading"]
    assert headings[1:3] == ["Results", "What was run"]
    browser("Accessibility.disable")
