"""A report as data and as bytes: colours, sizes, pages, and texts that stay texts. In a browser: test_browser.py."""

from __future__ import annotations

import re
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reports import HOSTILE, REFEREES, cases, report

from robustclip.errors import UsageError, coded
from robustclip.evaluation.intervals import Interval
from robustclip.explanation.maps import SCALE, overlay, palette
from robustclip.pages.rendering import is_best, write_report
from robustclip.pages.report import (
    LONGEST,
    About,
    Case,
    Line,
    Report,
    Version,
    View,
    amplification,
    encode,
    map_uri,
    picture_uri,
)
from robustclip.pages.viewers import headline


def opened(uri: str) -> Image.Image:
    return Image.open(BytesIO(b64decode(uri.partition(",")[2])))


def test_the_scale_grows_brighter_all_the_way() -> None:
    colours = np.frombuffer(palette(), dtype=np.uint8).reshape(-1, 3).astype(float)
    light = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) >= 0).all()
    assert bytes(colours[0].astype(np.uint8)).hex() == SCALE[0][1:]
    assert bytes(colours[-1].astype(np.uint8)).hex() == SCALE[-1][1:]


def test_a_map_is_drawn_in_the_scales_colours() -> None:
    heat = torch.zeros(8, 12)
    heat[2, 5] = 1
    drawn = opened(map_uri(heat)).convert("RGB")
    assert drawn.size == (12, 8)
    assert "#{:02x}{:02x}{:02x}".format(*drawn.getpixel((5, 2))) == SCALE[-1]
    assert "#{:02x}{:02x}{:02x}".format(*drawn.getpixel((0, 0))) == SCALE[0]


def test_an_overlay_is_the_image_under_the_scale() -> None:
    image, heat = torch.rand(2, 3, 4, 5), torch.zeros(2, 4, 5)
    assert torch.equal(overlay(image, heat, strength=0), image)
    darkest = torch.tensor([int(SCALE[0][at : at + 2], 16) / 255 for at in (1, 3, 5)])
    torch.testing.assert_close(overlay(image, heat, strength=1)[1, :, 2, 3], darkest)


def test_small_pictures_keep_every_value_and_large_ones_their_aspect() -> None:
    small = torch.rand(3, 20, 30)
    kept = torch.from_numpy(np.array(opened(picture_uri(small)).convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(kept, (small * 255).round().to(torch.uint8))
    assert opened(picture_uri(torch.rand(3, 500, 1000))).size == (LONGEST, LONGEST // 2)


@pytest.mark.parametrize(("size", "factor"), [(0.6, 1), (0.2, 2), (0.09, 5), (0.004, 100), (0.0, 1), (torch.nan, 1)])
def test_changes_are_amplified_until_they_show(size: float, factor: int) -> None:
    assert amplification([torch.full((3, 4, 4), -size)]) == factor


def test_all_changes_of_a_case_are_amplified_alike() -> None:
    image = torch.full((3, 8, 8), 0.5)
    views = [View(name, {"attacked": Version(0.1, image=image + change)}) for name, change in (("a", 0.01), ("b", 0.2))]
    encoded = encode(Case("1", image, "a cat", views))
    assert encoded.amplification == 2
    levels = [opened(seen.pictures["change"]).convert("RGB").getpixel((4, 4))[0] for seen in encoded.seen]
    assert levels == pytest.approx([255 * (0.5 + 2 * 0.01), 255 * (0.5 + 2 * 0.2)], abs=3)


def test_an_encoded_case_holds_no_tensors() -> None:
    encoded = encode(next(cases()))
    assert encoded.case.image.numel() == 0
    kept = [version for seen in encoded.seen for version in seen.view.versions.values()]
    assert len(kept) == 6
    assert all(one.map is None and one.image is None and one.gradient is None for one in kept)
    assert encoded.weight > 1000


def test_one_page_without_network_where_texts_stay_texts(tmp_path: Path) -> None:
    [page] = write_report(tmp_path / "report.html", report(), map(encode, cases()))
    html = page.read_text()
    assert HOSTILE not in html
    assert html.count("<script") == 1
    assert "onerror='" not in html.replace("&#39;", "")
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", html)
    assert "&lt;b&gt;bold&lt;/b&gt;" in html
    assert "A &lt;u&gt;note&lt;/u&gt;." in html
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    for name in (
        *REFEREES,
        "ab" * 32,
        "L2 eps 1.5 at 64x64",
        "broken.png is not a readable picture",
        "zero everywhere",
    ):
        assert name in html


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (
        write_report(tmp_path / name, report(), map(encode, cases()))[0].read_bytes() for name in ("a.html", "b.html")
    )
    assert first == second


def test_a_report_that_grows_too_large_has_pages_that_link_to_each_other(tmp_path: Path) -> None:
    encoded = [encode(case) for case in cases()]
    pages = write_report(tmp_path / "report.html", report(), encoded, page_bytes=encoded[0].weight)
    assert [page.name for page in pages] == ["report.html", "report-2.html", "report-3.html", "report-4.html"]
    for number, page in enumerate(pages):
        html = page.read_text()
        assert html.count('class="case"') == 1
        for other in range(len(pages)):
            assert (f'href="{pages[other].name}"' in html) == (other != number)


@pytest.mark.parametrize(("n", "best"), [(29, False), (30, True)])
def test_the_best_is_marked_from_30_samples_on(n: int, best: bool) -> None:
    numbers = {"a": Interval(0.9, 0.8, 1.0, n), "b": Interval(0.5, 0.4, 0.6, 400)}
    assert is_best("a", Line("pointing game", "clean", numbers, "higher")) is best


@pytest.mark.parametrize(
    ("low", "words"),
    [
        (0.7, ["l2:1.5@20", "0.90 (0.70 to 0.95, n = 24) for b", "0.50 (0.40 to 0.60, n = 24) for a"]),
        (0.55, ["the intervals overlap"]),
    ],
)
def test_the_headline_says_what_withstands_the_attack(low: float, words: list[str]) -> None:
    correlation = {"a": Interval(0.5, 0.4, 0.6, 24), "b": Interval(0.9, low, 0.95, 24)}
    noise = {name: Interval(0.99, 0.98, 1.0, 24) for name in "ab"}
    lines = [
        Line("cosine", "clean", noise),
        Line("rank correlation", "random l2:1.5", noise, "higher"),
        Line("rank correlation", "l2:1.5@20", correlation, "higher"),
    ]
    said = headline(lines)
    assert [word for word in words if word not in said] == []
    assert ("overlap" in said) is (low < 0.6)


def test_without_an_attack_the_headline_is_of_clean_images() -> None:
    cosine = {"a": Interval(0.24, 0.2, 0.28, 9), "b": Interval(0.26, 0.25, 0.27, 9)}
    hits = {"a": Interval(0.75, 0.6, 0.9, 8)}
    lines = [Line("cosine", "clean", cosine), Line("pointing game", "clean", hits, "higher", "percent")]
    assert headline(lines) == (
        "On clean images, maps are largest inside the box in 75.0% (60.0% to 90.0%, n = 8) for a."
    )
    assert headline(lines[:1]) == (
        "On clean images, the mean cosine of image and text is 0.26 (0.25 to 0.27, n = 9) for b and "
        "0.24 (0.20 to 0.28, n = 9) for a."
    )
    assert headline([Line("rank correlation", "random l2:1.5", hits, "higher")]) == ""


def test_a_report_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("no_cases")):
        write_report(tmp_path / "report.html", Report("nothing", [About("first")]), [])
    assert not list(tmp_path.iterdir())
