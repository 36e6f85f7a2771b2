"""Resumable grid runner: each row of a study is made in its own folder, measured once, and compared.

study = Study(run, Results(compared=[("robust", "control")]), setting, budget=minutes)
for name, changed in ROWS.items():
    study.row(name, prompts, lambda folder: paint_set(folder, shared | changed, "doodl").images, measure)
return study.finish(Column("R-Precision@10", "emoji-judge"))
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from robustclip.data.images import load_image, resize, save_image, titled_grid
from robustclip.data.pictures import Images
from robustclip.errors import UsageError
from robustclip.evaluation.generation.embeddings import cosine, embed, embed_texts, r_precision
from robustclip.evaluation.generation.results import Column, Results
from robustclip.evaluation.named import NamedReferee
from robustclip.recipes import find
from robustclip.referees.smoothed import fingerprint
from robustclip.runs import terminal
from robustclip.runs.distributed import decided
from robustclip.runs.files import plain, read_json, write_json
from robustclip.runs.folder import RECORD, Run
from robustclip.signatures import typed
from robustclip.synthesis.items import Item
from robustclip.synthesis.painted import Result
from robustclip.synthesis.pictures import contact_sheet, is_whole

SHOWN: Final = 12
T = TypeVar("T")
Columns = Mapping[Column, ArrayLike]


@dataclass
class Study:
    """A run of `reproduce` that makes and measures rows.

    run      its folder holds cells/<row> (outputs), cells/<row>.json (measurements), and the results
    setting  common to all rows (judges, samples, seeds): a row measured under another setting is measured again, but
             not made again
    budget   minutes: a row is skipped if it would end later, estimated by the slowest row so far; None: no limit
    """

    run: Run
    results: Results
    setting: Mapping[str, Any]
    budget: float | None = None
    left: list[str] = field(default_factory=list)
    pictures: dict[str, Float[Tensor, "n 3 h w"]] = field(default_factory=dict, repr=False)
    began: float = field(default_factory=time.monotonic, repr=False)
    slowest: float = 0.0
    """Seconds of the slowest row, including its measurement."""

    def __post_init__(self) -> None:
        self.setting = plain(self.setting)
        self.results.setting = self.setting

    def row(
        self,
        name: str,
        samples: Sequence[str],
        make: Callable[[Path], T],
        measure: Callable[[T], Columns],
        *,
        timed: bool = True,
    ) -> T | None:
        """Make a row, measure it, and save all results so far.

        samples  names of the outcomes (prompts), in order
        make     called with the row's folder; makes what is missing there. Image tensors (n,3,h,w) are kept for the
                 contact sheet.
        measure  called with the result of `make`; outcomes by column, each (n,)
        timed    False: a bound or control that ignores the budget and has no seconds

        Returns the result of `make`; None if the budget is exhausted.
        """
        folder = self.run.folder / "cells" / folder_name(name)
        record = folder.with_name(f"{folder.name}.json")
        stored = read_json(record) if record.is_file() else {}
        before = painted(folder)
        is_done = bool(stored) and before >= stored["pictures"]
        if timed and not is_done and self._is_late(1 - min(before / len(samples), 1)):
            self.left.append(name)
            return None
        started = time.monotonic()
        made = make(folder)
        now = time.monotonic()
        after = painted(folder)
        new = after - before if after else len(samples) * (not stored)
        spent = stored.get("spent", {"samples": 0, "seconds": 0.0})
        if new > 0:
            spent = {"samples": spent["samples"] + new, "seconds": spent["seconds"] + now - started}
        if new > 0 or stored.get("setting") != self.setting or stored.get("samples") != list(samples):
            columns = {column: np.asarray(outcomes) for column, outcomes in measure(made).items()}
        else:
            columns = {Column(one["metric"], one["judge"]): np.asarray(one["outcomes"]) for one in stored["columns"]}
        each = spent["seconds"] / max(spent["samples"], 1)
        self.results.add(name, samples, columns, each if timed else None)
        listed = [column._asdict() | {"outcomes": outcomes.tolist()} for column, outcomes in columns.items()]
        facts = {"setting": self.setting, "samples": list(samples), "pictures": after, "spent": spent}
        write_json(record, facts | {"columns": listed})
        if timed:
            self.slowest = max(self.slowest, each * len(samples) + time.monotonic() - now)
        if isinstance(made, Tensor):
            self.pictures[name] = made
        self.run.log(
            len(self.results.rows), **{f"{name}: {one}": self.results.value(name, one).value for one in columns}
        )
        self.results.save(self.run.folder)
        return made

    def finish(self, column: Column, rows: Sequence[str] | None = None) -> dict[str, Any]:
        """Finish the run: write contact sheets, print the table and the skipped rows. Returns the run's folder and the
        value of `column` for each of `rows` (default: all that have it)."""
        self.sheets()
        terminal.rich(self.results.table())
        if self.left:
            terminal.note(f"the budget left out {', '.join(self.left)}: resume with {self.run.resumption}")
        self.run.note(left=self.left)
        having = [name for name, row in self.results.rows.items() if column in row.columns]
        shown = having if rows is None else [name for name in having if name in rows]
        numbers = {name: self.results.value(name, column).value for name in shown}
        self.run.finish(numbers)
        return {"out": str(self.run.folder), **numbers}

    def sheets(self) -> None:
        """Write contact_sheet.png, and contact_sheet-2.png, ... for rows of other samples."""
        kinds: dict[tuple[str, ...], list[str]] = {}
        for name in self.pictures:
            kinds.setdefault(tuple(self.results.rows[name].samples), []).append(name)
        for number, (samples, names) in enumerate(kinds.items(), 1):
            file = "contact_sheet.png" if number == 1 else f"contact_sheet-{number}.png"
            save_image(overview({name: self.pictures[name] for name in names}, samples), self.run.folder / file)

    def _is_late(self, missing: float) -> bool:
        """Whether a row with that share missing would end after the budget."""
        spent = time.monotonic() - self.began + self.slowest * missing
        return self.budget is not None and spent > 60 * self.budget


def resumed_rows(folder: Path, arguments: Mapping[str, Any], *, same: Sequence[str], rows: str) -> list[str]:
    """Rows of a resumed run: those requested before (its argument `rows`), then those of this call.

    Raises UsageError if this call differs in an argument of `same`.
    """
    record = Run.open(folder).record
    for name in same:
        before, now = record["arguments"].get(name), plain(arguments[name])
        if before != now:
            raise UsageError(
                f"{folder} was begun with --{name.replace('_', '-')} {before}, and this call has {now}, but rows of "
                "one table share it: give the same, or start a new run",
                "other_arguments",
                argument=name,
                before=before,
                now=now,
            )
    calls = [record["arguments"], *(one["arguments"] for one in record.get("resumed", [])), arguments]
    return list(dict.fromkeys(row for call in calls for row in call[rows]))


def paint_set(folder: Path, settings: Mapping[str, Any], recipe: str = "clipag") -> Result:
    """The pictures of a synthesis recipe with these arguments, in `folder`; missing ones are painted."""
    begun = decided(lambda: (folder / RECORD).is_file())  # before another process begins it
    place = {"resume": folder} if begun else {"out": folder}
    result = cast("Result", typed(find(recipe, "synthesize").function)(**settings, **place))
    result.kept.clear()  # read all from their files, so that new and old ones are judged alike
    return result


def paint_images(settings: Mapping[str, Any], folder: Path, recipe: str = "clipag") -> Float[Tensor, "n 3 h w"]:
    """The images of `paint_set`; with `functools.partial` a `make` of a study's row."""
    return paint_set(folder, settings, recipe).images


