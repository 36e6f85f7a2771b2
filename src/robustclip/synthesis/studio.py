"""Generate many pictures in batches into a run folder, skipping those that exist.

images/<id>.png      each picture with its provenance, written after its batch
frames/<id>.{gif,png}  its optimisation, for runs of few pictures
svg/<id>.svg         the picture's drawing, for methods that draw
gradients/<id>.png   its gradients, for methods that show them
preview.png          best pictures so far of the current batch
contact_sheet.png    prompts x seeds, and
pictures.jsonl       one line a picture, in the items' order: both at the end
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGTERM
from typing import Any, Final

import torch
from torch import Generator, Tensor

from robustclip.canvases.base import Canvas
from robustclip.data.images import load_image, save_image
from robustclip.errors import Interrupted, RunError, UsageError
from robustclip.flags import Enlarge
from robustclip.losses.similarity import Cosine, Directional, Similarity
from robustclip.runs import distributed
from robustclip.runs.files import reason, remove_drafts, write_text
from robustclip.runs.folder import Run, versions
from robustclip.runs.processes import catching_signals
from robustclip.synthesis.guides import Guides
from robustclip.synthesis.items import Item
from robustclip.synthesis.loop import Callback, Film, KeepBest, Moment, optimise
from robustclip.synthesis.painted import Paint, Painted, Result, Watch
from robustclip.synthesis.pictures import contact_sheet, read_facts, write_gif, write_picture, write_strip
from robustclip.synthesis.terms import Stream
from robustclip.synthesis.watching import Watcher

FEW: Final = 16
"""Number of pictures up to which film strips and GIFs are saved by default."""
SMALL: Final = 1000
"""Pictures that a result keeps in memory."""


def paint_all(
    items: Sequence[Item],
    paint: Paint,
    *,
    run: Run,
    steps: int,
    batch_size: int = 16,
    save_frames: bool | None = None,
    enlarge: Enlarge = "nearest",
    facts: Mapping[str, Any] | None = None,
) -> Result:
    """Paint every item that has no picture yet, `batch_size` at a time, and lay all of them out.

    `steps`: calls of the watch per batch; `save_frames`: save film strips and GIFs (default: for up to 16 pictures);
    `enlarge`: interpolation of small pictures in these and in the contact sheet; `facts`: stored in each picture's
    file, with its id, prompt, seed, similarity and package versions. Several processes share the pictures.

    Raises UsageError for no items and for duplicate ids, RunError for a picture that is not finite or cannot be
    written, Interrupted on SIGINT or SIGTERM; `--resume` continues the run.
    """
    items = list(items)
    _check(items, batch_size)
    save_frames = len(items) <= FEW if save_frames is None else save_frames
    left = distributed.decided(lambda: _left(items, run))
    mine = [items[index] for index in left[distributed.place().mine()]]
    batches = [mine[at : at + batch_size] for at in range(0, len(mine), batch_size)]
    facts = {**(facts or {}), "versions": versions()}
    made = Result(run.folder, items, torch.full((len(items),), math.nan))
    run.note(pictures=len(items))
    with catching_signals() as caught:

        def check() -> None:
            if caught.signal is not None:
                done = len(items) - sum(1 for item in items if not _file(run, item).exists())
                message = f"stopped with {done} of {len(items)} pictures, which stay: {run.resumption} goes on"
                raise Interrupted(caught.signal or SIGTERM, message)

        with Watcher(run.folder, total=len(mine), steps=steps, batch_size=batch_size, check=check) as watcher:
            for batch in batches:
                check()
                watcher.begin(batch)
                painted = paint(batch, watcher)
                _write(batch, painted, run, facts, save_frames=save_frames, enlarge=enlarge)
                watcher.end()
                if watcher.loss is not None and watcher.done == len(batch):
                    run.note(loss=watcher.loss)
                if len(items) <= SMALL:
                    _keep(made, batch, painted, save_frames=save_frames)
        _wait_for_others([_file(run, items[index]) for index in left], check)
    made.similarity = torch.tensor(distributed.decided(lambda: _lay_out(items, run, enlarge)))
    return made


def _check(items: Sequence[Item], batch_size: int) -> None:
    if not items:
        raise UsageError("there is nothing to paint: give at least one prompt, and one seed", "no_prompts")
    if batch_size < 1:
        message = f"batch_size {batch_size}: at least 1 picture is painted at a time"
        raise UsageError(message, "out_of_range", argument="batch_size", given=batch_size)
    names, times = Counter(item.id.casefold() for item in items).most_common(1)[0]
    if times > 1:
        message = f"{times} pictures would have the file {names}.png: give each item an id of its own"
        raise UsageError(message, "listed_twice", name=names)


def _wait_for_others(files: Sequence[Path], check: Callable[[], None]) -> None:
    """Wait for the pictures of all processes, by their files, because collective operations time out within minutes."""
    while distributed.count() > 1 and (files := [file for file in files if not file.exists()]):
        check()
        time.sleep(0.2)
    distributed.listed(None)


def _file(run: Run, item: Item) -> Path:
    return run.folder / "images" / f"{item.id}.png"


def _left(items: Sequence[Item], run: Run) -> list[int]:
    """Indices of items without a complete picture of their prompt and seed."""
    for room in ("images", "frames"):
        remove_drafts(run.folder / room)
    return [index for index, item in enumerate(items) if not _is_done(run, item)]


def _is_done(run: Run, item: Item) -> bool:
    file = _file(run, item)
    if not file.exists():
        return False
    try:
        facts = read_facts(file)
    except UsageError:
        return False
    return (facts.get("prompt"), facts.get("seed")) == (str(item.prompt), item.seed)


def _write(
    batch: Sequence[Item], painted: Painted, run: Run, facts: Mapping[str, Any], *, save_frames: bool, enlarge: Enlarge
) -> None:
    """Write a batch; each picture is written last, because its existence marks it as complete."""
    images = painted.images.detach()
    fine = images.flatten(1).isfinite().all(dim=1) & painted.similarity.isfinite().to(images.device)
    if not fine.all():
        names = ", ".join(item.id for item, good in zip(batch, fine.tolist(), strict=True) if not good)
        raise RunError(f"not finite: {names}: take smaller steps, or --dtype float32", "not_finite", pictures=names)
    try:
        for index, item in enumerate(batch):
            if save_frames and painted.frames is not None and len(painted.frames):
                frames = painted.frames[:, index]
                write_gif(run.folder / "frames" / f"{item.id}.gif", frames, enlarge)
                write_strip(run.folder / "frames" / f"{item.id}.png", frames, painted.steps_of_frames, enlarge)
            for ending, texts in painted.texts.items():
                write_text(run.folder / ending / f"{item.id}.{ending}", texts[index])
            for folder, others in painted.others.items():
                (run.folder / folder).mkdir(exist_ok=True)
                save_image(others[index], run.folder / folder / f"{item.id}.png")
            similarity = float(painted.similarity[index])
            about = {"id": item.id, "prompt": str(item.prompt), "seed": item.seed, "similarity": similarity}
            own = painted.facts[index] if painted.facts else {}
            write_picture(_file(run, item), images[index], about | own | dict(facts))
    except (OSError, RunError) as error:
        raise RunError(
            f"{run.folder} cannot be written to ({reason(error)}): what is there stays, and when that is "
            f"mended, {run.resumption} goes on",
            "not_written",
            path=run.folder,
        ) from error


def _keep(made: Result, batch: Sequence[Item], painted: Painted, *, save_frames: bool) -> None:
    """Keep a batch's pictures, frames and trace in memory."""
    places = [made.items.index(item) for item in batch]
    for index, item in enumerate(batch):
        made.kept[item.id] = painted.images[index].detach().float().cpu()
        if save_frames and painted.frames is not None and len(painted.frames):
            made.frames[item.id] = painted.frames[:, index].detach().float().cpu()
            made.ended[item.id] = painted.steps_of_frames[-1]
            if len(painted.steps_of_frames) >= len(made.steps_of_frames):
                made.steps_of_frames = list(painted.steps_of_frames)
    for name, values in painted.trace.items():
        whole = made.trace.get(name, torch.empty(0, len(made)))
        longer = torch.full((max(len(values) - len(whole), 0), len(made)), math.nan)  # batches may end early
        made.trace[name] = whole = torch.cat([whole, longer])
        whole[: len(values), places] = values.detach().float().cpu()


