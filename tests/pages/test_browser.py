"""The report in a real browser: what a reader sees and does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Browser, Page, browser, executable
from reports import CAPTIONS, cases, report

from robustclip.pages.rendering import write_report
from robustclip.pages.report import encode

pytestmark = pytest.mark.skipif(executable() is None, reason="needs Chromium (Debian: apt-get install chromium)")

ORDER = "[...document.querySelectorAll('.case:not([hidden]) h3')].map((title) => title.textContent)"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, report(), map(encode, cases()))
    return path


@pytest.fixture
def page(chromium: Browser, written: Path) -> Iterator[Page]:
    with chromium.page(written) as opened:
        yield opened


def choose(page: Page, control: str, value: str, event: str = "change") -> None:
    page.run(
        f"(({{control}}) => {{ control.value = {value}; control.dispatchEvent(new Event('{event}')); }})"
        f"({{control: {control}}})"
    )


def test_every_picture_is_there(page: Page) -> None:
    page.decode()
    assert page.run("document.images.length") > 30
    assert page.run("[...document.images].filter((image) => !image.naturalWidth).map((image) => image.alt)") == []


def test_maps_lie_on_the_picture_that_they_are_of(page: Page) -> None:
    below = "(name) => getComputedStyle(document.querySelector(`.of-${name} .picture`)).backgroundImage.slice(5, -2)"
    for name, picture in (("map", ".original img"), ("attacked_map", ".of-attacked img")):
        assert page.run(f"({below})('{name}') === document.querySelector('{picture}').src")
    assert page.run(f"({below})('noisy_map')").startswith("data:image/")


def test_pictures_are_on_the_first_screen_and_all_numbers_unfold_there_and_on_paper(page: Page) -> None:
    page.decode()
    assert page.run("document.querySelector('.case img').getBoundingClientRect().bottom < innerHeight")
    is_seen = "document.querySelector('.summary').checkVisibility()"
    assert not page.run(is_seen)
    page.ask("Emulation.setEmulatedMedia", media="print")
    assert page.run(is_seen)
    page.ask("Emulation.setEmulatedMedia", media="screen")
    assert not page.run(is_seen)
    page.run("document.querySelector('.numbers summary').click()")
    assert page.run(is_seen)


def test_nothing_is_asked_of_a_network_and_nothing_complains(page: Page, written: Path) -> None:
    page.decode()
    assert {request for request in page.requests if not request.startswith("data:")} == {written.as_uri()}
    assert page.complaints == []


def test_a_caption_is_text_whatever_it_holds(page: Page) -> None:
    assert page.run(ORDER) == CAPTIONS
    assert page.run("document.scripts.length") == 1
    assert page.run("window.bitten === undefined")


def test_a_text_finds_its_cases(page: Page) -> None:
    choose(page, "document.getElementById('filter')", "'WING bird'", "input")
    assert page.run(ORDER) == ["a bird with one wing"]
    assert page.run("document.getElementById('count').textContent") == "1 of 4 shown"
    choose(page, "document.getElementById('filter')", "'zebra'", "input")
    assert page.run(ORDER) == []
    assert page.run("document.getElementById('nothing').checkVisibility()")
    choose(page, "document.getElementById('filter')", "''", "input")
    assert page.run(ORDER) == CAPTIONS


def test_cases_are_sorted_by_a_number_of_a_referee(page: Page) -> None:
    pick = (
        "[...document.querySelectorAll('#sort option')]"
        ".find((one) => one.value.includes('second') && one.text === {}).value"
    )
    choose(page, "document.getElementById('sort')", pick.format("'rank correlation'"))
    second, third, fourth, first = CAPTIONS[1], CAPTIONS[2], CAPTIONS[3], CAPTIONS[0]
    assert page.run(ORDER) == [fourth, third, second, first]  # the first has no such number
    page.run("document.getElementById('direction').click()")
    assert page.run(ORDER) == [second, third, fourth, first]
    choose(page, "document.getElementById('sort')", "''")
    assert page.run(ORDER) == CAPTIONS


def test_columns_are_shown_and_hidden(page: Page) -> None:
    def seen(name: str) -> bool:
        return page.run(f"document.querySelector('.case .of-{name}').checkVisibility()")

    assert seen("change")
    page.run("document.getElementById('show-change').click()")
    assert not seen("change")
    assert seen("map")
    assert not seen("attacked_gradient")  # no case has one


def test_how_strongly_maps_cover_their_picture(page: Page) -> None:
    opacity = "getComputedStyle(document.querySelector('.of-map img')).opacity"
    assert page.run(opacity) == "0.65"
    choose(page, "document.getElementById('strength')", "20", "input")
    assert page.run(opacity) == "0.2"


def test_a_phone_shows_cards_and_scrolls_one_way_only(chromium: Browser, written: Path) -> None:
    with chromium.page(written, 390, 844, phone=True) as page:
        page.decode()
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert page.run("document.querySelector('.cell figcaption').getBoundingClientRect().height") > 5
        small = "[...document.querySelectorAll('.tools input:not([type=checkbox]), .tools select, .chip span')]"
        assert page.run(f"Math.min(...{small}.map((one) => one.getBoundingClientRect().height))") >= 44


def test_light_and_dark_follow_the_reader(chromium: Browser, written: Path) -> None:
    paper, ink = (
        f"getComputedStyle(document.documentElement).{name}.match(/\\d+/g).map(Number)[0]"
        for name in ("backgroundColor", "color")
    )
    with chromium.page(written) as light, chromium.page(written, dark=True) as dark:
        assert light.run(paper) > 240 > 40 > light.run(ink)
        assert dark.run(paper) < 40 < 200 < dark.run(ink)
        scheme = [{"name": "prefers-color-scheme", "value": "dark"}]
        dark.ask("Emulation.setEmulatedMedia", media="print", features=scheme)
        assert dark.run(paper) > 240 > 40 > dark.run(ink)  # paper is white, whatever a screen is


def test_pictures_keep_their_aspect(page: Page) -> None:
    size = (
        "((one) => one.width / one.height)"
        "(document.querySelectorAll('.case')[{}].querySelector('.of-map img').getBoundingClientRect())"
    )
    assert page.run(size.format(0)) == pytest.approx(1, abs=0.02)
    assert page.run(size.format(2)) == pytest.approx(40 / 24, abs=0.03)


def test_pages_lead_to_each_other(chromium: Browser, tmp_path: Path) -> None:
    pages = write_report(tmp_path / "two parts.html", report(), map(encode, cases()), page_bytes=30_000)
    assert len(pages) > 1
    with chromium.page(pages[0]) as page:
        titles = page.run(ORDER)
        for following in pages[1:]:
            link = page.run("document.querySelector('.pages [aria-current] + a').href")
            assert link == following.as_uri()
            page.open(following)
            titles += page.run(ORDER)
    assert titles == CAPTIONS
