"""Measure the heat maps of the embedded guides, sign their cards, and write docs/maps.md.

    python tools/measure_explanations.py   # about half an hour on two cores; resumes

On scenes of 2 to 4 drawings in styles that no guide was trained on: does a map lie on what the text names, is it true
of its referee, and does an attack move it? A ResNet and a ViT, each robust and with its control of equal training time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from measure_embedded import DOCS, measured

from robustclip import load_referee
from robustclip.data.scenes import Scene, compose_scenes
from robustclip.evaluation import intervals
from robustclip.evaluation.intervals import Interval
from robustclip.evaluation.maps import OF_BLOB, told_by
from robustclip.evaluation.report import CLEAN, Report, Row
from robustclip.explanation.maps import Mapper
from robustclip.explanation.measures import pointing_hit, rank_correlation
from robustclip.runs.files import atomic_write

PAIRS: Final = {
    "ResNet": ("emoji-vanilla-long", "emoji-robust"),
    "ViT": ("emoji-vit-vanilla-long", "emoji-vit-robust"),
}
ATTACK: Final = "l2:1.5@20"
SCENES: Final = "emoji/scenes"
# (pair, method, layer, tasks, under attack, signed)
MEASURED: Final[list[tuple[str, str, str | None, list[str], bool, bool]]] = [
    ("ResNet", "gradcam", None, ["maps", "faithfulness"], True, True),
    ("ViT", "gradcam", None, ["maps", "faithfulness"], True, True),
    ("ResNet", "gradient", None, ["maps", "faithfulness"], True, True),
    ("ViT", "gradient", None, ["maps", "faithfulness"], True, True),
    ("ViT", "gradcam-cls", None, ["maps", "faithfulness"], True, False),
    ("ResNet", "layercam", None, ["maps"], True, False),
    ("ResNet", "smoothgrad", None, ["maps"], False, False),
    ("ResNet", "gradcam", "trunk.layer3.0", ["maps"], True, False),
    ("ResNet", "gradcam", "trunk.layer4.0", ["maps"], True, False),
]
STABILITY: Final = ("rank correlation", "overlap of top 20%", "centre shift")
LOCALISATION: Final = ("pointing game", "energy in box")
FAITHFULNESS: Final = ("deletion", "insertion", "ROAD")


def main(limit: int, work: Path) -> None:
    reports = []
    for pair, method, layer, tasks, attacked, sign in MEASURED:
        settings: dict[str, Any] = {"layer": layer} if layer else {}
        reports.append(
            measured(
                work / f"{pair}-{method}{f'-{layer}' if layer else ''}",
                list(PAIRS[pair]),
                sign=sign,
                data=SCENES,
                tasks=tasks,
                attack=[ATTACK] if attacked else [],
                method=method,
                limit=limit,
                **settings,
            )
        )
    vits = measured(
        work / "ViT",
        [*PAIRS["ViT"], "emoji-vit-vanilla"],
        data="emoji/unseen-styles",
        tasks=["zero-shot", "gradients"],
        attack=[ATTACK],
        limit=500,
    )
    with atomic_write(DOCS / "maps.md", "w") as file:
        file.write(page(reports, vits, limit))


def page(reports: list[Report], vits: Report, limit: int) -> str:
    """The tables in Markdown."""
    scenes = compose_scenes()
    lines = [*HEAD.format(n=limit, threat=reports[0].threats[ATTACK]).splitlines(), ""]
    for pair, names in PAIRS.items():
        mine = [report for (of, *_), report in zip(MEASURED, reports, strict=True) if of == pair]
        lines += [f"## {pair}", "", f"| map | images | number | {' | '.join(names)} | the second minus the first |"]
        lines.append("|---|---|---|---|---|---|")
        for report in mine:
            lines += list(table(report, names))
        lines.append("")
    lines += [
        "## Objects pointed at",
        "",
        *recognition(scenes),
        "",
        "## The ViTs as referees",
        "",
        *as_referees(vits),
        "",
    ]
    return "\n".join(lines)


def table(report: Report, names: tuple[str, str]) -> list[str]:
    """A report's rows: localisation and faithfulness of clean images, then what an attack and noise do."""
    lines = []
    for row in report.rows:
        if row.kind != "value" or row.referee != names[0] or row.metric.endswith(OF_BLOB):
            continue
        told = told_by(row.metric)
        assert told is not None
        what = row.metric.rpartition(" (")[0]
        layer = report.setting["layer"]
        cells = [cell(report.row(name, row.metric, row.attack)) for name in names]
        blob = next(
            (f" (blob: {report.row(names[0], what + OF_BLOB).value:.3f})" for _ in [0] if has(report, what + OF_BLOB)),
            "",
        )
        less = cell(report.row(names[1], row.metric, row.attack, "difference"), "+") if not_control(row) else ""
        method = f"{told.method} at {layer}" if layer else told.method
        lines.append(f"| {method} | {row.attack} | {what}{blob} | {' | '.join(cells)} | {less} |")
    return lines


