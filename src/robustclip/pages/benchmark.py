"""`robustclip benchmark`: one protocol over referees, measured by `evaluate` part by part, and its leaderboard."""

from __future__ import annotations

import hashlib
import json
import shlex
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError
from rich.console import Group
from rich.text import Text
from torch import Tensor

from robustclip import __version__, signatures
from robustclip.attacks.library import check_installed
from robustclip.attacks.spec import AttackSpec
from robustclip.data.embedded import EMBEDDED_DATA
from robustclip.data.examples import Examples, read_examples
from robustclip.errors import Interrupted, RunError, UsageError, faults_of, raise_faults
from robustclip.evaluation.corruptions import CORRUPTIONS
from robustclip.evaluation.evaluate import (
    MOST_AT_ONCE,
    Labels,
    Side,
    check_attack,
    checked,
    determining,
    digest_of,
    evaluate,
    load_pag_judge,
)
from robustclip.evaluation.generation.grids import folder_name
from robustclip.evaluation.generation.hacking import JUDGES, judged, paint
from robustclip.evaluation.intervals import percent, plain
from robustclip.evaluation.ledger import exact
from robustclip.evaluation.named import load_named
from robustclip.evaluation.report import CONTROL, PLAIN, REPORT_FILE, Tabled
from robustclip.evaluation.tasks import missing_for
from robustclip.evaluation.universal import read_universal
from robustclip.explanation.looks import CORRELATION
from robustclip.pages.rendering import environment
from robustclip.referees.defended import STATIC
from robustclip.runs import terminal
from robustclip.runs.devices import pick_device, pick_dtype
from robustclip.runs.distributed import decided, is_main, listed, place
from robustclip.runs.files import (
    check_writable,
    free,
    holds_something,
    is_file,
    parse_json,
    read_json,
    read_text,
    write_text,
)
from robustclip.runs.plain import first_of
from robustclip.signatures import typed

QUICK: Final = {"limit": 8}
SCHEMA: Final = 1
"""Version of a row; another one is needed where a field is added, removed, or means something else."""
FILE, PAGE = "leaderboard.json", "leaderboard.html"
LONGEST: Final = 2**28  # bytes of a leaderboard
LEVELS: Final = (1, 2, 4)  # of the L-inf eps, in /255; L2 has the same RMS
PULL: Final = 12 / (3 * 64 * 64) ** 0.5  # RMS of the PAG score's attack: l2:12 at 64x64, as in `evaluate`
Part = Literal["accuracy", "autoattack", "retrieval", "corruptions", "pag", "saliency", "synthesis"]


@dataclass(frozen=True)
class Entry:
    """A row: one number of one referee, and how it was measured. docs/benchmark.md has the fields."""

    schema: int
    referee: str
    weights: str
    data: str
    samples: str
    task: str
    metric: str
    attack: str
    threat: str
    value: float
    low: float
    high: float
    n: int
    seed: int
    labels: str
    templates: str
    command: str
    device: str
    dtype: str
    robustclip: str
    torch: str
    date: str
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)

    @property
    def title(self) -> str:
        """Of its column: "top-1, linf:2/255@20"."""
        return f"{self.metric}, {self.attack}"

    @property
    def line(self) -> tuple[object, ...]:
        """What the rows of a line of the leaderboard share."""
        return self.referee, self.weights, self.samples, self.seed, self.labels, self.templates, self.dtype

    @property
    def is_shown(self) -> bool:
        """Whether tables show it; the JSON file has all rows."""
        shown = {
            "zero-shot": self.metric.startswith("top-1"),
            "retrieval": self.metric.endswith("recall@1"),
            "corruptions": self.metric.startswith("top-1") and self.attack in CORRUPTIONS,
            "pag": bool(self.threat),
            "maps": self.metric.startswith(CORRELATION),
            "hacking": not self.metric.startswith("cosine"),
        }
        return shown.get(self.task, True) and not self.attack.startswith(CONTROL)

    def __str__(self) -> str:
        return plain(self) if self.task in PLAIN else percent(self)


