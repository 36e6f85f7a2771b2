"""A small report of two referees, with everything that a report can have."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from robustclip.evaluation.intervals import Interval
from robustclip.pages.report import About, Case, Line, Report, Version, View
from robustclip.runs.rng import generator

HOSTILE = "</script><script>window.bitten = 1</script> \"'&{{ 7 * 7 }} <img src=x onerror='window.bitten = 1'>"
CAPTIONS = ["a cat", HOSTILE, "a bird with one wing", "日本 \u202eليل"]
REFEREES = ("first", "second")


def report() -> Report:
    """Its numbers: `second` is better on clean images, and not clearly so under attack."""
    return Report(
        title="What they see",
        referees=[
            About("first", "gradcam", "layer3", "ab" * 32, {"name": "first", "note": "<b>bold</b>"}),
            About("second", "gradcam", "layer3", "cd" * 32, note="<i>a note</i>"),
        ],
        summary=[
            Line("pointing game", "clean", _numbers(0.5, 0.8), "higher", "percent"),
            Line("pointing game", "l2:1.5@20", _numbers(0.6, 0.65), "higher", "percent"),
            Line("score drop", "l2:1.5@20", _numbers(0.5, -0.2), "lower"),
        ],
        setting={"method": "gradcam", "threat": "L2 eps 1.5 at 64x64"},
        notes=["A <u>note</u>."],
        left_out=["broken.png is not a readable picture"],
        explanations={"pointing game": "whether the peak lies in the box"},
    )


def cases() -> Iterator[Case]:
    """Four, one of them not square; the first referee has no map of the second."""
    for index, text in enumerate(CAPTIONS):
        draws = generator(0, "case", index)
        height, width = (24, 40) if index == 2 else (32, 32)
        image, heat = torch.rand(3, height, width, generator=draws), torch.rand(height, width, generator=draws)
        views = [
            View(
                name,
                {
                    "clean": Version(
                        0.3 + 0.1 * index,
                        map=None if (name, index) == ("first", 1) else heat,
                        gradient=torch.rand(3, height, width, generator=draws),
                    ),
                    "attacked": Version(0.1, map=heat.flip(0), image=(image + 0.02).clamp(0, 1)),
                    "noisy": Version(float("nan") if index == 0 else 0.3, map=heat),
                },
                numbers={"rank correlation": None if index == 0 else 1 - 0.2 * index, "pointing game": index == 1},
                why="zero everywhere" if (name, index) == ("first", 1) else "",
            )
            for name in REFEREES
        ]
        yield Case(f"{index}.png", image, text, views, f"not {text}", (4, 8, 20, 24) if index == 0 else None, image)


def _numbers(first: float, second: float) -> dict[str]:
    return {
        name: Interval(value, value - 0.05, value + 0.05, 400)
        for name, value in zip(REFEREES, (first, second), strict=True)
    }
