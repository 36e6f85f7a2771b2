"""The embedded referees measured: accuracy, PAG scores, strong attacks, corruptions, heat maps and smoothing."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import PositiveInt

from robustclip import evaluate
from robustclip.errors import UsageError
from robustclip.evaluation.report import REPORT_FILE
from robustclip.flags import TableFlags, flat
from robustclip.runs.files import read_text, write_text
from robustclip.runs.folder import Run
from robustclip.signatures import unknown

UNSEEN, HELDBACK, SCENES = "emoji/unseen-styles", "emoji/judge-heldback", "emoji/scenes"
GUIDES: Final = ["emoji-vanilla-long", "emoji-vanilla", "emoji-robust"]
JUDGES: Final = ["emoji-judge", "emoji-judge-disjoint"]
RESNETS: Final = ["emoji-vanilla-long", "emoji-robust"]
VITS: Final = ["emoji-vit-vanilla-long", "emoji-vit-robust"]
PAIRS: Final = {"resnet": RESNETS, "vit": VITS}
SMOOTHED: Final = [RESNETS[0], *(f"{RESNETS[0]}~smooth:{sigma}x16" for sigma in (0.25, 0.5)), RESNETS[1]]
EPS: Final = "l2:1.5@20"
MAPS: Final[dict[str, Any]] = {"data": SCENES, "tasks": ["maps", "faithfulness"], "attack": [EPS], "limit": 200}
PAG: Final[dict[str, Any]] = {"data": HELDBACK, "tasks": ["pag"]}
ACCURACY: Final[dict[str, Any]] = {"data": UNSEEN, "tasks": ["zero-shot", "gradients"], "limit": 500}
DAMAGED: Final[dict[str, Any]] = {"data": UNSEEN, "tasks": ["corruptions"], "limit": 300}
STRONG: Final[dict[str, Any]] = {"data": UNSEEN, "attack": ["l2:1.5@20x3", "l2:1.5@autoattack"], "limit": 100}
MASKED: Final[dict[str, Any]] = {"data": UNSEEN, "labels": "present", "attack": [EPS], "masking": True, "limit": 40}
CERTIFIED: Final[dict[str, Any]] = {"data": UNSEEN, "tasks": ["certification"], "labels": "present", "limit": 24}
Evaluations = dict[str, tuple[list[str], dict[str, Any]]]
"""By name: the referees, of whom the first is the baseline, and the arguments of `evaluate`."""
SIGNED: Final[Evaluations] = {
    "guides": (GUIDES, ACCURACY | {"attack": [EPS, "l2:3@20"]}),
    "vits": ([*VITS, "emoji-vit-vanilla"], ACCURACY | {"attack": [EPS]}),
    "judges": (JUDGES, {"data": HELDBACK, "labels": "present"}),
    "judges-unseen": (JUDGES, {"data": "emoji/heldout-concepts", "labels": "present"}),
    **{f"pag-{judge}": (GUIDES, PAG | {"judge": judge}) for judge in JUDGES},
    **{f"pag-of-{one}": ([one], PAG | {"judge": other}) for one, other in zip(JUDGES, reversed(JUDGES), strict=True)},
    **{f"attacks-{tower}": (pair, STRONG) for tower, pair in PAIRS.items()},
    **{
        f"maps-{tower}-{method}": (pair, MAPS | {"method": method})
        for tower, pair in PAIRS.items()
        for method in ("gradcam", "gradient")
    },
}
OTHERS: Final[Evaluations] = {
    **{f"pag-at-{eps}": (RESNETS, PAG | {"pag": f"l2:{eps}@20", "limit": 200}) for eps in (4, 8, 20)},
    **{f"masking-{tower}": (pair, MASKED) for tower, pair in PAIRS.items()},
    **{f"corruptions-{tower}": (pair, DAMAGED) for tower, pair in PAIRS.items()},
    "maps-vit-gradcam-cls": (VITS, MAPS | {"method": "gradcam-cls"}),
    "maps-resnet-layercam": (RESNETS, MAPS | {"method": "layercam", "tasks": ["maps"]}),
    "maps-resnet-smoothgrad": (RESNETS, MAPS | {"method": "smoothgrad", "tasks": ["maps"], "attack": []}),
    "maps-resnet-layer3": (RESNETS, MAPS | {"tasks": ["maps"], "layer": "trunk.layer3.0"}),
    "maps-resnet-layer4": (RESNETS, MAPS | {"tasks": ["maps"], "layer": "trunk.layer4.0"}),
    "smoothed": (SMOOTHED, ACCURACY | {"limit": 50}),
    "smoothed-attacked": (SMOOTHED, {"data": UNSEEN, "labels": "present", "attack": [EPS], "limit": 16}),
    "smoothed-pag": (SMOOTHED, PAG | {"limit": 16}),
    **{f"certified-{sigma}": (RESNETS, CERTIFIED | {"sigma": sigma, "samples": 200}) for sigma in (0.25, 0.5)},
}
STUDIES: Final = SIGNED | OTHERS
QUICK: Final = {"studies": ["judges", "pag-at-4"], "limit": 4}


def recipe(
    *,
    studies: Annotated[list[str], "which, by name; else all"] = [],  # noqa: B006  (never changed)
    limit: Annotated[PositiveInt | None, "images of each, where the study does not say"] = None,
    sign: Annotated[bool, "write the headline numbers into the referees' cards"] = False,
    common: TableFlags = TableFlags(dtype="float32"),
) -> dict[str, Any]:
    """Evaluate the embedded referees as docs/embedded.md, attacks.md, maps.md and smoothing.md have them.

    robustclip reproduce embedded
    robustclip reproduce embedded --studies guides judges --seed 1

    Each study is one call of `evaluate`, kept in a folder of its own; `--resume` goes on, also within an attack. About
    three hours on two cores. Writes table.md. Paintings by smoothed guides: `reproduce ablation --others`.
    """
    arguments = flat(locals())
    for name in studies:
        if name not in STUDIES:
            raise UsageError(
                unknown(name, STUDIES, "study") + f" There are {', '.join(STUDIES)}", "unknown_study", given=name
            )
    run = Run.start(common.out, common.resume, recipe="embedded", arguments=arguments, verb="reproduce")
    with run:
        sections: list[str] = []
        for name in studies or STUDIES:
            referees, settings = STUDIES[name]
            folder = run.folder / "studies" / name
            if not (folder / REPORT_FILE).is_file():
                given = common.where | {"limit": limit, "sign": sign and name in SIGNED, "seed": common.seed} | settings
                given |= {"limit": limit} if common.quick else {}
                evaluate(referees, out=folder, resume=True, **given)
            sections.append(f"## {name}\n\n{read_text(folder / 'table.md')}")
            write_text(run.folder / "table.md", "\n".join(sections))
        run.finish()
        return {"out": str(run.folder)}
