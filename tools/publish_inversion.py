"""Write the section of docs/results.md on Referee-Can-Play, and its picture, from runs of `reproduce inversion`.

python tools/publish_inversion.py runs/inversion-1 [runs/inversion-2 ...]

Runs may have other cells, prompts or seeds: a picture is known by its cell, prompt and seed, and is the last run's that
has it. The rows of a table are of the pictures that all of them have, and so are the two of a comparison. What the text
says of them is counted here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from robustclip.data.images import load_image, save_image
from robustclip.errors import UsageError
from robustclip.evaluation.generation.compositional import CANDIDATES, CHANCE
from robustclip.evaluation.generation.inversion_table import EVERY, RATES, InversionTable, percent, plain
from robustclip.evaluation.intervals import Interval
from robustclip.runs.files import atomic_write

DOCS: Final = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- inversion: written by tools/publish_inversion.py -->", "<!-- end of inversion -->"
SCORES: Final = {
    "matching": "their logit of a match",
    "contrastive": "the similarity of their embeddings of picture and text",
    "sum": "their logit of a match plus the similarity of their embeddings in units of its temperature",
}
REAL, NOISE = "real scenes", "decoded noise"
LOSSES: Final = ("L", "L augmented")
SAME: Final = ("steps", "copies", "sampling_steps", "score", "reader", "model", "fingerprints")
"""What all runs have in common."""

Picture = tuple[str, int]
"""A prompt and a seed."""

# T2I-CompBench's colour / shape / texture of Stable Diffusion 1.5 at 512 pixels, as the paper has them.
PAPER: Final = {
    "vlm": "0.8639 / 0.6686 / 0.7311",
    "both": "0.8162 / 0.6209 / 0.7202",
    "sample-7.5": "0.3632 / 0.3490 / 0.3985",
    "sample-30": "0.4012 / 0.4018 / 0.4386",
    "vlm-copies-0": "0.656 (colour)",
}
TABLES: Final[dict[str, list[str]]] = {
    "What pulls, and the diffusion model by itself (the paper's Tables 3 and 7)": [
        *("both", "vlm", "sds", "sample-7.5", "sample-30"),
    ],
    "Augmented copies (Tables 1 and 2)": [
        *("both", "copies-0", "copies-15", "copies-30", "vlm", "vlm-copies-0"),
    ],
    "Whose gradient (ours)": [
        *("both", "referee-vanilla", "referee-robust", "referee-blip2+robust", "copies-0"),
        *("referee-vanilla-copies-0", "referee-robust-copies-0", "referee-blip2+robust-copies-0"),
        *("vlm-copies-0", "vlm-vanilla-copies-0", "vlm-robust-copies-0", "vlm-robust"),
    ],
    "The guidance of SDS (ours has 5, the paper 30)": ["both", "guidance-10", "guidance-30", "sds", "sds-guidance-30"],
    "The moving average (Table 4)": ["both", "ema-none", "ema-plain"],
    "The weight of SDS (Table 5)": ["both", "sds-constant-800", "sds-constant-400"],
    "The referee's gradient in norms of that of SDS (Table 6)": [
        *("w1-1-adam", "both", "w1-3-adam", "w1-1-sgd", "w1-2-sgd", "w1-3-sgd"),
    ],
    "Noise on the latents (Table 9)": ["noise-0", "noise-0.1", "both", "noise-0.4"],
    "The modes": ["both", "mode-faithful", "mode-released"],
}
NAMES: Final = {"both": "both (Alg. 1; all others differ from it as named)"}


@dataclass(frozen=True)
class Claim:
    """That one cell is above another."""

    text: str
    cell: str
    against: str
    whose: Literal["paper", "ours"] = "paper"


CLAIMS: Final = (
    Claim("the referee alone is above the model's own pictures", "vlm", "sample-7.5"),
    Claim("Alg. 1 is above the model's own pictures", "both", "sample-7.5"),
    Claim("more guidance helps the model's own pictures, a little", "sample-30", "sample-7.5"),
    Claim("Alg. 1 is above the model's own pictures at the same guidance", "guidance-30", "sample-30"),
    Claim("the referee alone is above Alg. 1, which pays for the better picture", "vlm", "both"),
    Claim("copies help the referee alone", "vlm", "vlm-copies-0"),
    Claim("copies help Alg. 1", "both", "copies-0"),
    Claim("30 copies are above none", "copies-30", "copies-0"),
    Claim("restarts, the paper's choice, are above no average", "both", "ema-none"),
    Claim("restarts, the paper's choice, are above an average at the end alone", "both", "ema-plain"),
    Claim("a falling SDS weight, the paper's choice, is above 800 throughout", "both", "sds-constant-800"),
    Claim("a falling SDS weight, the paper's choice, is above 400 throughout", "both", "sds-constant-400"),
    Claim("w1 = 2 is above 1", "both", "w1-1-adam"),
    Claim("w1 = 2 is above 3", "both", "w1-3-adam"),
    Claim("noise of 0.2 is above none", "both", "noise-0"),
    Claim("noise of 0.2 is above 0.4", "both", "noise-0.4"),
    Claim("Alg. 1 is above SDS alone", "both", "sds", "ours"),
    Claim("guidance of 5 in SDS is above the paper's 30", "both", "guidance-30", "ours"),
    Claim("a robust CLIP is above an ordinary one", "referee-robust", "referee-vanilla", "ours"),
    Claim(
        "a robust CLIP is above an ordinary one, without copies",
        "referee-robust-copies-0",
        "referee-vanilla-copies-0",
        "ours",
    ),
    Claim(
        "a robust CLIP is above an ordinary one, without copies and SDS",
        "vlm-robust-copies-0",
        "vlm-vanilla-copies-0",
        "ours",
    ),
    Claim("a robust CLIP is above the pair reader", "referee-robust", "both", "ours"),
    Claim("a robust CLIP beside the pair reader is above it alone", "referee-blip2+robust", "both", "ours"),
    Claim(
        "a robust CLIP beside the pair reader is above it alone, without copies",
        "referee-blip2+robust-copies-0",
        "copies-0",
        "ours",
    ),
)

HEAD = """## Referee-Can-Play: a diffusion model's latents, pulled by a referee

