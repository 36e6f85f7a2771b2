"""Write docs/painting.md and its picture from runs of `robustclip reproduce`.

python tools/publish_paintings.py --table1 runs/table1-1 --table2 runs/table2-1 --ablation runs/ablation-1
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from robustclip.data.images import load_image, save_image, titled_grid
from robustclip.runs.files import atomic_write

DOCS = Path(__file__).parents[1] / "docs"
COLUMNS = 10  # prompts in the picture
SHOWN = {  # row of the picture: folder of its cell
    "start of the control": "emoji-vanilla-longs-choice-of-mixture_unoptimised",
    "control, no views": "emoji-vanilla-long_no-views_pixels_from-mixture",
    "control, views": "emoji-vanilla-long_views_pixels_from-mixture",
    "start of emoji-robust": "emoji-robusts-choice-of-mixture_unoptimised",
    "emoji-robust, no views": "emoji-robust_no-views_pixels_from-mixture",
    "emoji-robust, views": "emoji-robust_views_pixels_from-mixture",
    "emoji-robust, pyramid": "emoji-robust_views_pyramid_from-mixture",
    "the same, from noise": "emoji-robust_views_pyramid_from-noise",
}

HEAD = """# Painted, and judged

Made by `robustclip reproduce table1`, `table2` and `ablation` on two CPU cores, and written here by
`python tools/publish_paintings.py`. R-Precision in percent: the judge, shown a picture, picks its prompt among 10
or 40. 95% intervals in brackets: Wilson for rates, paired bootstrap by prompt for differences and shares. One seed.

The 200 prompts ([list](../src/robustclip_emoji/prompts/README.md)) are 140 names that the referees know, 20 of
held-out concepts, and 40 free phrases. `emoji-judge` and `emoji-judge-disjoint` guided none of the pictures; the
second shares no training image with any guide. The control, `emoji-vanilla-long`, had the robust guide's training
time on clean images.

![Paintings](painting.webp)

"""


def percent(interval: dict[str, float], sign: str = "") -> str:
    return "{} ({} to {})".format(*(f"{100 * interval[key]:{sign}.1f}" for key in ("value", "low", "high")))


def grid(folder: Path) -> str:
    """The table of a Grid: rates, differences, shares, and rates by kind of prompt."""
    found: dict[str, Any] = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    columns = list(dict.fromkeys((one["judge"], one["candidates"]) for one in found["rates"]))
    heads = [f"{judge}, of {count}" for judge, count in columns]

    def table(title: str, rows: dict[str, dict[tuple[str, int], str]]) -> str:
        lines = [f"| {title} | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        lines += [
            "| " + " | ".join([name, *(cells.get(column, "") for column in columns)]) + " |"
            for name, cells in rows.items()
        ]
        return "\n".join(lines) + "\n"

    parts = []
    for title, kind, group in (
        ("pictures, all prompts", "rates", "all"),
        ("difference", "differences", "all"),
        ("share of real drawings' R-Precision, on the names", "shares", "shared"),
        ("pictures, names known to the guides", "rates", "name"),
        ("pictures, held-out names", "rates", "held-out name"),
        ("pictures, phrases", "rates", "phrase"),
    ):
        rows: dict[str, dict[tuple[str, int], str]] = {}
        for one in found[kind]:
            if one["group"] == group:
                joint = {"rates": "", "differences": " minus ", "shares": " over "}[kind]
                name = one["method"] + (joint + one["against"] if joint else "")
                rows.setdefault(name, {})[one["judge"], one["candidates"]] = percent(
                    one["interval"], "+" if kind == "differences" else ""
                )
        if rows:
            parts.append(table(title, rows))
    return "\n".join([*parts, *(f"Note: {note}." for note in found["notes"])]) + "\n"


def judgement(folder: Path) -> str:
    """The table of a judgement."""
    found: dict[str, Any] = json.loads((folder / "judgement.json").read_text(encoding="utf-8"))
    figures = [one for one in found["figures"] if one["kind"] == "value"]
    judges = list(dict.fromkeys(one["judge"] for one in figures))
    lines = ["| metric | pictures | n | " + " | ".join(judges) + " |", "|---" * (3 + len(judges)) + "|"]
    rows: dict[tuple[str, str, int], dict[str, str]] = {}
    for one in figures:
        cell = f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
        rows.setdefault((one["metric"], one["pictures"], one["n"]), {})[one["judge"]] = cell
    lines += [
        f"| {metric} | {name} | {n} | " + " | ".join(cells.get(judge, "") for judge in judges) + " |"
        for (metric, name, n), cells in rows.items()
    ]
    return "\n".join([*lines, "", *(f"Note: {note}." for note in found["notes"])]) + "\n"


def picture(folder: Path) -> None:
    """The README's contact sheet, of the same prompts in every row: evenly spread over the list, not chosen."""
    lines = (
        (folder / "cells" / SHOWN["emoji-robust, views"] / "pictures.jsonl")
        .read_text(encoding="utf-8")
        .strip()
        .split("\n")
    )
    chosen = [json.loads(line) for line in lines[:: len(lines) // COLUMNS]][:COLUMNS]
    tiles = [load_image(folder / "cells" / cell / one["file"]) for cell in SHOWN.values() for one in chosen]
    sheet = titled_grid(list(SHOWN), [one["prompt"] for one in chosen], torch.stack(tiles))
    save_image(sheet, DOCS / "painting.webp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("table1", "table2", "ablation"):
        parser.add_argument(f"--{name}", type=Path, required=name == "table1")
    arguments = parser.parse_args()
    parts = [HEAD, "## Table 1: who paints what judges recognise\n\n", grid(arguments.table1)]
    if arguments.table2 is not None:
        parts += ["\n## Table 2: sets of pictures beside real ones\n\n", judgement(arguments.table2)]
    if arguments.ablation is not None:
        parts += ["\n## What each choice of `clipag` is worth\n\n", grid(arguments.ablation)]
    with atomic_write(DOCS / "painting.md", "w") as file:
        file.write("".join(parts))
    picture(arguments.table1)


if __name__ == "__main__":
    main()
