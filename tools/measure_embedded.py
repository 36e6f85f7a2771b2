"""Measure the embedded referees, sign their cards, and write docs/embedded.md and docs/gradients.png.

    python tools/measure_embedded.py             # about 15 minutes on two cores; resumes

Guides are measured on styles that they never saw, clean and under PGD-20 at two radii, on two random subsets; judges
on the images that were held back from emoji-judge, among its 200 committed labels.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from robustclip.evaluation.evaluate import evaluate
from robustclip.evaluation.report import CLEAN, LOW_FREQUENCY, REPORT_FILE, Report, Row
from robustclip.files import atomic_write

DOCS = Path(__file__).parents[1] / "docs"
GUIDES = ["emoji-vanilla-long", "emoji-vanilla", "emoji-robust"]  # the control first: others are compared with it
JUDGES = ["emoji-judge", "emoji-judge-disjoint"]
ATTACKS = ["l2:1.5@20", "l2:3@20"]
SEEDS = (0, 1)


def main(limit: int, work: Path) -> None:
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
    with atomic_write(DOCS / "embedded.md", "w") as file:
        file.write(page(reports, *judged))


def measured(folder: Path, referees: list[str], **settings: Any) -> Report:
    """An evaluation that is signed and kept in `folder`, or the one that is there already."""
    if not (folder / REPORT_FILE).exists():
        evaluate(referees, sign=True, out=folder, **settings)
    values = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    return Report(values["setting"], values["threats"], [Row(**row) for row in values["rows"]], values["notes"])


def page(reports: list[Report], judged: Report, judged_unseen: Report) -> str:
    """The tables in Markdown."""
    setting = reports[0].setting
    lines = [
        "# The embedded referees, measured",
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


def percent(row: Row, sign: str = "") -> str:
    return f"{100 * row.value:{sign}.1f}% ({100 * row.low:{sign}.1f} to {100 * row.high:{sign}.1f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=500, help="images for each seed (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/measured"), help="evaluations that are kept, to resume")
    arguments = parser.parse_args()
    main(arguments.limit, arguments.work)
