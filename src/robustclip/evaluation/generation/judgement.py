"""Report of `judge`: metrics with intervals as table, JSON and CSV, and each picture's scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Group
from rich.text import Text

from robustclip.errors import UsageError
from robustclip.evaluation.intervals import percent, plain
from robustclip.evaluation.report import Tabled, side_by_side
from robustclip.runs.files import write_json

Kind = Literal["value", "difference", "preference"]

REPORT_FILE: Final = "judgement.json"
PICTURES_FILE: Final = "pictures.json"
PAGE: Final = 140  # characters a line of table.txt
SHOWN: Final = 16  # digits of a sha256 in the table; all are in the JSON

TITLES: Final = {
    "r-precision": "R-Precision, %",
    "cosine": "cosine, x 100",
    "clipscore": "CLIPScore, 2.5 max(cos, 0)",
    "aesthetics": "aesthetics",
    "mutual-information": "mutual information, nats",
    "vqa-product": "questions, product of P(yes), %",
    "soft-tifa": "questions, geometric mean of P(yes), %",
    "detected-places": "places by a detector, %",
    "detected-numbers": "numbers by a detector, %",
    "3-in-1": "3-in-1, %",
    "pickscore": "PickScore",
    "hpsv2": "HPSv2",
    "imagereward": "ImageReward",
    "vqascore": "VQAScore",
    "frechet": "Fréchet distance of embeddings",
    "cmmd": "CMMD of embeddings",
    "label-score": "Inception Score's formula on zero-shot labels",
    "fid": "FID (Inception)",
    "inception-score": "Inception Score",
}
PERCENT: Final = (
    *("r-precision", "cosine", "vqa-product", "soft-tifa"),
    *("detected-places", "detected-numbers", "3-in-1"),
)


@dataclass(frozen=True)
class Figure:
    """One number of one judge about one set of pictures.

    kind        "value"; "difference": the set minus `against`, on the same prompts and seeds; "preference": the share
                of them on which the set scores higher than `against` (ties half).
    judge       the name of the judge's card and its `fingerprint` (referees.judging.fingerprint); or "Inception" and
                the SHA-256 of its weights' file.
    low, high   the 95% interval: Wilson's for rates and preferences, bootstrap for means, both paired where two sets
                are compared; jackknife for numbers of whole sets.
    candidates, chance   of R-Precision: how many texts were to choose from, and the rate of guessing.
    reference   the real pictures of a distance; `head` the file and SHA-256 of what predicts aesthetics.
    calibration   the judge's accuracy on questions of this kind with known answers.
    """

    pictures: str
    judge: str
    fingerprint: str
    metric: str
    kind: Kind
    against: str
    value: float
    low: float
    high: float
    n: int
    seed: int
    candidates: int | None = None
    chance: float | None = None
    reference: str | None = None
    head: str | None = None
    calibration: str | None = None


@dataclass
class JudgeReport(Tabled):
    """All figures of one judgement.

    `setting`: pictures, judges and options; `notes`: caveats; `pictures`: every judge's scores of every picture:
    {set: {prompt: {id: {"seed": ..., "judges": {judge: {metric: ...}}}}}}.
    """

    setting: dict[str, Any]
    figures: list[Figure]
    notes: list[str] = field(default_factory=list)
    pictures: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict, repr=False)
    page = PAGE
    file = REPORT_FILE

    def figure(
        self, metric: str, *, pictures: str | None = None, judge: str | None = None, kind: Kind = "value"
    ) -> Figure:
        """The only matching figure, e.g. `report.figure("r-precision", judge="emoji-judge")`.

        Raises UsageError if there is none, or several.
        """
        matching = [
            figure
            for figure in self.figures
            if (figure.metric, figure.kind) == (metric, kind)
            and pictures in (None, figure.pictures)
            and judge in (None, figure.judge)
        ]
        if len(matching) != 1:
            listed = matching or self.figures
            names = sorted({f"{one.metric} ({one.kind}) of {one.pictures} by {one.judge}" for one in listed})
            problem = "several figures are" if matching else "no figure is"
            message = f"{problem} {metric} ({kind}): there are {', '.join(names) or 'none'}"
            raise UsageError(message, "several_figures" if matching else "no_figure", metric=metric, figures=names)
        return matching[0]

    def __repr__(self) -> str:
        return f"<JudgeReport of {len(self.figures)} figures; .table() shows them>"

    def lines(self) -> Sequence[Figure]:
        return self.figures

    def table(self) -> Group:
        """Table for a terminal, grouped by metric, judges side by side; their hashes and the notes below."""
        judges = {figure.judge: figure.fingerprint for figure in self.figures}
        table = side_by_side(("metric", "pictures"), judges, self._lines())
        counts = " or ".join(str(n) for n in dict.fromkeys(figure.n for figure in self.figures))
        headline = f"pictures judged: 95% intervals, n = {counts}, seed {self.setting['seed']}"
        below = [f"{judge}: sha256 {digest[:SHOWN]}..." for judge, digest in judges.items()]
        below += [f"aesthetics: {head}" for head in dict.fromkeys(figure.head for figure in self.figures) if head]
        return Group(Text(headline, style="bold"), table, *(Text(line, style="dim") for line in below + self.notes))

    def _lines(self) -> dict[tuple[str, ...], dict[str, str]]:
        """The table's lines grouped by metric: values, then comparisons."""
        titles = list(dict.fromkeys(_title(figure) for figure in self.figures))
        kinds: list[Kind] = ["value", "difference", "preference"]
        lines: dict[tuple[str, ...], dict[str, str]] = {}
        for figure in sorted(self.figures, key=lambda one: (titles.index(_title(one)), kinds.index(one.kind))):
            lines.setdefault((_title(figure), _heading(figure)), {})[figure.judge] = _cell(figure)
        return lines

    def to_json(self) -> dict[str, Any]:
        """Everything but per-picture scores, as plain JSON values."""
        figures = [asdict(figure) for figure in self.figures]
        return {"setting": self.setting, "notes": self.notes, "figures": figures}

    def save(self, folder: str | Path) -> None:
        """Write judgement.json, judgement.csv, table.txt, table.md and pictures.json."""
        write_json(Path(folder) / PICTURES_FILE, self.pictures)
        super().save(folder)


def _title(figure: Figure) -> str:
    title = TITLES[figure.metric]
    if figure.candidates is not None and figure.chance is not None:
        title += f"\namong {figure.candidates}, chance {100 * figure.chance:.3g}"
    title += f"\n{figure.calibration}" if figure.calibration else ""
    return f"{title}\nto {figure.reference}" if figure.reference else title


def _heading(figure: Figure) -> str:
    if figure.kind == "value":
        return figure.pictures
    if figure.kind == "difference":
        return f"  {figure.pictures} minus {figure.against}"
    return f"  {figure.pictures} above {figure.against}, %"


def _cell(figure: Figure) -> str:
    sign = "+" if figure.kind == "difference" else ""
    return (percent if figure.kind == "preference" or figure.metric in PERCENT else plain)(figure, sign)
