"""Write docs/results.md and its pictures from runs of `robustclip reproduce table1` over all frameworks.

python tools/publish_results.py runs/table1-1 [runs/table1-2 ...]

Several runs count as one where each painted some of the canvases.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

import publish_inversion
import torch

from robustclip.data.images import load_image, save_image, titled_grid
from robustclip.runs.files import atomic_write

DOCS: Final = Path(__file__).parents[1] / "docs"
CONTROL, ROBUST = "emoji-vanilla-long", "emoji-robust"
FRAMEWORKS: Final = {
    "pixels": "pixels, from mixture",
    "strokes": "strokes",
    "vqgan": "vqgan",
}
JUDGES: Final = ("emoji-judge", "emoji-judge-disjoint")
COLUMNS: Final = 10  # pictures in a row of a sheet
# CLIPAG's Table 1: CLIPDraw, then CLIPDraw + CLIPAG, of 100 prompts among 100; judges ConvNeXt-Base and ViT-H/14.
PAPER: Final = {
    False: {"ConvNeXt-Base": (2, 19), "ViT-H/14": (1, 32)},
    True: {"ConvNeXt-Base": (31, 52), "ViT-H/14": (70, 72)},
}

HEAD = """# Referees plugged into generators

CLIPAG's claim is that a robust CLIP can take the place of a CLIP in frameworks that exist, and nothing else changes.
Here `--referee` changes, and nothing else: strokes (CLIPDraw), codes of a VQGAN (VQGAN+CLIP), a style network
(CLIPStyler), and pixels, each guided by `{robust}` and by `{control}`, which had the same training time on clean
images. Measured by `robustclip reproduce table1` on two CPU cores and written here by `python
tools/publish_results.py`; no number is copied by hand. 95% intervals in brackets: Wilson for rates and preferences,
bootstrap by picture for means, paired for differences. One seed. Steps and views are in proportion to 64 pixels
({settings}).

Chance is 10% among 10 names and 2.5% among 40. "Views" are each framework's own augmentations; without them the
referee sees the picture itself. Neither judge guided any picture; `emoji-judge-disjoint` shares no training image
with any guide.
"""


NOTES = """
**What reproduces.** The robust referee is recognised more often than the control (two judges, 10 and 40 names, with
views and without)

- in strokes in {strokes},
- in codes of the VQGAN, with half the prompts, in {vqgan},
- in pixels in {pixels}.

In strokes and in pixels views help both guides, as in the paper.

**What does not.** The paper's ratios without augmentation (an ordinary CLIP at 2% and 1%) are far above ours in
strokes. We think, and have not shown, that a control that saw 64 pixels and one set of drawings leaves less room for
patterns that only it sees than a ViT-B/32 at 224 pixels, and that fewer strokes leave less room for them too.

**Restyled drawings** show no difference between the guides: in the direction of the style the robust one is above in
{styler}. We think that the style network by itself paints smooth and coherent changes, whoever guides it; pixels
without it (`--canvas pixels` of `clipstyler`) were not measured. These judges know styles little: directional
similarity is small for every method, and that of the content itself comes of rounding to 8 bits.

