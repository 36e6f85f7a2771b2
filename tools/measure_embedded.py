"""Measure the embedded referees, sign their cards, and write docs/embedded.md and docs/gradients.png.

    python tools/measure_embedded.py             # about 25 minutes on two cores; resumes
    python tools/measure_embedded.py --only pag  # the PAG scores alone, about 10: docs/pag.png and their section

Guides are measured on styles that they never saw, clean and under PGD-20 at two radii, on two random subsets; judges
on the images that were held back from emoji-judge, among its 200 committed labels. PAG scores are everybody's, judged
by both judges, but nobody's by itself.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from robustclip import load_referee
from robustclip.data import load_split
from robustclip.data.emoji import load_labels
from robustclip.data.images import save_image, titled_grid
from robustclip.evaluation.evaluate import PULL, evaluate
from robustclip.evaluation.intervals import Interval, rate
from robustclip.evaluation.pag import NAMES, draw_pairs, pull, read_spec
from robustclip.evaluation.report import CLEAN, LOW_FREQUENCY, REPORT_FILE, Report, Row
from robustclip.referees.similarity import embed_texts
from robustclip.runs.files import atomic_write
from robustclip.runs.rng import generator

DOCS = Path(__file__).parents[1] / "docs"
GUIDES = ["emoji-vanilla-long", "emoji-vanilla", "emoji-robust"]  # the control first: others are compared with it
JUDGES = ["emoji-judge", "emoji-judge-disjoint"]
ATTACKS = ["l2:1.5@20", "l2:3@20"]
SEEDS = (0, 1)

PAG_SPLIT = "judge-heldback"
PAG_TITLE = "## PAG score"
PULLS = ["l2:4@20", "l2:8@20", "l2:20@20"]  # of the curve, beside PULL
CURVE = 200  # images
COLUMNS = 5  # of the picture


def main(limit: int, work: Path) -> None:
    measure_all(limit, work)
    measure_pag(work)


def measure_all(limit: int, work: Path) -> None:
    """All but the PAG scores, whose section stays as it is."""
    reports = [
        measured(
            work / f"guides-{seed}",
            GUIDES,
            data="emoji/unseen-styles",
            tasks=["zero-shot", "gradients"] if seed == SEEDS[0] else ["zero-shot"],
            attack=ATTACKS,
            limit=limit,
            seed=seed,
        )
        for seed in SEEDS
    ]
    judged = [
        measured(work / f"judges-{split}", JUDGES, data=f"emoji/{split}", labels="present")
        for split in ("judge-heldback", "heldout-concepts")
    ]
    shutil.copyfile(work / f"guides-{SEEDS[0]}" / "gradients.png", DOCS / "gradients.png")
    page_file = DOCS / "embedded.md"
    _, title, section = page_file.read_text(encoding="utf-8").partition(f"\n{PAG_TITLE}\n")
    with atomic_write(page_file, "w") as file:
        file.write(page(reports, *judged) + title + section)


def measured(folder: Path, referees: list[str], *, sign: bool = True, **settings: Any) -> Report:
    """An evaluation that is signed and kept in `folder`, or the one that is there already."""
    if not (folder / REPORT_FILE).exists():
        evaluate(referees, sign=sign, out=folder, **settings)
    values = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    return Report(values["setting"], values["threats"], [Row(**row) for row in values["rows"]], values["notes"])


def page(reports: list[Report], judged: Report, judged_unseen: Report) -> str:
    """The tables in Markdown."""
    setting = reports[0].setting
    lines = [
        "# Results of the embedded referees",
        "",
        "Made by `python tools/measure_embedded.py` on the committed files. 95% intervals in brackets: Wilson for",
        "rates, bootstrap for shares, paired bootstrap for differences.",
        "",
        f"## Guides on {setting['data']}, among all labels",
        "",
        f"n = {setting['images']} images for each seed of subset, random start and noise; float32.",
        "",
        *(f"- `{attack}`: {threat}" for attack, threat in reports[0].threats.items()),
        "",
        "| seed | images | metric |" + "".join(f" {name} |" for name in GUIDES),
        "|---|---|---|" + "---|" * len(GUIDES),
    ]
    for seed, report in zip(SEEDS, reports, strict=True):
        for attack in (CLEAN, *ATTACKS, *(f"random {attack.partition('@')[0]}" for attack in ATTACKS)):
            for metric in ("top-1", "top-5"):
                rows = [report.row(name, metric, attack) for name in GUIDES]
                lines.append(f"| {seed} | {attack} | {metric} |" + "".join(f" {percent(row)} |" for row in rows))
        difference = report.row("emoji-robust", "top-5", CLEAN, "difference")
        lines.append(f"| {seed} | clean | top-5, minus {GUIDES[0]}'s | | | {percent(difference, '+')} |")
    shares = [reports[0].row(name, LOW_FREQUENCY) for name in GUIDES]
    lines += [
        "| 0 | clean | energy of the input gradient below 1/8 cycle per pixel |"
        + "".join(f" {row.value:.3f} ({row.low:.3f} to {row.high:.3f}) |" for row in shares),
        "",
        "![Input gradients](gradients.png)",
        "",
        "## Judges",
        "",
        "Top-1 among the labels of the images at hand. Held-back images are of the 200 committed labels, two of each,",
        "that emoji-judge never saw; emoji-judge-disjoint saw those that are drawn in the unseen styles. Held-out",
        "concepts were seen by nobody in any style.",
        "",
        "| images | n |" + "".join(f" {name} |" for name in JUDGES),
        "|---|---|" + "---|" * len(JUDGES),
    ]
    for report in (judged, judged_unseen):
        [metric] = {row.metric for row in report.rows if row.metric.startswith("top-1")}
        rows = [report.row(name, metric) for name in JUDGES]
        data = report.setting["data"]
        lines.append(f"| {data}, {metric} | {rows[0].n} |" + "".join(f" {percent(row)} |" for row in rows))
    return "\n".join(lines) + "\n"


def measure_pag(work: Path) -> None:
    """PAG scores of all five onto their cards; the last section of docs/embedded.md, and docs/pag.png."""
    data = f"emoji/{PAG_SPLIT}"
    guides = {judge: measured(work / f"pag-{judge}", GUIDES, data=data, tasks=["pag"], judge=judge) for judge in JUDGES}
    others = {
        judge: measured(work / f"pag-of-{judge}", [judge], data=data, tasks=["pag"], judge=other)
        for judge, other in zip(JUDGES, reversed(JUDGES), strict=True)
    }
    curve = {
        spec: measured(
            work / f"pag-{read_spec(spec).eps:g}",
            [GUIDES[0], GUIDES[-1]],
            sign=False,
            data=data,
            tasks=["pag"],
            pag=spec,
            limit=CURVE,
        )
        for spec in PULLS
    }
    halves = {
        (judge, known): [half(work / f"pag-{judge}", name, in_known_styles=known) for name in GUIDES]
        for judge in JUDGES
        for known in (True, False)
    }
    curve = dict(sorted({**curve, PULL: guides[JUDGES[0]]}.items(), key=lambda item: read_spec(item[0]).eps))
    lines = [*pag_table(guides, halves), *curve_table(curve), *judges_table(others)]
    page_file = DOCS / "embedded.md"
    before = page_file.read_text(encoding="utf-8").partition(f"\n{PAG_TITLE}\n")[0]
    with atomic_write(page_file, "w") as file:
        file.write("\n".join([before, PAG_TITLE, "", *lines]) + "\n")
    save_image(pag_picture(), DOCS / "pag.png")


def half(folder: Path, guide: str, *, in_known_styles: bool) -> Interval:
    """The PAG score in the styles that the guides were trained on, or in those that they never saw."""
    known = set(load_labels("guide-styles").ids)
    answers = map(json.loads, (folder / "answers.jsonl").read_text(encoding="utf-8").strip().split("\n"))
    mine = [a for a in answers if (a["referee"], a["attack"]) == (guide, PULL)]
    return rate([a["rank"] == 0 for a in mine if (a["id"] in known) == in_known_styles])


def pag_table(reports: dict[str, Report], halves: dict[tuple[str, bool], list[Interval]]) -> list[str]:
    """The scores of all guides by each judge, with what stands beside them."""
    setting = reports[JUDGES[0]].setting
    lines = [
        f"Each of {setting['images']} images of {setting['data']} is pulled towards the name of another by a guide:",
        f"targeted PGD on its cosine, `{PULL}` ({reports[JUDGES[0]].threats[PULL]}), from the image",
        f"itself. A judge then chooses among {NAMES} names, the image's own and the target among them; the score is",
        "how often its first choice is the target. Noise has the full radius, so that no pull is longer.",
        "",
        "Who was trained on the very images: emoji-judge on none; the guides on the half in their own styles, and",
        "emoji-judge-disjoint on the other half, in the unseen styles. So by emoji-judge in unseen styles neither side",
        "was; by emoji-judge-disjoint in the guides' styles the judge was not.",
        "",
        "| judge | images | n |" + "".join(f" {name} |" for name in GUIDES),
        "|---|---|---|" + "---|" * len(GUIDES),
    ]
    for judge, report in reports.items():
        [metric] = {row.metric for row in report.rows}
        for attack in (CLEAN, f"random {PULL.partition('@')[0]}", PULL):
            rows = [report.row(name, metric, attack) for name in GUIDES]
            lines.append(f"| {judge} | {attack} | {rows[0].n} |" + "".join(f" {percent(row)} |" for row in rows))
        paired = [report.row(name, metric, PULL, "difference") for name in GUIDES[1:]]
        cells = "".join(f" {percent(row, '+')} |" for row in paired)
        lines.append(f"| {judge} | {PULL}, minus {GUIDES[0]}'s | {paired[0].n} | |{cells}")
        for known, styles in ((True, "the guides'"), (False, "unseen")):
            found = halves[judge, known]
            cells = "".join(f" {percent(one)} |" for one in found)
            lines.append(f"| {judge} | {PULL}, in {styles} styles | {found[0].n} |{cells}")
    return [*lines, "", "![Images pulled towards other names](pag.png)", ""]


def curve_table(reports: dict[str, Report]) -> list[str]:
    """Scores against the radius of the pull."""
    names = [GUIDES[0], GUIDES[-1]]
    lines = [
        "By the radius (emoji-judge; other than above on a part of these images, drawn by the seed):",
        "",
        "| pull | n | noise |" + "".join(f" {name} |" for name in names) + " paired difference |",
        "|---|---|---|---|---|---|",
    ]
    for spec, report in reports.items():
        [metric] = {row.metric for row in report.rows}
        rows = [report.row(names[0], metric, f"random {spec.partition('@')[0]}")]
        rows += [report.row(name, metric, spec) for name in names]
        difference = percent(report.row(names[1], metric, spec, "difference"), "+")
        cells = "".join(f" {percent(row)} |" for row in rows)
        lines.append(f"| {report.threats[spec]} | {rows[0].n} |{cells} {difference} |")
    return [*lines, ""]


def judges_table(reports: dict[str, Report]) -> list[str]:
    """The judges as guides, each judged by the other."""
    lines = [
        "The judges as guides, each judged by the other:",
        "",
        f"| guide | judge | clean | random {PULL.partition('@')[0]} | {PULL} |",
        "|---|---|---|---|---|",
    ]
    for judge, report in reports.items():
        [metric] = {row.metric for row in report.rows}
        rows = [report.row(judge, metric, attack) for attack in (CLEAN, f"random {PULL.partition('@')[0]}", PULL)]
        lines.append(f"| {judge} | {report.setting['judge']['name']} |" + "".join(f" {percent(row)} |" for row in rows))
    return lines


def pag_picture() -> torch.Tensor:
    """Images drawn by the seed, not chosen, and where two guides pull them."""
    split = load_split("emoji", PAG_SPLIT)
    truths = [split.label_names[label] for label in split.labels.tolist()]
    pairs = draw_pairs(truths, split.ids, seed=0)
    drawn = torch.randperm(len(truths), generator=generator(0, "PAG picture"))[:COLUMNS]
    images, targets = split.images[drawn], pairs.targets[drawn]
    rows = [images]
    guides = [GUIDES[0], GUIDES[-1]]
    for name in guides:
        guide = load_referee(name)
        rows.append(pull(guide, images, embed_texts(guide, pairs.names)[targets], read_spec(PULL)))
    titles = [f"{truths[i]}, to {pairs.names[t]}" for i, t in zip(drawn.tolist(), targets.tolist(), strict=True)]
    levels = (torch.cat(rows) * 63).round() / 63  # a quarter of them: noise does not compress
    tiles = levels.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return titled_grid(["image", *guides], titles, tiles)


def percent(row: Row | Interval, sign: str = "") -> str:
    return f"{100 * row.value:{sign}.1f}% ({100 * row.low:{sign}.1f} to {100 * row.high:{sign}.1f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=500, help="images for each seed (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/measured"), help="evaluations that are kept, to resume")
    parser.add_argument("--only", choices=["pag"], help="measure these alone, and leave the rest of the page")
    arguments = parser.parse_args()
    if arguments.only:
        measure_pag(arguments.work)
    else:
        main(arguments.limit, arguments.work)
