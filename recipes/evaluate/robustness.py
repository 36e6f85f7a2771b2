"""Compare objectives, threat models, attack steps and towers at equal training budget, in the embedded world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from robustclip import evaluate, recipes
from robustclip.attacks.spec import AttackSpec
from robustclip.data.emoji import embedded_prompts, some_prompts
from robustclip.data.images import save_image
from robustclip.errors import UsageError
from robustclip.evaluation.generation.grids import PromptRecognition, overview, paint_set, resumed_rows
from robustclip.evaluation.generation.results import Results
from robustclip.evaluation.intervals import Interval, plain
from robustclip.evaluation.named import load_named
from robustclip.evaluation.report import REPORT_FILE
from robustclip.flags import TableFlags, flat
from robustclip.robustification.monitor import REFEREE
from robustclip.runs import terminal
from robustclip.runs.devices import pick_device
from robustclip.runs.files import read_json, write_json, write_text
from robustclip.runs.folder import RECORD, Run
from robustclip.signatures import typed, unknown

SPLIT: Final = "emoji/unseen-styles"
PAG_SPLIT: Final = "emoji/judge-heldback"  # which the judge has not seen either
STARTS: Final = {"ResNet": "emoji-vanilla", "ViT": "emoji-vit-vanilla"}
RESULT: Final = "result.json"
SAME: Final = ("steps", "batch_size", "lr", "eps", "images", "strong_attack", "prompts", "seed", "quick")
"""What the results of a resumed run depend on."""


@dataclass(frozen=True)
class Row:
    """A way to train: what it changes of the recipe emoji (or, for `clean`, of the training without attack)."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    tower: str = "ResNet"
    clean: bool = False
    longer: float = 1.0
    headline: bool = False


ROWS: Final = [
    Row("vanilla", clean=True, headline=True),
    Row("clip", {"objective": "clip"}, headline=True),
    Row("text-bank", headline=True),
    Row("fare", {"objective": "fare"}),
    Row("tecoa", {"objective": "tecoa"}),
    Row("trades", {"objective": "trades"}),
    Row("anchored", {"anchor": 1.0}),
    Row("eps-0.5", {"eps": 0.5}),
    Row("eps-3", {"eps": 3.0}),
    Row("linf", {"norm": "linf", "eps": 4 / 255}),
    Row("pgd-1", {"attack_steps": 1, "step_size": 1.25}),
    Row("pgd-5", {"attack_steps": 5}),
    Row("vanilla-equal-time", clean=True, longer=7 / 3),
    Row("vit-vanilla", tower="ViT", clean=True),
    Row("vit-text-bank", tower="ViT"),
    Row("vit-clip", {"objective": "clip"}, tower="ViT"),
]
"""The centre is `text-bank`: L2 eps 1.5, PGD-2, a ResNet; every other row changes what its name says. Step sizes are in
units of eps. A step with PGD-2 costs 7/3 of one without (planning.costs), which is what `vanilla-equal-time` is given
more."""

SMALL: Final = {"seeds": 1, "images": 8, "prompts": 0, "strong_attack": "apgd-ce:2", "steps": 20, "batch_size": 16}
QUICK: Final = SMALL | {"rows": [row.name for row in ROWS[:2]]}


