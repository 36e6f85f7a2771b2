from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from robustclip.synthesis import watching
from robustclip.synthesis.pictures import overview
from robustclip.synthesis.watching import Live, in_notebook, shown_on


class Notebook:
    """IPython as a notebook's kernel has it."""

    def __init__(self, shell: object) -> None:
        self.shell = shell
        self.shown: list[Any] = []
        self.replaced: list[Any] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, content in {
            "IPython": {"get_ipython": lambda: self.shell},
            "IPython.display": {"display": self.display},
        }.items():
            module = ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)

    def display(self, picture: object, *, display_id: bool) -> SimpleNamespace:
        assert display_id
        self.shown.append(picture)
        return SimpleNamespace(update=self.replaced.append)


IMAGES = torch.rand(2, 3, 16, 16)


def test_without_a_notebook_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    Live().show(IMAGES, now=True)
    for shell in (None, SimpleNamespace()):  # imported only, or a terminal's
        terminal = Notebook(shell)
        terminal.install(monkeypatch)
        assert not in_notebook()
        Live().show(IMAGES, now=True)
        assert not terminal.shown


def test_pictures_of_a_block_go_to_its_display() -> None:
    seen: list[Image.Image] = []
    with shown_on(seen.append):
        Live().show(IMAGES)
    Live().show(IMAGES, now=True)
    assert [picture.height for picture in seen] == [overview(IMAGES).shape[-2]]


def test_a_notebook_shows_one_picture_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Notebook(SimpleNamespace(kernel=object()))
    notebook.install(monkeypatch)
    assert in_notebook()
    showing = Live()
    showing.show(IMAGES)
    showing.show(IMAGES)  # a moment later
    assert (len(notebook.shown), len(notebook.replaced)) == (1, 0)
    showing.show(IMAGES, now=True)
    monkeypatch.setattr(watching, "EVERY", 0)
    showing.show(IMAGES)
    assert (len(notebook.shown), len(notebook.replaced)) == (1, 2)
    assert notebook.shown[0].size == (2 + 2 * 98, 2 + 98)