Alg. 1 of the paper in the embedded world: `{model}`, a latent diffusion model of 64 pixels, pulled by `{reader}`, a
small BLIP-2, and by Score Distillation. The prompts name two coloured things ("a yellow banana and a blue butterfly")
in pairs that no model was trained on; n counts pictures. {steps} steps, {copies} copies where a row does not say.
Measured by `robustclip reproduce inversion`, and written here by `python tools/publish_inversion.py`; no number is
copied by hand.

A judge finds a picture right where its caption wins against {others} others: colours exchanged, another colour or
another thing on either side, one thing missing (chance {chance:.1f}%). *Own colours* is that against exchanged colours
(chance 50%), *both things* against other things on either side (chance {things:.1f}%). Judges score by
{score}; they guided no picture, and look through image towers of their own. *All judges* counts what every one of them
finds. The most that they can find are real scenes in unseen styles, the least decoded noise. 95% intervals in brackets:
Wilson for rates, as if seeds of a prompt were independent; paired bootstrap by prompt for differences; bootstrap by
prompt for losses.
"""


@dataclass(frozen=True)
class Pool:
    """The pictures of several runs: by cell, where each is told of (a run's table, and its row)."""

    judges: Sequence[str]
    cells: dict[str, dict[Picture, tuple[InversionTable, int]]]

    def has(self, *cells: str) -> bool:
        """Whether there are pictures that all of these cells have."""
        return all(cell in self.cells for cell in cells) and bool(self.shared(cells))

    def shared(self, cells: Sequence[str]) -> list[Picture]:
        """Prompts and seeds that all of these cells have, in the order of the first."""
        return [one for one in self.cells[cells[0]] if all(one in self.cells[cell] for cell in cells)]

    def table(self, cells: Sequence[str]) -> InversionTable:
        """These cells, of the pictures that they share."""
        pictures = self.shared(cells)
        table = InversionTable(self.judges, [prompt for prompt, _ in pictures])
        for cell in cells:
            places = [self.cells[cell][picture] for picture in pictures]
            table.hits[cell] = {
                judge: {rate: np.array([one.hits[cell][judge][rate][row] for one, row in places]) for rate in RATES}
                for judge in (*self.judges, EVERY)
            }
            table.values[cell] = {
                name: np.array([one.values[cell][name][row] for one, row in places])
                for name in LOSSES
                if all(name in one.values[cell] for one, _ in places)
            }
            if took := [one.seconds[cell] for one, _ in places if cell in one.seconds]:
                table.seconds[cell] = float(np.mean(took))
        return table


def read(folders: Sequence[Path]) -> tuple[dict[str, Any], Pool]:
    """The setting of all runs, and their pictures.

    Raises UsageError where the runs are not of one measurement.
    """
    setting: dict[str, Any] = {}
    cells: dict[str, dict[Picture, tuple[InversionTable, int]]] = {}
    for folder in folders:
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        own = {name: found["setting"].get(name) for name in SAME} | {"judges": found["judges"]}
        setting = setting or own
        if differing := [name for name in own if own[name] != setting[name]]:
            raise UsageError(f"{folder} differs from {folders[0]} in {', '.join(differing)}: they are not one table")
        table = InversionTable.from_json(found)
        pictures = zip(table.prompts, cycle(found["setting"]["seeds"]), strict=False)  # a prompt's seeds stand together
        places = {picture: (table, row) for row, picture in enumerate(pictures)}
        for cell in table.hits:
            cells.setdefault(cell, {}).update(places)
    return setting, Pool(setting["judges"], cells)


def lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def rates(table: InversionTable, cells: Sequence[str]) -> str:
    """What judges find in cells, and in what bounds them."""
    columns = [
        *((judge, "right") for judge in (*table.judges, EVERY)),
        *((judge, "attributes") for judge in table.judges),
        (EVERY, "both"),
    ]
    titles = {"right": f"first of {CANDIDATES}", "attributes": "own colours", "both": "both things"}
    head = ["", "n", *(f"{titles[rate]}, {judge}" for judge, rate in columns), "seconds each", "paper"]
    rows = [
        [
            NAMES.get(cell, cell),
            str(len(table.prompts)),
            *(percent(table.rate(cell, *column)) for column in columns),
            f"{table.seconds[cell]:.1f}" if cell in table.seconds else "",
            PAPER.get(cell, ""),
        ]
        for cell in cells
    ]
    return lines(head, rows)


def losses(table: InversionTable, cells: Sequence[str]) -> str:
    """The guide's own losses (Table 2): of the picture, and over augmented copies of it."""
    kept = [cell for cell in cells if set(LOSSES) <= table.values.get(cell, {}).keys()]
    rows = [[NAMES.get(cell, cell), *(plain(table.value(cell, name)) for name in LOSSES)] for cell in kept]
    return lines(["", "L of the picture", "L over 30 augmented copies"], rows)


def verdict(found: Sequence[Interval]) -> str:
    """What differences by all judges say of a claim that they are above 0."""
    if all(one.low > 0 for one in found):
        return "yes"
    if all(one.high < 0 for one in found):
        return "no, the opposite"
    if all(one.value > 0 for one in found):
        return "in direction; an interval reaches 0"
    if all(one.value < 0 for one in found):
        return "opposite in direction; an interval reaches 0"
    return "not told apart"


def claims(pool: Pool, whose: str) -> str:
    """Each claim that the cells can answer, and in how many of them it holds."""
    rows, told = [], []
    judges = pool.judges
    for one in CLAIMS:
        if one.whose != whose or not pool.has(one.cell, one.against):
            continue
        table = pool.table([one.cell, one.against])
        found = {
            rate: [table.difference(one.cell, one.against, judge, rate) for judge in table.judges]
            for rate in ("right", "attributes")
        }
        told.append(verdict(found["right"]))
        cells = [percent(difference, "+") for rate in found for difference in found[rate]]
        rows.append([f"{one.text} ({one.cell} minus {one.against})", str(len(table.prompts)), *cells, told[-1]])
    if not told:
        return ""
    yes, no = told.count("yes"), told.count("no, the opposite")
    direction = sum(one.startswith("in direction") for one in told)
    title = "What the paper says" if whose == "paper" else "What we asked beside it"
    summary = (
        f"**{title}.** Of {len(told)} comparisons {yes} {'holds' if yes == 1 else 'hold'} by all judges with intervals "
        f"above 0, {direction} in direction alone, and in {no} the opposite holds with intervals below 0; the judges "
        "do not tell the others apart, or find the opposite in direction alone. Differences in points of *first of "
        f"{CANDIDATES}*, which decides, and of *own colours*.\n\n"
    )
    head = ["", "n", *(f"{name}, {judge}" for name in ("first", "colours") for judge in judges), "holds"]
    return summary + lines(head, rows)


def section(setting: dict[str, Any], pool: Pool) -> str:
    """All of it."""
    parts = [
        HEAD.format(
            **{name: setting[name] for name in ("model", "reader", "steps", "copies")},
            score=SCORES[setting["score"]],
            others=CANDIDATES - 1,
            chance=100 * CHANCE["right"],
            things=100 * CHANCE["both"],
        ),
        *(
            f"**{judge} finds the captions of real scenes no surer than by chance: what it says of rows is void.**\n"
            for judge in (pool.table([REAL]).blind(REAL) if pool.has(REAL) else [])
        ),
        "![Pictures by row](results-inversion.webp)\n",
        *filter(None, (claims(pool, whose) for whose in ("paper", "ours"))),
        "The paper's own figures stand beside ours where there are any: T2I-CompBench's colour / shape / texture of "
        "Stable Diffusion 1.5 at 512 pixels, which are not the same measure, so that directions alone compare. Seconds "
        "are those of a busy machine.\n",
    ]
    for title, cells in TABLES.items():
        present = [cell for cell in cells if cell in pool.cells]
        bounds = [cell for cell in (REAL, NOISE) if cell in pool.cells]
        if set(present) - {"both"}:
            if not pool.has(*present, *bounds):
                raise UsageError(f"{', '.join(present)} have no prompt and seed in common: leave out a run")
            table = pool.table([*present, *bounds])
            parts.append(f"### {title}\n\n" + rates(table, [*present, *bounds]))
            if "Tables 1 and 2" in title:
                parts.append("The guide's own losses of the same pictures:\n\n" + losses(table, [*present, *bounds]))
    return "\n".join(parts)


def own_part(page: str) -> str:
    """The section of a page with its markers, "" where it has none: what another tool that writes the page keeps."""
    _, found, after = page.partition(BEGIN)
    body, closed, _ = after.partition(END)
    return f"{BEGIN}{body}{END}" if found and closed else ""


def replaced(page: str, body: str) -> str:
    """The page with the section between its markers, or at its end where it has none."""
    before, found, after = page.partition(BEGIN)
    if found and END not in after:
        raise UsageError(f"the page has {BEGIN!r} and no {END!r} after it: put it where the section ends")
    tail = after.partition(END)[2] if found else "\n"
    return f"{before.rstrip()}\n\n{BEGIN}\n\n{body.strip()}\n\n{END}{tail}"


def main(folders: Sequence[Path]) -> None:
    setting, pool = read(folders)
    save_image(load_image(folders[0] / "contact_sheet.png"), DOCS / "results-inversion.webp")
    path = DOCS / "results.md"
    page = path.read_text(encoding="utf-8") if path.is_file() else "# Referees plugged into generators\n"
    with atomic_write(path, "w") as file:
        file.write(replaced(page, section(setting, pool)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    main(parser.parse_args().folders)
