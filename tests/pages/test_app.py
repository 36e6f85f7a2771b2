"""`robustclip app` in a real browser, its jobs, and what it refuses."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from chromium import Browser, Page, browser, executable
from PIL import Image

from robustclip.errors import Fault, Interrupted, RunError, UsageError
from robustclip.synthesis.pictures import read_facts

pytestmark = [
    pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio: pip install 'robustclip[app]'"),
    pytest.mark.filterwarnings("ignore"),  # gradio's own
]
in_browser = pytest.mark.skipif(executable() is None, reason="needs Chromium (Debian: apt-get install chromium)")
REFEREES = ["emoji-robust", "emoji-vanilla-long"]
TAB = "[...document.querySelectorAll('button[role=tab]')].find((one) => one.textContent.includes('{}')).click()"


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from robustclip.app import Jobs
    from robustclip.evaluation.named import load_named

    class Slow(Jobs):
        """Prompts "for ever" run until they are stopped; `running` counts paintings, `most` at once, and `done` those
        that came to their end."""

        running, most, ended, done = 0, 0, 0, 0

        def paint(self, prompt: str, recipe: str, referee: str, seed: float | None) -> Iterator[tuple[Any, ...]]:
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                if prompt == "for ever":
                    yield from self._run(lambda *_: endless(), lambda _: (None, "<p>Painting</p>", None))
                else:
                    yield from super().paint(prompt, recipe, referee, seed)
                self.done += 1
            finally:
                self.running, self.ended = self.running - 1, self.ended + 1

    named = load_named(REFEREES, device=torch.device("cpu"))
    home = tmp_path_factory.mktemp("app")
    return Slow(home, {one.name: one for one in named}, seconds=600, quick=True)


def endless() -> None:
    layer = torch.nn.Identity()
    while True:
        layer(0)
        time.sleep(0.001)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module", autouse=True)
def swept() -> Iterator[None]:
    """gradio leaves event loops open, of which Python would warn in a later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.get_event_loop_policy().get_event_loop().close()
        asyncio.set_event_loop(None)
        gc.collect()


@pytest.fixture(scope="module")
def served(jobs: Any) -> Iterator[Any]:
    from robustclip.app import serve

    page = serve(jobs, "127.0.0.1", free_port())
    yield page
    page.close(verbose=False)


@pytest.fixture(scope="module")
def address(served: Any) -> str:
    return str(served.local_url)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def page(chromium: Browser, address: str) -> Iterator[Page]:
    with opened(chromium, address) as one:
        yield one


def opened(chromium: Browser, address: str, width: int = 1280, *, phone: bool = False) -> Page:
    page = chromium.page(address, width, 844, phone=phone)
    page.wait("['#prompt', '#paint', '#about'].every((one) => document.querySelector(one))")  # mounted one by one
    return page


def write(page: Page, where: str, text: str) -> None:
    page.run(
        f"((box) => {{ box.value = {json.dumps(text)}; box.dispatchEvent(new Event('input', {{bubbles: true}})); }})"
        f"(document.querySelector('{where}'))"
    )


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@in_browser
def test_a_prompt_is_painted_to_its_end_on_a_phone(chromium: Browser, address: str, tmp_path: Path) -> None:
    with opened(chromium, address, 390, phone=True) as page:
        write(page, "#prompt textarea, #prompt input", "a blue butterfly")
        page.run("document.querySelector('#paint').click()")
        page.wait("document.querySelector('#about').textContent.includes('cosine')")
        page.wait("document.querySelector('#painted img').naturalWidth === 64")
        links = page.wait("[...document.querySelectorAll('#files a')].map((link) => link.href)")
        page.wait("document.querySelectorAll('#about figure').length > 2")
        (picture,) = [link for link in links if link.endswith(".png")]
        with urllib.request.urlopen(picture) as answer:
            (tmp_path / "picture.png").write_bytes(answer.read())
        facts = read_facts(tmp_path / "picture.png")
        assert (facts["prompt"], facts["recipe"]) == ("a blue butterfly", "clipag")
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert page.complaints == []
        assert {one for one in page.requests if not one.startswith((address, "data:", "blob:"))} == set()


WIDTHS = [1280, 390]


@pytest.fixture(params=WIDTHS)
def tab(request: pytest.FixtureRequest, chromium: Browser, address: str) -> Iterator[Page]:
    """The page on a desk and on a phone; nothing of it may be wider than its window."""
    width = request.param
    with opened(chromium, address, width, phone=width == min(WIDTHS)) as one:
        yield one
        assert one.run("document.documentElement.scrollWidth") <= width