Aesthetics heads are for embeddings of ViT-L/14, which no embedded judge has: `--aesthetics FILE` with such a judge.
"""


def read(folders: list[Path], name: str) -> dict[str, Any]:
    """The JSON file of that name of all folders, lists and dictionaries put together."""
    whole: dict[str, Any] = {}
    for folder in folders:
        if not (folder / name).is_file():
            continue
        for key, value in json.loads((folder / name).read_text(encoding="utf-8")).items():
            if isinstance(value, list):
                whole.setdefault(key, []).extend(one for one in value if one not in whole[key])
            elif isinstance(value, dict):
                whole.setdefault(key, {}).update(value)
            else:
                whole[key] = value
    return whole


def told(interval: dict[str, float], scale: float = 100, sign: str = "", places: int = 1) -> str:
    value, low, high = (f"{scale * interval[key]:{sign}.{places}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def lines(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def recognition(found: dict[str, Any]) -> str:
    """R-Precision of every method, and what separates those that are compared."""
    columns = list(dict.fromkeys((one["judge"], one["candidates"]) for one in found["rates"]))
    head = [f"{judge}, of {count}" for judge, count in columns]
    parts = []
    for title, kind in (("pictures", "rates"), ("difference, in points", "differences")):
        rows: dict[str, list[str]] = {}
        for one in found[kind]:
            if one["group"] == "all":
                name = one["method"] + (f" minus {one['against']}" if kind == "differences" else "")
                n = str(one["interval"]["n"])
                cells = rows.setdefault(name, [name, n])
                cells.append(told(one["interval"], sign="+" if kind == "differences" else ""))
        parts.append(lines([title, "n", *head], list(rows.values())))
    return "\n".join(parts)


def tally(found: list[dict[str, Any]], canvas: str, interval: str) -> str:
    """In how many comparisons of the robust guide with the control the first is above, and in how many the interval
    says so."""
    compared = [
        one[interval]
        for one in found
        if canvas in one["method"].split(", ")
        and one["against"] == one["method"].replace(ROBUST, CONTROL)
        and one.get("group", "all") == "all"
        and not one.get("column", "").startswith("content")
    ]
    above, sure = sum(one["value"] > 0 for one in compared), sum(one["low"] > 0 for one in compared)
    return f"{above} of {len(compared)} comparisons, {sure} of them with an interval above 0"


def beside_the_paper(found: dict[str, Any]) -> str:
    """The paper's rows, and ours in their layout: R-Precision among the most candidates."""
    most = max(one["candidates"] for one in found["rates"])
    rates = {
        (one["method"], one["judge"]): one["interval"]["value"]
        for one in found["rates"]
        if one["group"] == "all" and one["candidates"] == most
    }
    rows = []
    for augment, judged in PAPER.items():
        views = "views" if augment else "no views"
        cells = [f"{before}% to {after}% ({after / before:.1f}x)" for before, after in judged.values()]
        rows.append([f"paper, CLIPDraw, {views}, among 100", *cells])
    for name, tail in FRAMEWORKS.items():
        for augment in (False, True):
            views = "views" if augment else "no views"
            method = {guide: f"{guide}, {views}, {tail}" for guide in (CONTROL, ROBUST)}
            if (method[ROBUST], JUDGES[0]) not in rates:
                continue
            cells = []
            for judge in JUDGES:
                before, after = (100 * rates[method[guide], judge] for guide in (CONTROL, ROBUST))
                ratio = f"{after / before:.1f}x" if before else "from none"
                cells.append(f"{before:.0f}% to {after:.0f}% ({ratio})")
            rows.append([f"here, {name}, {views}, among {most}", *cells])
    return lines(["CLIP to robust CLIP", "ConvNeXt-Base / emoji-judge", "ViT-H/14 / emoji-judge-disjoint"], rows)


def scores(found: dict[str, Any], places: int = 3) -> str:
    """Means by method and column, then each pair's difference and preference."""
    columns = list(dict.fromkeys(one["column"] for one in found["means"]))
    rows: dict[str, list[str]] = {}
    for one in found["means"]:
        rows.setdefault(one["method"], [one["method"]]).append(told(one["interval"], 1, places=places))
    took = found.get("seconds", {})
    whole = [[*cells, f"{took[name]:.1f}" if name in took else ""] for name, cells in rows.items()]
    compared: dict[str, list[str]] = {}
    for one in found["pairs"]:
        name = f"{one['method']} minus {one['against']}"
        share = "{:.0f}%".format(100 * one["preferred"]["value"])
        cell = f"{told(one['difference'], 1, '+', places)}; higher on {share}"
        compared.setdefault(name, [name]).append(cell)
    head = lines(["pictures", *columns, "seconds each"], whole)
    return (
        head + "\n" + lines(["difference; share of pictures on which it is higher", *columns], list(compared.values()))
    )


