"""A headless Chromium that tests look through, by its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import websocket

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE: Final = 60  # seconds, of a machine that does much else


def executable() -> str | None:
    """Where Chromium is, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with its profile in `folder`; it is gone after the block."""
    command = [
        executable() or "",
        "--headless=new",
        "--remote-debugging-port=0",
        "--remote-allow-origins=*",
        f"--user-data-dir={folder}",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),  # as root the sandbox refuses to start
        "about:blank",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Browser(_port(folder, process))
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _port(folder: Path, process: subprocess.Popen[bytes]) -> int:
    """The port that Chromium chose: it writes it into its profile."""
    told = folder / "DevToolsActivePort"
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        if told.is_file() and (lines := told.read_text().split()):
            return int(lines[0])
        time.sleep(0.05)
    raise RuntimeError(f"Chromium did not start (exit code {process.poll()})")


class Browser:
    """A running browser, which opens pages."""

    def __init__(self, port: int) -> None:
        self.port = port

    def page(
        self, path: Path | str, width: int = 1280, height: int = 900, *, dark: bool = False, phone: bool = False
    ) -> Page:
        """A file or an address, opened at a window's size and loaded."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            page = Page(json.load(answer)["webSocketDebuggerUrl"])
        page.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.ask("Emulation.setEmulatedMedia", features=[scheme])
        page.open(path)
        return page


class Page:
    """A tab. `requests` and `complaints` gather what it asked for, and its errors and warnings, as they come."""

    DOMAINS = ("Page", "Network", "Log", "Runtime")

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=PATIENCE)
        self._asked = 0
        self._events: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.complaints: list[str] = []
        for domain in self.DOMAINS:
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(websocket.WebSocketException, OSError):  # it may be gone before it has answered
            self.ask("Page.close")
        self._socket.close()

    def open(self, path: Path | str) -> None:
        self._events.clear()
        self.ask("Page.navigate", url=path if isinstance(path, str) else path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive()

    def decode(self) -> None:
        """Have all images loaded and decoded, also those far down; broken ones stay as they are."""
        self.run("[...document.images].forEach((image) => { image.loading = 'eager'; })")
        self.run("Promise.all([...document.images].map((image) => image.decode().catch(() => null)))")

    def run(self, script: str) -> Any:
        """What a JavaScript expression is, awaited; an exception inside is one here."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"]["exception"].get("description", found))
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """What a JavaScript expression is, once it is true; while what it names is not there yet, it is not. Raises
        AssertionError if it does not come true."""
        end, last = time.monotonic() + PATIENCE, ""
        while time.monotonic() < end:
            try:
                if value := self.run(script):
                    return value
            except AssertionError as error:
                last = f" ({error})"
            time.sleep(0.1)
        raise AssertionError(f"never true: {script}{last}")

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Save what is seen, or the whole page, as PNG."""
        if whole:  # what was never in the window was never drawn: so the window grows
            width = self.run("innerWidth")
            for _ in range(2):
                height = self.run("document.documentElement.scrollHeight")
                self.ask(
                    "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
                )
                self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            self.decode()
        shot = self.ask("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def ask(self, method: str, **values: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its answer."""
        self._asked += 1
        self._socket.send(json.dumps({"id": self._asked, "method": method, "params": values}))
        while (answer := self._receive()).get("id") != self._asked:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv())
        if "method" in message:
            self._events.append(message)
            self._note(message["method"], message["params"])
        return message

    def _note(self, method: str, values: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif method == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.complaints.append(values["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(values["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(values["args"]))
