"""Single drawings of the embedded set by name, as content for style transfer."""

from __future__ import annotations

import io
from difflib import get_close_matches
from typing import Final

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from robustclip.data.emoji import label_index, read_shard
from robustclip.data.images import from_pil
from robustclip.errors import UsageError

PREFIX: Final = "emoji:"
STYLE: Final = "twemoji"
"""Flat drawings, in a style that no guide was trained on; it has one of every label."""


def emoji_drawing(name: str) -> Float[Tensor, "3 64 64"]:
    """The drawing of a label, e.g. "cat face", in [0,1] on white. Raises UsageError for a name that is no label, with
    near ones."""
    names, index = label_index()
    wanted = name.strip().casefold()
    concepts = {label.casefold(): concept for label, concept in zip(names, index, strict=True)}
    if wanted not in concepts:
        near = get_close_matches(wanted, concepts, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "give the name of an emoji, e.g. cat face"
        raise UsageError(f"there is no drawing of {name[:60]!r}: {hint}")
    sample = next(one for one in read_shard(STYLE) if one.concept == concepts[wanted])
    return from_pil(Image.open(io.BytesIO(sample.webp)))