@in_browser
def test_a_picture_is_explained(tab: Page, tmp_path: Path) -> None:
    page = tab
    Image.new("RGB", (40, 24), "red").save(tmp_path / "red.png")
    page.run(TAB.format("Explain"))
    page.wait("document.querySelector('#explain').checkVisibility()")
    page.run("document.querySelector('button[aria-label*=\"lear\"]')?.click()")
    page.wait("document.querySelector('input[type=file]') !== null")
    root = page.ask("DOM.getDocument")["root"]["nodeId"]
    node = page.ask("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
    page.ask("DOM.setFileInputFiles", nodeId=node, files=[str(tmp_path / "red.png")])
    page.wait("[...document.images].some((one) => one.src.includes('red') && one.naturalWidth === 40)")
    page.run("document.querySelector('#explain').click()")
    inside = "document.querySelector('#report iframe').contentDocument"
    page.wait(f"document.querySelector('#report iframe') && {inside}.querySelectorAll('.of-attacked_map img').length")
    page.wait(f"{inside}.querySelector('.original img').naturalWidth === 40")
    page.wait(f"{inside}.body.scrollHeight > 200")
    page.wait(f"document.querySelector('#report iframe').clientHeight >= {inside}.body.scrollHeight")
    assert page.run(f"{inside}.documentElement.scrollWidth <= {inside}.documentElement.clientWidth")


@in_browser
def test_referees_are_compared(tab: Page) -> None:
    page = tab
    page.run(TAB.format("Compare"))
    page.wait("document.querySelector('#compare').checkVisibility()")
    page.run("document.querySelector('#compare').click()")
    page.wait("document.querySelector('#compared table') !== null")
    head = page.run("[...document.querySelectorAll('#compared tr:first-child td')].map((cell) => cell.textContent)")
    assert head == ["text", *REFEREES]
    page.wait(f"document.querySelectorAll('#compared figure').length === {1 + 2 * len(REFEREES)}")


@in_browser
def test_a_closed_tab_ends_its_job_and_the_next_in_the_queue_begins(chromium: Browser, address: str, jobs: Any) -> None:
    before = jobs.ended
    with opened(chromium, address) as second:
        with opened(chromium, address) as first:
            for page in (first, second):
                write(page, "#prompt textarea, #prompt input", "for ever")
                page.run("document.querySelector('#paint').click()")
                until(lambda: jobs.running)  # of the first, before the second asks
        until(lambda: jobs.ended == before + 1)
        second.wait("document.querySelector('#about').textContent.includes('Painting')")
        second.run("document.querySelector('#stop').click()")
        until(lambda: jobs.ended == before + 2)
    assert jobs.most == 1


@in_browser
def test_a_closed_tab_ends_a_painting(
    chromium: Browser, address: str, jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "quick", False)
    ended, done = jobs.ended, jobs.done
    with opened(chromium, address) as page:
        write(page, "#prompt textarea, #prompt input", "a red apple")
        page.run("document.querySelector('#paint').click()")
        page.wait("document.querySelector('#painted img')?.naturalWidth")
        assert (jobs.running, jobs.ended) == (1, ended)
    until(lambda: jobs.ended == ended + 1)
    assert jobs.done == done
    assert not [path for path in jobs.home.iterdir() if path.name.startswith("tmp")]


@pytest.mark.parametrize("path", ["/etc/hostname", __file__, "{home}/sample.png", "{home}/served/../sample.png"])
def test_no_file_beside_its_own_is_served(path: str, address: str, jobs: Any) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}gradio_api/file={path.format(home=jobs.home)}")
    assert refused.value.code in (403, 404)


