"""AutoAttack, masking checks and corruptions of the embedded guides: signs their cards, writes docs/attacks.md.

    python tools/measure_robustness.py   # about half an hour on two cores; resumes

On styles that no guide was trained on; a ResNet and a ViT, each robust and with its control of equal training time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from measure_embedded import DOCS, percent

from robustclip.evaluation.corruptions import CORRUPTIONS, STRENGTHS
from robustclip.evaluation.evaluate import evaluate
from robustclip.evaluation.report import CLEAN, REPORT_FILE, Check, Report, Row
from robustclip.runs.files import atomic_write

PAIRS: Final = {
    "ResNet": ("emoji-vanilla-long", "emoji-robust"),
    "ViT": ("emoji-vit-vanilla-long", "emoji-vit-robust"),
}
DATA: Final = "emoji/unseen-styles"
WEAK, STRONG, WORST = "l2:1.5@20x3", "l2:1.5@autoattack", "worst l2:1.5"
NOISE: Final = "random l2:1.5"


def main(limit: int, masked: int, damaged: int, work: Path) -> None:
    attacked: dict[str, Report] = {}
    checked: list[Check] = []
    damage: dict[str, Report] = {}
    for pair, names in PAIRS.items():
        attacked[pair] = measured(work / f"{pair}-attacks", names, limit=limit, attack=[WEAK, STRONG], sign=True)
        damage[pair] = measured(work / f"{pair}-corruptions", names, limit=damaged, tasks=["corruptions"])
    for pair, names in PAIRS.items():
        settings = {"labels": "present", "attack": ["l2:1.5@20"], "masking": True}
        checked += measured(work / f"{pair}-masking", names, limit=masked, **settings).checks
    with atomic_write(DOCS / "attacks.md", "w") as file:
        file.write(page(attacked, checked, damage, masked))


def measured(folder: Path, names: tuple[str, str], **settings: Any) -> Report:
    """An evaluation kept in `folder`, or the one that is there already; one that was stopped goes on."""
    if not (folder / REPORT_FILE).exists():
        evaluate(list(names), data=DATA, out=folder, resume=True, **settings)
    found = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    report = Report(found["setting"], found["threats"], [Row(**row) for row in found["rows"]], found["notes"])
    report.checks = [Check(**check) for check in found.get("checks", [])]
    return report


def page(attacked: dict[str, Report], checked: list[Check], damage: dict[str, Report], masked: int) -> str:
    """The tables in Markdown."""
    first = attacked["ResNet"]
    lines = [HEAD.format(n=first.setting["images"], threat=first.threats[STRONG], masked=masked), "## Attacks", ""]
    for pair, (control, robust) in PAIRS.items():
        report = attacked[pair]
        lines += [
            f"| {pair}, top-1 among all labels | {control} | {robust} | the second minus the first |",
            "|---|---|---|---|",
        ]
        for attack in (CLEAN, NOISE, WEAK, STRONG, WORST):
            cells = [percent(report.row(name, "top-1", attack)) for name in (control, robust)]
            less = "" if attack == NOISE else percent(report.row(robust, "top-1", attack, "difference"), "+")
            lines.append(f"| {attack} | {' | '.join(cells)} | {less} |")
        lines.append("")
    lines += ["## Masking checks", "", "| referee | check | | numbers |", "|---|---|---|---|"]
    words = {True: "passed", False: "**failed**", None: "not applicable"}
    lines += [f"| {one.referee} | {one.name} | {words[one.passed]} | {one.told} |" for one in checked]
    lines += ["", "## Corruptions", ""]
    for pair, (control, robust) in PAIRS.items():
        report = damage[pair]
        n = report.setting["images"]
        lines += [
            f"| {pair}, top-1 (n = {n}) | {control} | {robust} | the second minus the first |",
            "|---|---|---|---|",
        ]
        for attack in (CLEAN, *CORRUPTIONS):
            cells = [percent(report.row(name, "top-1", attack)) for name in (control, robust)]
            less = percent(report.row(robust, "top-1", attack, "difference"), "+")
            what = f"{attack}, mean of {len(STRENGTHS)} strengths" if attack in CORRUPTIONS else attack
            lines.append(f"| {what} | {' | '.join(cells)} | {less} |")
        lines.append("")
    return "\n".join(lines)


HEAD: Final = """# Embedded referees under AutoAttack and common corruptions

Made by `python tools/measure_robustness.py` on the committed files; the numbers under attack are on their cards. Styles
that no guide was trained on, n = {n}, seed 0, {threat}.
AutoAttack is the standard ensemble (APGD-CE, targeted APGD-DLR and FAB with 9 targets, 100 steps each, Square with
5,000 queries) on the logits of all 1,631 labels. 95% intervals in brackets: Wilson for rates, paired bootstrap for
differences. `worst` counts an image only if it is right after both attacks. The masking checks are on {masked} images,
among the labels that these have. What checks and corruptions are: [robustness.md](robustness.md).
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=100, help="images under AutoAttack")
    parser.add_argument("--masked", type=int, default=40, help="images of the masking checks")
    parser.add_argument("--damaged", type=int, default=300, help="images of the corruptions")
    parser.add_argument("--work", type=Path, default=Path("runs/robustness-of-guides"))
    given = parser.parse_args()
    main(given.limit, given.masked, given.damaged, given.work)
