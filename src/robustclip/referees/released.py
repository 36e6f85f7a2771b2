"""Released robust CLIPs: where each is, how its files are laid out, and what its authors report.

The table is `released.toml`; none of its figures was measured here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Final, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from robustclip.attacks.threat import ThreatModel
from robustclip.errors import UsageError

PREFIX: Final = "robust-clip:"
Layout = Literal["open_clip folder", "transformers folder", "open_clip file", "image tower file", "LoRA adapter"]
Tower = Literal["image", "text"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Released:
    """One released model.

    `source` is "hf-hub:ORG/NAME", a citation of where the file can be downloaded, or None where no weights were found;
    `file` the file in it. `architecture` is open_clip's name, `quick_gelu` its activation (None: the config that comes
    with the weights says both). `towers` are those that were trained to be robust, `base` is the model that it was
    trained from: an open_clip tag of the architecture, which also completes a file that holds the image tower alone,
    or for an adapter the name of another entry. `threat` is "linf:EPS/255", "l2" or "levenshtein:K" for each tower.
    `sha256` maps published files to their hashes.
    """

    name: str
    family: str
    layout: Layout
    source: str | None = None
    architecture: str | None = None
    quick_gelu: bool | None = None
    image_size: int = 224
    towers: tuple[Tower, ...] = ("image",)
    threat: str
    licence: str | None = None
    looked_up: tuple[str, ...]
    base: str | None = None
    file: str | None = None
    reported: Mapping[str, float] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""

    @property
    def threat_model(self) -> ThreatModel | None:
        """The image tower's L-inf ball; None for another threat and where its radius is not published."""
        norm, _, eps = self.threat.partition(",")[0].partition(":")
        known = norm == "linf" and eps
        return ThreatModel("linf", float(eps.removesuffix("/255")) / 255, self.image_size) if known else None


@cache
def all_released() -> dict[str, Released]:
    """All entries by name."""
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    for name, entry in table.items():
        table[name] = table.get(entry.pop("like", ""), {}) | entry
    return {PREFIX + name: Released(name=PREFIX + name, **entry) for name, entry in table.items()}


def find_released(name: str) -> Released:
    """The entry of that name. Raises UsageError for an unknown one, naming near ones."""
    known = all_released()
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.4) or list(known)
        raise UsageError(
            f"no released robust CLIP is called {name[:100]!r}; near ones: {', '.join(near)}. robustclip referees list "
            "shows all",
            "unknown_release",
            name=name,
        )
    return known[name]
