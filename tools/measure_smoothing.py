"""Measure smoothed referees beside the base and the adversarially trained one; docs/smoothing.md and its picture.

    python tools/measure_smoothing.py                 # some 12 minutes on a free core; resumes
    python tools/measure_smoothing.py --attacked 100  # more images for what is dear

CLIPAG's question (section 3, Fig. 3): is a Gaussian mean of a vanilla CLIP's gradients as aligned as those of a CLIP
that was trained on adversarial examples? And randomised smoothing's own: how far are answers certified?
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from measure_embedded import DOCS, measured, percent

from robustclip import load_referee
from robustclip.data.examples import Examples, read_examples
from robustclip.data.images import save_image, titled_grid
from robustclip.evaluation.certificates import ALPHA, CHOOSING, largest_radius
from robustclip.evaluation.evaluate import PULL
from robustclip.evaluation.generation.grids import PromptRecognition, paint_set
from robustclip.evaluation.generation.results import Results
from robustclip.evaluation.judges import load_judges
from robustclip.evaluation.report import CLEAN, LOW_FREQUENCY, Report, Row
from robustclip.evaluation.setting import prompts_of
from robustclip.explanation.gradients import input_gradients, show_gradients
from robustclip.referees.similarity import embed_texts
from robustclip.runs.devices import pick_device
from robustclip.runs.files import atomic_write
from robustclip.runs.rng import generator

BASE: Final = "emoji-vanilla-long"
ROBUST: Final = "emoji-robust"
SIGMAS: Final = (0.25, 0.5)
SMOOTHED: Final = [f"{BASE}~smooth:{sigma:g}x16" for sigma in SIGMAS]
REFEREES: Final = [BASE, *SMOOTHED, ROBUST]  # the first is what others are compared with
JUDGE: Final = "emoji-judge"
DATA: Final = "emoji/unseen-styles"
PAG_DATA: Final = "emoji/judge-heldback"
ATTACK: Final = "l2:1.5@20"
CANDIDATES: Final = 10  # of R-Precision
PAINTED: Final = 12
SHOWN: Final = 6  # prompts in the picture
SEED: Final = 0


def main(limit: int, attacked: int, certified: int, samples: int, steps: int, work: Path) -> None:
    alone = partial(measured, referees=REFEREES, sign=False, seed=SEED)
    seen = alone(work / f"clean-{limit}", data=DATA, tasks=["zero-shot", "gradients"], limit=limit)
    hit = alone(
        work / f"attacked-{attacked}", data=DATA, tasks=["zero-shot"], attack=[ATTACK], labels="present", limit=attacked
    )
    pulled = alone(work / f"pag-{attacked}", data=PAG_DATA, tasks=["pag"], judge=JUDGE, limit=attacked)
    certificates = [
        measured(
            work / f"certified-{sigma:g}-{certified}-{samples}",
            [BASE, ROBUST],
            sign=False,
            data=DATA,
            tasks=["certification"],
            sigma=sigma,
            samples=samples,
            labels="present",
            limit=certified,
            seed=SEED,
        )
        for sigma in SIGMAS
    ]
    images, texts = distinct(read_examples(DATA, seed=SEED))
    paintings = painted(texts, steps, work / f"painted-{steps}")
    lines = [
        HEAD.format(pull=PULL, judge=JUDGE, attack=ATTACK, threat=hit.threats[ATTACK]),
        *properties(seen, hit, pulled),
        "",
        *certificate_tables(certificates),
        "",
        *precision(paintings, texts, steps),
        "",
        "![Gradients and paintings](smoothing.webp)",
        "",
        CAPTION,
    ]
    with atomic_write(DOCS / "smoothing.md", "w") as file:
        file.write("\n".join(lines) + "\n")
    save_image(picture(images[:SHOWN], texts[:SHOWN], paintings), DOCS / "smoothing.webp")


def distinct(examples: Examples) -> tuple[torch.Tensor, list[str]]:
    """Images drawn by the seed, not chosen, of as many different names as are painted; and these names."""
    names = prompts_of(examples)
    drawn = torch.randperm(len(examples), generator=generator(SEED, "smoothing's prompts")).tolist()
    first: dict[str, int] = {}
    for place in drawn:
        first.setdefault(names[place], place)
    chosen = list(first.values())[:PAINTED]
    return examples.images[torch.tensor(chosen)], [names[place] for place in chosen]


def painted(texts: Sequence[str], steps: int, folder: Path) -> dict[str, torch.Tensor]:
    """Each referee's paintings of the texts, from noise and without views, so that smoothing alone is what differs."""
    prompts = folder / "prompts.txt"
    if not prompts.exists():
        with atomic_write(prompts, "w") as file:
            file.writelines(f"{text}\n" for text in texts)
    settings: dict[str, Any] = {"prompts": prompts, "steps": steps, "augment": "none", "init": "noise", "ways": False}
    found = {}
    for number, name in enumerate(REFEREES):
        guide = (
            f"{name}-fresh" if name in SMOOTHED else name
        )  # new noise at each step, as Eq. 2's mean is over all noise
        place = folder / str(number)
        found[name] = paint_set(place, settings | {"referee": [guide], "seed": SEED, "batch_size": PAINTED}).images
    return found