def as_referees(report: Report) -> Iterator[str]:
    """Accuracy and gradients of the ViTs, as docs/embedded.md has them of the ResNets."""
    names = list(dict.fromkeys(row.referee for row in report.rows))
    yield f"On {report.setting['data']}, among all labels, n = {report.setting['images']}, seed 0, float32."
    yield ""
    yield f"| images | number | {' | '.join(names)} |"
    yield f"|---|---|{'---|' * len(names)}"
    for row in report.rows:
        if row.kind == "value" and row.referee == names[0]:
            cells = [cell(report.row(name, row.metric, row.attack)) for name in names]
            yield f"| {row.attack} | {row.metric} | {' | '.join(cells)} |"


def has(report: Report, metric: str) -> bool:
    """Whether a report has a metric."""
    return any(row.metric == metric for row in report.rows)


def not_control(row: Row) -> bool:
    """Whether referees are compared there."""
    return row.attack == CLEAN or "@" in row.attack


def cell(row: Row, sign: str = "") -> str:
    """A number with its interval."""
    return f"{row.value:{sign}.3f} ({row.low:{sign}.3f} to {row.high:{sign}.3f})"


@torch.no_grad()
def recognition(scenes: list[Scene]) -> list[str]:
    """Whether referees know which of a scene's things is named; and whether a map points at any of them."""
    images, ids = torch.stack([scene.image for scene in scenes]), [scene.id for scene in scenes]
    chance = sum(1 / (1 + len(scene.others)) for scene in scenes) / len(scenes)
    area = sum(sum(size(box) for _, box in [("", scene.box), *scene.others]) for scene in scenes) / (
        len(scenes) * images.shape[-1] * images.shape[-2]
    )
    lines = [
        f"All {len(scenes)} scenes. Known: the named thing has the highest cosine of all things in the scene "
        f"(chance {chance:.1%}).",
        f"On a thing: the brightest point of a map lies in the box of any thing (their share of the area: {area:.1%}).",
        "",
        "A map that is always the same survives every attack: so there stands how alike (rank correlation) a scene's",
        "GradCAM maps for its text and for the next scene's text are, and the maps of a scene and of the next one.",
        "",
        "| referee | known | GradCAM on a thing | gradient on a thing | another text | another scene |",
        "|---|---|---|---|---|---|",
    ]
    for names in PAIRS.values():
        for name in names:
            referee = load_referee(name)
            known = []
            for scene in scenes:
                texts = referee.embed_texts([scene.text, *(other for other, _ in scene.others)])
                known.append(bool((referee.embed_images(scene.image[None]) @ texts.T).argmax() == 0))
            cells = [percent(intervals.rate(known))]
            own = referee.embed_texts([scene.text for scene in scenes])
            for method in ("gradcam", "gradient"):
                heat = Mapper(referee, method)(images, own, ids).maps
                hits = [
                    any(
                        bool(pointing_hit(one[None], torch.tensor([box])))
                        for box in (scene.box, *(box for _, box in scene.others))
                    )
                    for one, scene in zip(heat, scenes, strict=True)
                ]
                cells.append(percent(intervals.rate(hits)))
            mapper = Mapper(referee)
            heat = mapper(images, own, ids).maps
            for other in (mapper(images, own.roll(-1, 0), ids).maps, heat.roll(-1, 0)):
                alike = rank_correlation(heat, other)
                found = intervals.mean(alike[alike.isfinite()].numpy(), seed=0)
                cells.append(f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def size(box: tuple[int, int, int, int]) -> int:
    """Pixels of a box."""
    return (box[2] - box[0]) * (box[3] - box[1])


def percent(found: Interval) -> str:
    """A rate with its interval."""
    return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"


HEAD: Final = """# Heat maps: localisation, stability, faithfulness

Made by `python tools/measure_explanations.py` on the committed files. n = {n} scenes of `emoji/scenes` (2 to 4
drawings in unseen styles on a background; the text is the name of one of them), seed 0, float32; fewer where a map is
empty. 95% intervals in brackets: Wilson for the pointing game, bootstrap for the rest, paired for differences.

The attack is CLIPAG's Eq. 4 (away from the text, towards "not" and the text), `l2:1.5@20`: {threat}; each referee is
attacked by itself. `random` is noise of the same norm. A blob in the middle, which knows nothing, has the number in
brackets after the metric's name (of deletion, insertion and ROAD by the first referee's cosines)."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=200, help="scenes")
    parser.add_argument("--work", type=Path, default=Path("runs/measure-explanations"))
    arguments = parser.parse_args()
    main(arguments.limit, arguments.work)