def recipe(
    *,
    rows: Annotated[list[str], "rows to train and measure; default: all"] = [],  # noqa: B006  (never changed)
    seeds: Annotated[PositiveInt, "training seeds of the headline rows; other rows use one"] = 3,
    steps: Annotated[PositiveInt, "updates per row"] = 150,
    batch_size: PositiveInt = 128,
    lr: PositiveFloat = 1e-3,
    eps: PositiveFloat = 1.5,
    images: Annotated[PositiveInt, "images of unseen styles, and as many held-back ones for the PAG score"] = 100,
    strong_attack: Annotated[str, "attack name, as after the @ of --attack"] = "autoattack-light",
    prompts: Annotated[NonNegativeInt, "prompts for R-Precision; 0 skips it"] = 24,
    measure: Annotated[bool, "evaluate after training, or train only"] = True,
    common: TableFlags = TableFlags(),
) -> dict[str, Any]:
    """Train and measure the embedded referees with every objective, on equal samples.

    robustclip reproduce robustness

    Every row starts at emoji-vanilla (emoji-vit-vanilla) and sees the same `--steps` batches; `vanilla-equal-time` gets
    the training time of the others instead. Measured on styles that no model was trained on, among the labels that the
    images have: accuracy clean, under PGD-20x3 and under the strong attack; PAG score, low-frequency share, and
    R-Precision of paintings, by emoji-judge. About three hours on two cores; `--resume` goes on where it was stopped.
    Writes result.json for each row and seed, and table.md.
    """
    arguments = flat(locals())
    if common.resume is not None:
        arguments["rows"] = rows = resumed_rows(common.resume, arguments, same=SAME, rows="rows")
    chosen = chosen_rows(rows)
    run = Run.start(common.out, common.resume, recipe="robustness", arguments=arguments, verb="reproduce")
    weak, pull = ("2", "l2:12@2") if common.quick else ("20x3", "l2:12@20")
    trained = common.where | {"steps": steps, "batch_size": batch_size, "lr": lr, "warmup": steps // 8, "ema": 0.98}
    trained |= {"evaluate_every": 0, "checkpoint_every": 50, "quick": common.quick}
    trained |= {"warmup": 5, "evaluate_every": 20} if common.quick else {}
    strong, weak = (str(AttackSpec.parse(f"l2:{eps}@{one}")) for one in (strong_attack, weak))  # as reports name them
    measured = Measuring(images, strong, weak, pull, prompts, common.device, quick=common.quick)
    with run:
        found: dict[str, dict[str, Any]] = {}
        for number in range(seeds):
            for row in chosen:
                if number and not row.headline:
                    continue
                folder = run.folder / "rows" / row.name / f"seed-{common.seed + number}"
                train(row, folder / "run", trained | {"seed": common.seed + number}, eps)
                if measure:
                    found[f"{row.name}, seed {common.seed + number}"] = measured(row, folder)
                    write_text(run.folder / "table.md", markdown(found))
        numbers = {name: one["robust"] for name, one in found.items()}
        run.finish(numbers)
        return {"out": str(run.folder), **numbers}


def markdown(found: Mapping[str, dict[str, Any]]) -> str:
    """A line for each row and seed: minutes of training, and every value with its 95% interval."""
    head, body = ["training", "minutes"], []
    for name, result in found.items():
        values = {
            f"{one['metric']}, {one['attack']}": Interval(*(one[key] for key in ("value", "low", "high", "n")))
            for one in result["rows"]
            if one["kind"] == "value"
        }
        values |= {metric: Interval(**one) for metric, one in result.get("painting", {}).items()}
        head += [title for title in values if title not in head]
        cells = [f"{plain(values[title])}, n = {values[title].n}" if title in values else "" for title in head[2:]]
        body.append([name, f"{result['seconds'] / 60:.1f}", *cells])
    return terminal.markdown(terminal.table(head, body))


def chosen_rows(names: list[str]) -> list[Row]:
    """The rows of these names, all where none is given. Raises UsageError for a name that no row has."""
    known = {row.name: row for row in ROWS}
    for name in names:
        if name not in known:
            raise UsageError(unknown(name, known, "row") + f" There are {', '.join(known)}", "unknown_row", given=name)
    return [known[name] for name in names] or ROWS


def train(row: Row, folder: Path, settings: dict[str, Any], eps: float) -> None:
    """Train a row into `folder`, unless that is done."""
    if (folder / RECORD).is_file() and Run.open(folder).status == "finished":
        return
    given = settings | {"start": STARTS[row.tower], "name": row.name, "steps": round(settings["steps"] * row.longer)}
    if row.tower == "ViT":
        given["lr"] = settings["lr"] / 2  # as recipes/robustify/emoji_vit.py has it
    if not row.clean:
        given |= {"eps": eps} | row.changes
        if "step_size" in row.changes:
            given["step_size"] = row.changes["step_size"] * given["eps"]
    place = {"resume": folder} if (folder / RECORD).is_file() else {"out": folder}
    recipe = recipes.find("pretrain/emoji-vanilla" if row.clean else "emoji", "robustify")
    typed(recipe.function)(**given, **place)


@dataclass(frozen=True)
class Measuring:
    """What is measured of each referee."""

    images: int
    strong: str
    attack: str
    pull: str
    prompts: int
    device: str
    quick: bool

    def __call__(self, row: Row, folder: Path) -> dict[str, Any]:
        """Measure the referee of a row, unless that is done; result.json's content."""
        if (folder / RESULT).is_file():
            return dict(read_json(folder / RESULT))
        referee = str(folder / "run" / REFEREE)
        common = {"data": SPLIT, "labels": "present", "device": self.device, "batch_size": 50}
        weak = self._evaluated(referee, folder / "weak", limit=self.images, attack=[self.attack], **common)
        strong = self._evaluated(referee, folder / "strong", limit=self.images, attack=[self.strong], **common)
        gradients = self._evaluated(referee, folder / "gradients", limit=self.images, tasks=["gradients"], **common)
        settings = common | {"data": PAG_SPLIT}
        pag = self._evaluated(referee, folder / "pag", limit=self.images, tasks=["pag"], pag=self.pull, **settings)
        record = Run.open(folder / "run").record
        found = {
            "row": row.name,
            "tower": row.tower,
            "seed": record["arguments"]["seed"],
            "seconds": record["notes"]["seconds"],
            "arguments": record["arguments"],
            "samples": record["numbers"]["samples"],
            "rows": [row for report in (weak, strong, gradients, pag) for row in report["rows"]],
            "setting": {"attack": self.attack, "strong": self.strong, "data": SPLIT},
        }
        if self.prompts:
            found["painting"] = self._painted(row.name, referee, folder)
        found["robust"] = next(
            one["value"]
            for one in found["rows"]
            if (one["kind"], one["attack"]) == ("value", self.strong) and one["metric"].startswith("top-1")
        )
        write_json(folder / RESULT, found)
        return found

    def _evaluated(self, referee: str, folder: Path, **settings: Any) -> dict[str, Any]:
        if not (folder / REPORT_FILE).is_file():
            evaluate([referee], out=folder, resume=True, **settings)  # it may have been stopped within an attack
        return dict(read_json(folder / REPORT_FILE))

    def _painted(self, name: str, referee: str, folder: Path) -> dict[str, Any]:
        """R-Precision of paintings of embedded prompts, by both judges among all prompts."""
        everything = [one.prompt for one in embedded_prompts()]
        texts = some_prompts(self.prompts)
        file = folder / "prompts.txt"
        write_text(file, "".join(f"{text}\n" for text in texts))
        settings = {"prompts": file, "device": self.device, "seed": 0, "save_frames": False, "quick": self.quick}
        painted = paint_set(folder / "paintings", settings | {"referee": [referee], "steps": 32, "batch_size": 24})
        results = Results()
        recognised = PromptRecognition(
            everything, load_named(["emoji-judge"], device=pick_device(self.device)), [10, 40]
        )
        results.add(name, texts, recognised(painted.images, texts))
        save_image(overview({name: painted.images}, texts), folder / "paintings.png")
        return {one.metric: vars(results.value(name, one)) for one in results.columns()}