def properties(seen: Report, hit: Report, pulled: Report) -> Iterator[str]:
    """What each referee is, a row a number."""
    yield f"| number | n | {' | '.join(REFEREES)} |"
    yield "|---|---|" + "---|" * len(REFEREES)
    yield line("low-frequency share of gradients", [seen.row(name, LOW_FREQUENCY) for name in REFEREES], share)
    yield line("top-1 among all labels, clean", [seen.row(name, "top-1") for name in REFEREES])
    [metric] = {row.metric for row in hit.rows if row.metric.startswith("top-1")}
    for attack in (CLEAN, f"random {ATTACK.partition('@')[0]}", ATTACK):
        yield line(f"{metric}, {attack}", [hit.row(name, metric, attack) for name in REFEREES])
    [metric] = {row.metric for row in pulled.rows}
    for attack in (CLEAN, f"random {PULL.partition('@')[0]}", PULL):
        yield line(f"{metric}, {attack}", [pulled.row(name, metric, attack) for name in REFEREES])


def certificate_tables(reports: Sequence[Report]) -> Iterator[str]:
    """Certified accuracy by radius; beside it how far it could go."""
    yield "## Certified accuracy"
    for sigma, report in zip(SIGMAS, reports, strict=True):
        samples = report.setting["samples"]
        farthest = largest_radius(sigma, samples, ALPHA)
        yield ""
        yield (
            f"sigma {sigma:g}, {CHOOSING} + {samples} noisy copies of each of {report.setting['images']} images, "
            f"alpha {ALPHA:g}, among the names of these images: at most l2:{farthest:.3f} can be certified."
        )
        yield ""
        yield f"| number | n | {BASE} | {ROBUST} |"
        yield "|---|---|---|---|"
        for metric in dict.fromkeys(row.metric for row in report.rows):
            yield line(metric, [report.row(name, metric, f"noise {sigma:g}") for name in (BASE, ROBUST)])


def precision(paintings: dict[str, torch.Tensor], texts: list[str], steps: int) -> Iterator[str]:
    """R-Precision of the paintings."""
    judges = load_judges([JUDGE], device=pick_device("auto"))
    recognised, results = PromptRecognition(texts, judges, [CANDIDATES], SEED), Results(SEED)
    for name, images in paintings.items():
        results.add(name, texts, recognised(images, texts))
    yield "## Paintings"
    yield ""
    yield (
        f"R-Precision among {CANDIDATES} names by {JUDGE}, of {len(texts)} prompts, {steps} steps from noise, without "
        f"views; chance {1 / CANDIDATES:.0%}. Smoothed guides see new noise at each step."
    )
    yield ""
    yield f"| | n | {' | '.join(paintings)} |"
    yield "|---|---|" + "---|" * len(paintings)
    rates = [results.value(name, column) for name in paintings for column in results.columns()]
    yield f"| R-Precision | {rates[0].n} | {' | '.join(map(percent, rates))} |"


def picture(images: torch.Tensor, texts: list[str], paintings: dict[str, torch.Tensor]) -> torch.Tensor:
    """Gradients towards the images' own names, and paintings of them."""
    rows, titles = [images], ["image"]
    for name in REFEREES:
        referee = load_referee(name)
        rows.append(show_gradients(input_gradients(referee, images, embed_texts(referee, texts))))
        titles.append(f"gradient, {short(name)}")
    for name, shown in paintings.items():
        rows.append(shown[: len(texts)])
        titles.append(f"painting, {short(name)}")
    return titled_grid(titles, texts, torch.cat(rows))


def short(name: str) -> str:
    """A referee in a picture."""
    return name.removeprefix(BASE).removeprefix("~") or "vanilla"


def line(title: str, rows: Sequence[Row], cell: Any = percent) -> str:
    """A row of a table."""
    return f"| {title} | {rows[0].n} | {' | '.join(map(cell, rows))} |"


def share(row: Row) -> str:
    """A number that is no percentage, with its interval."""
    return f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})"


HEAD: Final = """# Randomised smoothing: gradients, certified accuracy, synthesis

Made by `python tools/measure_smoothing.py` on the committed files; seed 0, float32. 95% intervals in brackets: Wilson
for rates, bootstrap for shares.

`emoji-vanilla-long~smooth:0.25x16` is that referee seen through Gaussian noise: the mean embedding of 16 noisy copies,
of standard deviation 0.25 on [0,1] pixels, whose gradient is the mean of the copies' gradients (CLIPAG, Eq. 2; the
baseline of its Fig. 3). `robustclip evaluate`, `synthesize` and `load_referee` take such names.

PGD (`{attack}`: {threat})
goes through the very noise that answers, so it attacks what is measured; noise of the same norm stands beside it. The
PAG score pulls images towards another name with `{pull}`, and {judge} says what it sees.

## What smoothing does to a referee
"""
CAPTION: Final = """Images drawn by the seed, not chosen; gradients of the cosine with the image's own name, each within
3 of its standard deviations; paintings from noise."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=50, help="images for gradients and clean accuracy")
    parser.add_argument("--attacked", type=int, default=16, help="images that are attacked and pulled")
    parser.add_argument("--certified", type=int, default=24, help="images that are certified")
    parser.add_argument("--samples", type=int, default=200, help="noisy copies of each of these")
    parser.add_argument("--steps", type=int, default=16, help="of a painting")
    parser.add_argument("--work", type=Path, default=Path("runs/measure-smoothing"))
    arguments = parser.parse_args()
    main(**vars(arguments))