def sheet(folders: list[Path], rows: dict[str, str], path: Path) -> None:
    """Rows of pictures, each of a cell by its folder's name, spread over what it painted, not chosen."""
    found = {
        title: place
        for title, name in rows.items()
        for folder in folders
        if (place := folder / "cells" / name / "pictures.jsonl").is_file()
    }
    if not found:
        return
    painted = [json.loads(line) for line in next(iter(found.values())).read_text(encoding="utf-8").strip().split("\n")]
    step = max(1, len(painted) // COLUMNS)
    if "styler" in path.name:
        step = COLUMNS + 1  # the committed pairs come in rows of ten contents
    chosen = [painted[number * step % len(painted)] for number in range(min(COLUMNS, len(painted)))]
    tiles = torch.stack([load_image(place.parent / one["file"]) for place in found.values() for one in chosen])
    titles = [one["id"].replace("-", " ") if "styler" in path.name else one["prompt"] for one in chosen]
    save_image(titled_grid(list(found), titles, tiles), path)


def rows_of(tail: str, start: str) -> dict[str, str]:
    """The folders of a framework's cells, by how a sheet calls them."""
    cells = {
        f"{who}, {views}": f"{guide}_{views.replace(' ', '-')}_{tail}"
        for guide, who in ((CONTROL, "control"), (ROBUST, "robust"))
        for views in ("no views", "views")
    }
    return {"start": start} | cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    folders = parser.parse_args().folders
    table, similarity, styling = (read(folders, f"{name}.json") for name in ("table", "similarity", "styling"))
    arguments = [json.loads((folder / "run.json").read_text(encoding="utf-8"))["arguments"] for folder in folders]
    settings = ", ".join(
        dict.fromkeys(
            f"{one} {given[flag]} steps"
            for given in arguments
            for one, flag in (
                ("pixels", "steps"),
                ("strokes", "stroke_steps"),
                ("vqgan", "vqgan_steps"),
                ("styler", "styler_steps"),
            )
            if one in given["canvas"]
        )
    )
    parts = [HEAD.format(robust=ROBUST, control=CONTROL, settings=settings)]
    parts += ["## Beside the paper's Table 1\n\n" + beside_the_paper(table)]
    tallies = {name: tally(table["differences"], name, "interval") for name in FRAMEWORKS}
    parts.append(NOTES.format(**tallies, styler=tally(styling.get("pairs", []), "styler", "difference")))
    for title, tail, start in (
        ("Strokes", "strokes", "random-strokes_unoptimised"),
        ("VQGAN codes", "vqgan", "random-codes_unoptimised"),
        ("Restyled drawings", "styler", "contents_unoptimised"),
    ):
        path = DOCS / f"results-{tail}.webp"
        sheet(folders, rows_of(tail, start), path)
        if path.is_file():
            parts.append(f"![{title}]({path.name})\n")
    parts += ["## Recognition\n\nR-Precision in percent.\n\n" + recognition(table)]
    parts += ["## Cosine with the prompt\n\nSeconds are those of a busy machine.\n\n" + scores(similarity)]
    if styling:
        parts += [
            "## Restyled\n\nOf 50 pairs of a drawing and a style. *directional*: the cosine of how the picture's "
            "embedding moved from its content with how the text's moved from the source; *content*: the cosine of "
            "picture and content. Both by judges.\n\n" + scores(styling)
        ]
    page = DOCS / "results.md"
    if page.is_file():
        parts += [kept] if (kept := publish_inversion.own_part(page.read_text(encoding="utf-8"))) else []
    with atomic_write(page, "w") as file:
        file.write("\n".join(parts))


if __name__ == "__main__":
    main()