def _lay_out(items: Sequence[Item], run: Run, enlarge: Enlarge) -> list[float]:
    """Write pictures.jsonl and the contact sheet from the pictures' files; returns their similarities."""
    try:
        facts_of = [read_facts(_file(run, item)) for item in items]
    except UsageError as error:
        raise RunError(f"{error}: {run.resumption} paints it again") from error
    lines = [
        {"id": item.id, "prompt": str(item.prompt), "seed": item.seed, "file": f"images/{item.id}.png"}
        | {"similarity": facts["similarity"]}
        for item, facts in zip(items, facts_of, strict=True)
    ]
    write_text(run.folder / "pictures.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    sheet = contact_sheet(items, lambda index: load_image(_file(run, items[index])), how=enlarge)
    save_image(sheet, run.folder / "contact_sheet.png")
    return [float(facts["similarity"]) for facts in facts_of]


FRAMES = 8  # without the final picture


def paint_batch(
    canvas: Canvas,
    streams: Sequence[Stream],
    *,
    items: Sequence[Item],
    guides: Guides,
    steps: int,
    watch: Watch,
    keep: KeepBest | None = None,
    callbacks: Sequence[Callback] = (),
) -> Painted:
    """Optimise the canvas; returns the final rendering, or the pictures that `keep` stored."""
    watch.announce(" and ".join(str(stream.terms) for stream in streams))
    film = Film(steps, FRAMES)
    watching = _Watching(watch, streams)
    kept = [] if keep is None else [keep]
    last, trace = optimise(
        canvas,
        streams,
        steps=steps,
        generators=generators_of(items, guides.device),
        callbacks=[watching, film, *kept, *callbacks],
    )
    images = canvas.picture(last if keep is None else keep.images(last))
    similarity = guides.similarity(images, [item.prompt for item in items])
    frames = torch.cat([film.frames(), images[None].cpu()]) if film.steps else images[None].cpu()
    return Painted(images, similarity, trace, frames, [*film.steps, len(trace.get("loss", []))])


def generators_of(items: Sequence[Item], device: torch.device) -> Callable[[str, int], list[Generator]]:
    """One generator per picture, keyed by purpose and step."""
    return lambda purpose, step: [item.generator(purpose, step, device=device) for item in items]


class _Watching:
    """Callback that passes each step to a watch, with the similarity from the first term's loss or, if that does not
    determine it, of the picture itself."""

    def __init__(self, watch: Watch, streams: Sequence[Stream]) -> None:
        self.watch = watch
        terms = [term for stream in streams for term in stream.terms]
        first = next((term for term in terms if not getattr(term.loss, "draws", False)), terms[0])
        self.label = first.label
        self.loss = first.loss

    def __call__(self, moment: Moment) -> None:
        picture = moment.canvas.picture(moment.image)
        numbers = {"similarity": self._similarity(moment, picture), "loss": moment.losses, **moment.numbers}
        self.watch(moment.step + 1, picture, numbers)

    def _similarity(self, moment: Moment, picture: Tensor) -> Tensor:
        losses = moment.numbers.get(self.label, moment.losses)
        if isinstance(self.loss, Cosine):
            return self.loss.targets[0].weights.sum(1) - losses
        if isinstance(self.loss, Similarity):  # its losses do not determine the cosines
            return self.loss.similarity(picture.unsqueeze(1))[:, 0]
        return 1 - losses if isinstance(self.loss, Directional) else -losses