def draw_set(
    folder: Path, items: Sequence[Item], draw: Callable[[Sequence[Item]], torch.Tensor], batch_size: int = 64
) -> torch.Tensor:
    """Pictures of items from their files in `folder`; missing or truncated ones are drawn by `draw`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    files = {item: folder / "images" / f"{item.id}.png" for item in items}
    missing = [item for item in items if not is_whole(files[item])]
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        for item, image in zip(batch, draw(batch), strict=True):
            save_image(image, files[item])
    images = [load_image(files[item]) for item in items]
    if missing:
        save_image(contact_sheet(items, lambda index: images[index]), folder / "contact_sheet.png")
    return torch.stack(images)


def painted(folder: Path) -> int:
    """The number of complete pictures in a row's folder."""
    return sum(map(is_whole, (folder / "images").glob("*.png")))


def folder_name(row: str) -> str:
    """A row's name as a folder name; a guide in it may be a path, which must not lead out of the run's folder."""
    return re.sub(r"[^\w.+-]+", "-", row.replace(", ", "_").replace("'", "")).lstrip(".")


def overview(sets: Mapping[str, Float[Tensor, "n 3 h w"]], texts: Sequence[str]) -> Float[Tensor, "3 H W"]:
    """Contact sheet with sets as rows, resized to the largest, and up to 12 evenly spaced prompts as columns."""
    columns = list(range(0, len(texts), max(1, len(texts) // SHOWN)))[:SHOWN]
    size = max((images.shape[-2], images.shape[-1]) for images in sets.values())
    tiles = torch.cat([resize(images[columns], size) for images in sets.values()])
    return titled_grid(list(sets), [texts[column] for column in columns], tiles)


class PromptRecognition:
    """R-Precision of pictures and their prompts by CLIP-like judges, and cosines: a `measure` of a study's rows.

    texts       pool of candidates, drawn by prompt and `seed`, the same for all rows
    candidates  numbers of candidates
    """

    def __init__(
        self, texts: Sequence[str], judges: Sequence[NamedReferee], candidates: Sequence[int], seed: int = 0
    ) -> None:
        if max(candidates) > (different := len(set(texts))):
            raise UsageError(
                f"R-Precision among {max(candidates)} needs as many different prompts, and there are {different}: give "
                f"more, or --candidates {different}",
                "too_few_prompts",
                candidates=max(candidates),
                prompts=different,
            )
        self.judges, self.candidates, self.seed = list(judges), list(candidates), seed
        self.texts = {judge.name: embed_texts(judge.referee, list(texts)) for judge in judges}

    @property
    def chance(self) -> dict[str, float]:
        """The rate by chance, by metric."""
        return {f"R-Precision@{count}": 1 / count for count in self.candidates}

    @property
    def setting(self) -> dict[str, Any]:
        """Everything besides the pictures that determines the outcomes."""
        judges = {judge.name: fingerprint(judge.referee) for judge in self.judges}
        texts = list(next(iter(self.texts.values())).texts)
        return {"judges": judges, "candidates": self.candidates, "seed": self.seed, "texts": texts}

    def __call__(self, images: Images, prompts: Sequence[str], *, cosines: bool = False) -> dict[Column, NDArray[Any]]:
        """Hits (n,) by judge and number of candidates; with `cosines` also the cosines of picture and prompt."""
        repeats: dict[str, int] = {}
        ids = []
        for prompt in prompts:  # several pictures of a prompt get different candidates
            ids.append(f"{prompt} {repeats.get(prompt, 0)}")
            repeats[prompt] = repeats.get(prompt, 0) + 1
        outcomes: dict[Column, NDArray[Any]] = {}
        for judge in self.judges:
            embedded, texts = embed(judge.referee, images, title=judge.name), self.texts[judge.name]
            for count in self.candidates:
                hits = r_precision(embedded, prompts, texts, ids=ids, candidates=count, seed=self.seed).hits
                outcomes[Column(f"R-Precision@{count}", judge.name)] = hits
            if cosines:
                outcomes[Column("cosine", judge.name)] = cosine(embedded, texts.of(prompts)).numpy()
        return outcomes
