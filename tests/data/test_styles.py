"""The committed pairs of a drawing and a style, and the drawings they start from."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
import torch

from robustclip.data.emoji import embedded_styles, emoji_drawing
from robustclip.errors import UsageError, coded


def test_fifty_pairs_are_ten_drawings_in_five_styles() -> None:
    pairs = embedded_styles()
    contents, styles = ({pair[place] for pair in pairs} for place in (0, 1))
    assert (len(contents), len(styles)) == (10, 5)
    assert Counter(pairs) == Counter(dict.fromkeys(product(contents, styles), 1))
    assert len({pair.content for pair in pairs[:10]}) == 10, "a short table has every drawing"
    assert set(Counter(pair.style for pair in pairs[:10]).values()) == {2}, "and every style"


def test_every_content_is_a_drawing() -> None:
    drawings = torch.stack([emoji_drawing(name) for name in sorted({pair.content for pair in embedded_styles()})])
    assert drawings.shape == (10, 3, 64, 64)
    assert 0 <= drawings.min() <= drawings.max() <= 1
    assert (drawings[..., 0, 0] == 1).all(), "on white"
    assert len(drawings.flatten(1).unique(dim=0)) == 10


def test_a_drawing_is_found_by_its_name_in_any_case() -> None:
    assert torch.equal(emoji_drawing(" Cat Face "), emoji_drawing("cat face"))


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("cat fase", coded("no_drawing", near=["cat face", "rabbit face", "hot face"])),
        ("", coded("no_drawing", name="")),
    ],
)
def test_a_name_that_is_none_is_told_with_near_ones(name: str, check) -> None:
    with pytest.raises(UsageError, check=check):
        emoji_drawing(name)