@dataclass
class Leaderboard(Tabled):
    """Rows of any referees, data sets and machines; `folder` is where they were written."""

    rows: list[Entry]
    folder: Path | None = None
    file = FILE

    def lines(self) -> Sequence[Entry]:
        return self.rows

    def to_json(self) -> dict[str, Any]:
        """`{"schema": 1, "rows": [...]}`."""
        return {"schema": SCHEMA, "rows": [asdict(row) for row in self.rows]}

    def by_line(self) -> tuple[list[dict[str, Entry]], list[str]]:
        """The shown rows by column title, a line for each referee, weights, samples and setting; and all titles. A row
        that was measured again with other numbers starts another line."""
        lines: dict[tuple[object, ...], list[dict[str, Entry]]] = {}
        for row in self.rows:
            if row.is_shown:
                group = lines.setdefault(row.line, [])
                line = next((one for one in group if row.title not in one), None)
                if line is None:
                    group.append(line := {})
                line[row.title] = row
        titles = dict.fromkeys(row.title for row in self.rows if row.is_shown)
        return [line for group in lines.values() for line in group], list(titles)

    def table(self) -> Group:
        """A column for each line of the leaderboard, a row for each measure."""
        lines, titles = self.by_line()
        firsts = [next(iter(line.values())) for line in lines]
        heads = ["measure", "n", *(f"{first.referee} ({first.weights[:8]})" for first in firsts)]
        rows = []
        for title in titles:
            counts = dict.fromkeys(str(line[title].n) for line in lines if title in line)
            rows.append([title, " or ".join(counts), *(str(line.get(title, "")) for line in lines)])
        table = terminal.table(heads, rows, left=2)
        data = ", ".join(dict.fromkeys(row.data for row in self.rows))
        return Group(Text(f"{data}: percent; correlations, similarity, hacking: numbers; 95% intervals", "bold"), table)

    def save(self, folder: str | Path) -> None:
        """Write leaderboard.html, .csv and .json, table.txt and table.md."""
        self.folder = Path(folder)
        script = environment().get_template("leaderboard.js").render()
        digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
        lines, titles = self.by_line()
        page = environment().get_template("leaderboard.html.j2")
        html = page.render(lines=lines, titles=titles, script=script, digest=digest, version=__version__)
        write_text(self.folder / PAGE, html)
        super().save(folder)

    @classmethod
    def load(cls, folder: Path) -> Leaderboard:
        """Read a folder's leaderboard.json.

        Raises UsageError where there is none, for rows of another schema, whose referees are named, and for invalid
        rows.
        """
        path = folder / FILE
        if not is_file(path):
            raise UsageError(f"{str(folder)[:200]} has no {FILE}: give the --out of a benchmark", "no_leaderboard")
        values = parse_json(read_text(path, LONGEST), path)
        rows = values.get("rows") if isinstance(values, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UsageError(f"{path} is not a leaderboard: it has no list of rows", "no_leaderboard")
        if others := [
            f"{row.get('referee')} (schema {row.get('schema')})" for row in rows if row.get("schema") != SCHEMA
        ]:
            raise UsageError(
                f"{path} has rows of another schema: {', '.join(dict.fromkeys(others))[:500]}; this version merges "
                f"schema {SCHEMA}: measure them again",
                "other_schema",
            )
        try:
            return cls(TypeAdapter(list[Entry]).validate_json(json.dumps(rows), strict=True), folder)
        except ValidationError as error:
            raise UsageError(f"{path} has an invalid row: {first_of(error)}", "invalid_row") from error


def merged(rows: Sequence[Entry]) -> list[Entry]:
    """The rows in order, without those that have the line, measure and numbers of an earlier one."""
    kept: dict[tuple[object, ...], Entry] = {}
    for row in rows:
        kept.setdefault((row.line, row.task, row.title, row.value, row.low, row.high, row.n), row)
    return list(kept.values())


@typed
def benchmark(
    referees: Annotated[Sequence[str], "names, tags or folders; with --merge, folders of leaderboards"],
    *,
    data: Annotated[
        str, "as of evaluate: emoji/SPLIT, a folder, or wds/NAME of clip_benchmark"
    ] = "emoji/unseen-styles",
    parts: Annotated[Sequence[Part], "what to measure; default: all that the data allow"] = (),
    autoattack: Annotated[Literal["light", "standard"], "ensemble of the part autoattack"] = "light",
    attack: Annotated[
        Sequence[str],
        "further attacks of the part accuracy, as of evaluate, e.g. linf:4/255@universal:FILE",
        checked(AttackSpec.parse),
    ] = (),
    judge: Annotated[str | None, "judge of PAG score and synthesis; default for emoji sets: emoji-judge"] = None,
    labels: Annotated[Labels, "candidate labels, as of evaluate"] = "all",
    templates: Annotated[str, "templates of the labels, as of evaluate"] = "plain",
    limit: Annotated[PositiveInt | None, "number of images, sampled by the seed"] = 200,
    size: Annotated[Side | None, "resize images of a folder to this height and width"] = None,
    batch_size: Annotated[int, Field(gt=0, le=MOST_AT_ONCE)] = 50,
    merge: Annotated[bool, "merge the leaderboards of these folders instead of measuring"] = False,
    out: Annotated[Path | None, "output folder; default: runs/benchmark-<number>"] = None,
    resume: Annotated[bool, "continue in --out: what is measured there is kept"] = False,  # noqa: ARG001  (see `faults`)
    quick: bool = False,
    device: Annotated[str, "auto, cpu, cuda, cuda:<index> or mps", checked(pick_device)] = "auto",
    dtype: Annotated[str, "auto, float32, bfloat16 or float16", checked(pick_dtype)] = "float32",
    seed: Annotated[int, "seed of subset, random starts, noise and bootstrap"] = 0,
) -> Leaderboard:
    """Measure referees by one protocol, and write a leaderboard.

    accuracy     zero-shot top-1, clean and under PGD-20: L-inf 1, 2 and 4/255, L2 of the same RMS; and under --attack
    autoattack   zero-shot top-1 under AutoAttack, light or standard: L-inf 2/255, L2 of the same RMS
    retrieval    recall@1 in both directions, clean and under PGD-20: L-inf 2/255
    corruptions  zero-shot top-1, mean over five strengths
    pag          PAG score: targeted PGD-20 of RMS 28/255 (L2)
    saliency     rank correlation of input gradients, clean and under PGD-20: L-inf 2/255
    synthesis    20 prompts painted by clipag without views: R-Precision, similarity and hacking; embedded data only

    Each part of each referee is a call of `evaluate` with a folder of its own in OUT/cells, where synthesis has its
    pictures (judged by emoji-judge-disjoint too, unless --judge is given). Processes of a launcher (torchrun) share
    these out. Machines measure different referees or parts, and --merge puts their folders together: equal rows once,
    rows with other numbers side by side. Defended referees (NAME~ttc) have static and adaptive rows.

    Writes leaderboard.json with all rows, the same as .csv, and leaderboard.html, which sorts and loads nothing.

    Raises UsageError for parts that the data do not allow, and for leaderboards of another schema.
    """
    folder = decided(lambda: free("runs/benchmark") if out is None else out)
    if merge:
        board = Leaderboard(merged([row for name in referees for row in Leaderboard.load(Path(name)).rows]))
        board.save(folder)
        return board
    examples = read_examples(data, size=size, limit=limit, seed=seed)
    plan = _plan(examples, parts, "apgd-ce:2" if quick else autoattack, judge, attack, quick=quick)
    common = {"data": data, "labels": labels, "templates": templates, "limit": limit, "size": size}
    common |= {"batch_size": batch_size, "device": device, "dtype": dtype, "seed": seed}
    given = common | {"parts": list(plan), "autoattack": autoattack, "attack": list(attack), "judge": judge}
    given |= {"quick": quick, "limit": limit or len(examples.ids)}
    flags = signatures.flags(signature(benchmark).parameters, given)
    weights: dict[str, str] = {}
    for name in referees:  # all, before hours of the first
        [one] = load_named([name], device=pick_device(device))
        weights[name] = exact(one.referee)
        for who in plan["synthesis"]["judges"] if "synthesis" in plan else [judge] if "pag" in plan else []:
            load_pag_judge(who, [one], device=pick_device(device))
    cells = [(name, part) for name in referees for part in plan]
    kept = {part: {} if part == "synthesis" else {"samples": digest_of(examples)} for part in plan}
    folders = [_folder(folder, name, part, weights[name], plan[part] | common | kept[part]) for name, part in cells]
    pictures: dict[int, Tensor] = {}
    found: dict[int, list[Entry]] = {}
    fault: Exception | None = None
    try:
        is_done = decided(lambda: [is_file(where / REPORT_FILE) for where in folders])
        for number, (name, part) in enumerate(cells):  # by all processes together: they share the pictures out
            if part == "synthesis" and not is_done[number]:
                how = {"batch_size": batch_size, "device": device, "dtype": dtype, "seed": seed, "quick": quick}
                pictures[number] = paint(folders[number] / "pictures", name, plan[part]["prompts"], how)
        for number in range(len(cells))[place().mine()]:
            name, part = cells[number]
            facts = {"weights": weights[name], "labels": str(labels), "templates": templates}
            facts["command"] = shlex.join(["robustclip", "benchmark", name, *flags])
            today = datetime.now(UTC).date().isoformat()
            if number in pictures:
                setting = common | {"data": examples.name, "date": today}
                judged(name, plan[part]["judges"], pictures[number], setting).save(folders[number])
            elif not is_done[number]:
                evaluate([name], out=folders[number], resume=True, **plan[part] | common)
            report = read_json(folders[number] / REPORT_FILE)
            facts["date"] = str(report["setting"].get("date", today))[: len(today)]  # of the measurement
            found[number] = list(_entries(report, determining(report["setting"], examples) | facts))
    except Interrupted as stop:
        raise Interrupted(stop.signal, f"stopped: the same call with --out {folder} --resume continues") from stop
    except (UsageError, RunError) as error:
        fault = error
    everywhere = listed((found, fault))
    for _, met in everywhere:
        if met is not None:
            raise met
    by_cell = {number: rows for theirs, _ in everywhere for number, rows in theirs.items()}
    board = Leaderboard(merged([row for number in sorted(by_cell) for row in by_cell[number]]), folder)
    if is_main():
        board.save(folder)
    return board


def _plan(
    examples: Examples, parts: Sequence[Part], autoattack: str, judge: str | None, attack: Sequence[str], *, quick: bool
) -> dict[str, dict[str, Any]]:
    """The arguments of `evaluate` by part; parts that the data do not allow are noted and left out.

    Raises UsageError for such a part that is asked for, and where none is left.
    """
    steps = 2 if quick else 20
    side = (3 * examples.size[0] * examples.size[1]) ** 0.5
    balls = [f"linf:{level}/255" for level in LEVELS] + [f"l2:{level / 255 * side:.4g}" for level in LEVELS]
    middle = [f"{balls[1]}@{steps}"]
    kind = {"light": "autoattack-light", "standard": "autoattack"}.get(autoattack, autoattack)
    plan: dict[str, dict[str, Any]] = {
        "accuracy": {"tasks": ["zero-shot"], "attack": [f"{ball}@{steps}" for ball in balls] + list(attack)},
        "autoattack": {"tasks": ["zero-shot"], "attack": [f"{ball}@{kind}" for ball in (balls[1], balls[4])]},
        "retrieval": {"tasks": ["retrieval"], "attack": middle},
        "corruptions": {"tasks": ["corruptions"]},
        "pag": {"tasks": ["pag"], "pag": f"l2:{PULL * side:.4g}@{steps}", "judge": judge},
        "saliency": {"tasks": ["maps"], "attack": middle, "method": "gradient"},
        "synthesis": {"judges": [judge] if judge else JUDGES, "prompts": 4 if quick else 20, "quick": quick},
    }
    missing = {part: fault for part in plan if (fault := missing_for(plan[part].get("tasks", [part])[0], examples))}
    if judge is None and not examples.name.startswith(EMBEDDED_DATA):
        missing["pag"] = "the PAG score needs --judge, a referee unrelated to those measured"
    if not examples.name.startswith(EMBEDDED_DATA):
        missing["synthesis"] = f"it paints the embedded prompts, and {examples.name} is not embedded"
    chosen = {part: plan[part] for part in plan if (part in parts if parts else part not in missing)}
    refused = [part for part in plan if part in missing and (part in parts or not chosen)]
    raise_faults("benchmark()", [f"the part {part}: {missing[part]}" for part in refused])
    for part in missing if not parts else ():
        terminal.note(f"leaves out {part}: {missing[part]}")
    if "autoattack" in chosen:
        check_installed()
    return chosen


def _folder(folder: Path, name: str, part: str, weights: str, arguments: dict[str, Any]) -> Path:
    """The folder of a part of a referee: another one for other arguments."""
    specs = [AttackSpec.parse(text) for text in arguments.get("attack", [])]
    files = [read_universal(spec.file).sha256 for spec in specs if spec.kind == "universal"]
    content = json.dumps([weights, arguments, *files], default=str, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return folder / "cells" / f"{folder_name(name)}-{part}-{digest}"


def _entries(report: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Entry]:
    """The values of a report as rows, without what does not depend on the referee."""
    setting = {name: facts[name] for name in ("weights", "samples", "labels", "templates", "command", "date")}
    setting |= {name: facts[name] for name in ("device", "dtype", "data")} | facts["versions"]
    names = ("referee", "task", "metric", "attack", "value", "low", "high", "n", "seed")
    for row in report["rows"]:
        if row["kind"] == "value" and not row["reference"]:
            threat = report["threats"].get(row["attack"].removeprefix(STATIC), "")
            yield Entry(schema=SCHEMA, threat=threat, **setting, **{name: row[name] for name in names})


def faults(
    referees: Sequence[str], parts: Sequence[str], attack: Sequence[str], merge: bool, out: Path | None, resume: bool
) -> Iterator[str | UsageError]:
    """Faults of a call that can be found before loading anything."""
    if attack and parts and "accuracy" not in parts:
        yield "attacks are of the part accuracy, which --parts leaves out: add it, or leave the attacks out"
    yield from faults_of([partial(check_attack, text, ["zero-shot"]) for text in attack])
    if not referees:
        yield UsageError("a benchmark needs at least one referee, and --merge at least one folder", "no_referee")
    for name in dict.fromkeys(name for name in referees if referees.count(name) > 1):
        yield UsageError(f"{name} is given twice: give each once", "given_twice", name=name)
    if merge and resume:
        yield UsageError("--merge measures nothing that could resume: leave one of the two out", "merge_and_resume")
    if resume and out is None:
        yield UsageError("resume needs the folder of the interrupted benchmark: give it as out", "no_folder")
    if out is not None:
        yield from faults_of([partial(check_writable, out, folder=True)])
        if holds_something(out) and not resume:
            yield UsageError(f"{out} is not empty: continue there with --resume, or give another folder", "not_empty")