def test_no_call_names_a_file_of_the_server(address: str) -> None:
    """The data of a call are what a browser sends: its file must be one that was uploaded."""
    with urllib.request.urlopen(f"{address}config") as answer:
        calls = json.load(answer)["dependencies"]
    file = {"path": __file__, "meta": {"_type": "gradio.FileData"}}
    number = next(call["id"] for call in calls if len(call["inputs"]) == 3)
    data = {"data": [file, "a cat", REFEREES], "fn_index": number, "session_hash": "intruder"}
    ask = urllib.request.Request(
        f"{address}gradio_api/queue/join", json.dumps(data).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(ask).close()
    with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash=intruder", timeout=60) as answer:
        lines = [json.loads(line.removeprefix(b"data: ")) for line in answer if line.startswith(b"data: ")]
    (end,) = [line for line in lines if line["msg"] == "process_completed"]
    assert not end["success"]
    assert not any(line["msg"] == "process_generating" for line in lines)


def bomb(side: int) -> bytes:
    """A PNG's header that claims side x side pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (bomb(30_000), Fault.TOO_LARGE),
        (b"<svg xmlns='x'/>", Fault.NOT_AN_IMAGE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", Fault.NOT_AN_IMAGE),
        (b"", Fault.EMPTY_IMAGE),
    ],
    ids=["30,000 x 30,000", "SVG", "EPS", "empty"],
)
def test_files_that_are_no_pictures_are_refused(content: bytes, fault: Fault, jobs: Any, tmp_path: Path) -> None:
    import gradio as gr

    (tmp_path / "picture.png").write_bytes(content)
    with pytest.raises(gr.Error, match=str(fault), check=lambda error: isinstance(error.__cause__, UsageError)):
        list(jobs.explain(str(tmp_path / "picture.png"), "a cat", REFEREES[0], "none"))


def test_uploads_reach_the_guarded_reader_unopened(served: Any, tmp_path: Path) -> None:
    from gradio.data_classes import ImageData

    (tmp_path / "picture.png").write_bytes(b"no picture")
    given = ImageData(path=str(tmp_path / "picture.png"))
    inputs = [block for block in served.blocks.values() if getattr(block, "sources", None) == ["upload", "clipboard"]]
    assert [block.preprocess(given) for block in inputs] == [given.path] * 2


@pytest.mark.parametrize("prompt", ["word " * 10_000, " ", "a cat | image:{picture}", "word " * 500])
def test_prompts_that_cannot_be_painted_are_refused(prompt: str, jobs: Any, tmp_path: Path) -> None:
    import gradio as gr

    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    with pytest.raises(gr.Error, check=lambda error: isinstance(error.__cause__, UsageError)):
        list(jobs.paint(prompt.format(picture=tmp_path / "picture.png"), "clipag", REFEREES[0], 0))
    assert not [path for path in jobs.home.iterdir() if path.name.startswith("tmp")]


@pytest.mark.parametrize("texts", ["", "\n".join(map(str, range(9))), "word " * 10_000])
def test_texts_that_cannot_be_read_are_refused(texts: str, jobs: Any, tmp_path: Path) -> None:
    import gradio as gr

    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    with pytest.raises(gr.Error, check=lambda error: isinstance(error.__cause__, UsageError)):
        list(jobs.compare(str(tmp_path / "picture.png"), texts, REFEREES))


def test_a_job_ends_when_its_time_is_over() -> None:
    from robustclip.app import followed

    with pytest.raises(RunError, check=lambda error: error.code == "too_slow"):
        list(followed(lambda _: endless(), seconds=0.2))


def test_a_job_ends_when_nobody_waits() -> None:
    from robustclip.app import followed

    threads = threading.active_count()
    news = followed(lambda show: (show("begun"), endless()), seconds=600)
    assert next(news) == (False, "begun")
    news.close()
    assert threading.active_count() == threads
    assert list(followed(lambda show: show(1) or 2, seconds=600)) == [(False, 1), (True, 2)]


def test_a_job_ends_when_nobody_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustclip import app

    monkeypatch.setattr(app, "IDLE", 0.5)
    threads = threading.active_count()
    news = app.followed(lambda show: (show("begun"), endless()), seconds=600)
    next(news)
    until(lambda: threading.active_count() == threads)
    with pytest.raises(Interrupted):
        next(news)


def test_a_port_in_use_is_refused() -> None:
    from robustclip.app import app

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, check=lambda error: error.code == "port_in_use"):
            app(port=taken.getsockname()[1])


def test_a_space_is_written(tmp_path: Path) -> None:
    from robustclip.app import app

    app(export=tmp_path / "space", referees=["emoji-robust", "mine"], seconds=30)
    compile((tmp_path / "space" / "app.py").read_text(), "app.py", "exec")
    assert "['emoji-robust', 'mine'], seconds=30.0)" in (tmp_path / "space" / "app.py").read_text()
    card = yaml.safe_load((tmp_path / "space" / "README.md").read_text().split("---")[1])
    assert (card["sdk"], card["app_file"]) == ("gradio", "app.py")
    with pytest.raises(UsageError):
        app(export=tmp_path / "space")
