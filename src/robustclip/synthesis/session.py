"""Shared setup of synthesis recipes: read flags to items, guides and a run; best-of-N selection."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import torch
from jaxtyping import Float
from pydantic import AfterValidator, PlainValidator, PositiveInt
from torch import Tensor

from robustclip.diffusion.mutual_information import MARK, OWN
from robustclip.errors import UsageError
from robustclip.flags import Enlarge
from robustclip.referees.base import TwoTower
from robustclip.runs import terminal
from robustclip.runs.devices import DTYPES, check_memory, pick_device
from robustclip.runs.distributed import decided, is_main
from robustclip.runs.files import is_file
from robustclip.runs.folder import Run
from robustclip.synthesis.guides import Given, Guides, parse_weight
from robustclip.synthesis.items import MOST_PICTURES, Item, items_of, items_of_named, load_prompts
from robustclip.synthesis.painted import Paint, Painted, Result, Watch
from robustclip.synthesis.prompts import parse_all
from robustclip.synthesis.starts import AUTO, Starts
from robustclip.synthesis.studio import paint_all

if TYPE_CHECKING:  # which need diffusers
    from robustclip.diffusion.selection import Rater
    from robustclip.diffusion.stable import LatentDiffusion

VERB: Final = "synthesize"
SMALLEST, LARGEST = 8, 4096  # pixels of a side


def _prompts(texts: list[str]) -> list[str]:
    if texts:
        parse_all(texts)
    return texts


def _prompt_file(path: Path | None) -> Path | None:
    if path is not None and not is_file(path):
        raise UsageError(
            f"{str(path)[:200]} is not a file: give captions as .txt, .jsonl or .csv", "not_a_file", path=path
        )
    return path


def _referees(given: Any) -> list[Given]:
    listed = list(given) if isinstance(given, list | tuple) else [given]
    for one in listed:
        if not isinstance(one, str | Path | TwoTower):
            raise UsageError(
                f"{one!r:.100} is not a referee: give a name, a folder or a referee, as in emoji-robust",
                "not_a_referee",
            )
        if not isinstance(one, TwoTower):
            parse_weight(str(one))
    return listed


def parse_size(given: object) -> tuple[int, int] | None:
    """Parse `64` as (64, 64) and `48x96` as (48, 96), height first; None is returned unchanged.

    Raises UsageError for other values and sides outside 8 to 4096 pixels.
    """
    if given is None:
        return None
    text = "x".join(map(str, given)) if isinstance(given, tuple | list) else str(given)
    found = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", text.strip().lower(), re.ASCII)
    sides = (0, 0) if found is None else (int(found[1]), int(found[2] or found[1]))
    if not all(SMALLEST <= side <= LARGEST for side in sides):
        raise UsageError(
            f"{text[:40]!r} is not a size of a picture: write one side (64) or height x width (48x96), "
            f"each from {SMALLEST} to {LARGEST}",
            "not_a_size",
            given=text,
        )
    return sides


def _size(given: Any) -> Any:
    parse_size(given)
    return given


Prompts = Annotated[
    list[str], AfterValidator(_prompts), 'prompts: "a cat", or weighted parts: "a cat:1.0 | image:photo.png:0.5"'
]
PromptFile = Annotated[
    Path | None, AfterValidator(_prompt_file), "prompt file: .txt, .jsonl or .csv, one picture per caption"
]
Referees = Annotated[
    list[str], PlainValidator(_referees), "guiding referees: name, tag or folder; several as NAME=WEIGHT"
]
BestOf = Annotated[PositiveInt, "generate N pictures per prompt and seed, and keep the best"]
By = Annotated[
    str | None, "selection score of --best-of: mi (of the recipe's model), mi:MODEL, or a referee; default: the guides"
]
Size = Annotated[str | int | tuple[int, int] | None, AfterValidator(_size), "64, or height x width: 48x96"]


@dataclass
class Session:
    """A prepared call of a recipe: items, guides, picture size and run."""

    items: list[Item]
    guides: Guides
    size: tuple[int, int]
    run: Run
    batch_size: int
    save_frames: bool | None
    facts: dict[str, Any]
    enlarge: Enlarge = "nearest"
    best_of: int = 1
    chooser: Rater | None = None

    @classmethod
    def open(
        cls,
        recipe: str,
        arguments: Mapping[str, Any],
        *,
        views: int = 1,
        items: list[Item] | None = None,
        load: Callable[..., Guides] = Guides.load,
        generator: LatentDiffusion | None = None,
        held_out: Guides | None = None,
    ) -> Session:
        """From a recipe's arguments: prompt, prompts, referee, seeds, size, batch_size, device, dtype, channels_last,
        compile, out, resume and, optionally, save_frames, enlarge, best_of and by. `views`: views per picture in memory
        in a step; `items`: default: prompts x seeds; `load`: makes guides of the referees' names; `generator`: the
        diffusion model, whose cells pictures are whole in; `held_out`: referees that choose among a picture's steps,
        recorded with the guides.

        Raises UsageError for unknown referees, prompts beyond their context, and unreadable pictures or prompt files.
        """
        seeds = arguments["seeds"]
        if items is None and arguments["prompts"] is None:
            items = items_of(parse_all(arguments["prompt"]), seeds)
        elif items is None:
            items = items_of_named(load_prompts(arguments["prompts"]), seeds)
        guides = load(
            arguments["referee"],
            device=pick_device(arguments["device"]),
            dtype=arguments["dtype"],
            recorded=_recorded_dtype(arguments["resume"]),
            channels_last=arguments["channels_last"],
            compile=arguments["compile"],
        )
        guides.check([item.prompt for item in items])
        size = parse_size(arguments["size"]) or guides.size
        size = size if generator is None else generator.whole_cells(size)
        pictures = min(arguments["batch_size"], len(items))
        check_memory(  # views and gradients
            2 * 4 * 3 * math.prod(size) * max(views, 1) * pictures,
            f"{pictures} pictures of {size[0]}x{size[1]} with {views:,} views each, at a time,",
            guides.device,
        )
        kept = {name: value for name, value in arguments.items() if name not in ("out", "resume")}
        # As given, with weights and paths, since a resumed run is called with them; an object has only its name.
        listed = given if isinstance(given := arguments["referee"], list | tuple) else [given]
        kept |= {"referee": [one.card.name if isinstance(one, TwoTower) else str(one) for one in listed]}
        # Without the prompts: each file has its own, and thousands would make it large.
        others = {name: value for name, value in kept.items() if name != "prompt"}
        dtype = str(guides.dtype).removeprefix("torch.")
        made_by = {} if generator is None else {"name": generator.name, "fingerprint": generator.fingerprint}
        count, by = arguments.get("best_of", 1), arguments.get("by")
        if by is not None and count == 1:
            raise UsageError(f"--by {by} chooses among several pictures: give --best-of too, e.g. 4", "by_alone", by=by)
        chooser = None if by is None else chooser_of(by, generator, guides.device)
        chooses = [] if chooser is None else [{"name": chooser.name, "weight": 0.0, "fingerprint": chooser.fingerprint}]
        chooses += [one | {"weight": 0.0} for one in (held_out.describe() if held_out else [])]
        referees = [*guides.describe(), *chooses]
        facts = {"recipe": recipe, "arguments": others, "referees": referees, "dtype": dtype}
        facts |= {"generator": made_by} if made_by else {}
        run = Run.start(arguments["out"], arguments["resume"], recipe=recipe, arguments=kept, verb=VERB)
        run.note(referees=referees, size=list(size), dtype=dtype, **({"generator": made_by} if made_by else {}))
        if chooser is not None and made_by and chooser.fingerprint == made_by["fingerprint"]:
            run.warn(f"{chooser.name} {OWN}")
        batch_size, save_frames = arguments["batch_size"], arguments.get("save_frames")
        enlarge = arguments.get("enlarge", "nearest")
        return cls(items, guides, size, run, batch_size, save_frames, facts, enlarge, count, chooser)

    def starts(self, init: str, **options: Any) -> Starts:
        """Initial images (see `Starts`), recorded in the run and in each picture."""
        made = Starts(init, self.size, self.guides, **options)
        self.run.note(start=made.source)
        self.facts["start"] = made.source
        if init == AUTO and made.mixture is None and is_main():
            terminal.note(
                f"no card of {', '.join(one['name'] for one in self.guides.describe())} names a mixture: pictures "
                f"start from {made.source}; --init takes noise, an image, or a file of robustclip mixture fit"
            )
        return made

    def paint(self, paint: Paint, *, steps: int) -> Result:
        """Generate the missing pictures in batches, and finish the run."""
        if self.best_of > 1:
            paint, steps = best_of(paint, self.best_of, self._choose, steps), self.best_of * steps
        with self.run:
            result = paint_all(
                self.items,
                paint,
                run=self.run,
                steps=steps,
                batch_size=self.batch_size,
                save_frames=self.save_frames,
                enlarge=self.enlarge,
                facts=self.facts,
            )
            self.run.finish({key: value for key, value in result.numbers().items() if key != "each"})
        return result

    def _choose(self, images: Float[Tensor, "p 3 h w"], items: Sequence[Item]) -> Float[Tensor, " p"]:
        if self.chooser is None:
            return self.guides.similarity(images, [item.prompt for item in items])
        each = zip(images.split(1), items, strict=True)
        return torch.cat([self.chooser(image.clamp(0, 1), item.prompt.wanted) for image, item in each])


def chooser_of(by: str, generator: LatentDiffusion | None, device: torch.device) -> Rater:
    """The selection score of --best-of. Raises UsageError for `mi` if the recipe has no diffusion model."""
    from robustclip.diffusion.selection import Rater, information_of, load_rater  # which need diffusers

    if by != MARK.rstrip(":"):
        return load_rater(by, device)
    if generator is None:
        raise UsageError(
            "--by mi: this recipe has no diffusion model of its own: name one, --by mi:emoji-diffusion",
            "no_diffusion_model",
        )
    return Rater(f"{MARK}{generator.name}", generator.fingerprint, partial(information_of, generator))


def _recorded_dtype(resume: Path | None) -> str | None:
    """Name of the dtype of the resumed run; None for a new run."""
    if resume is None:
        return None
    found = decided(lambda: Run.open(resume).record.get("notes", {}).get("dtype"))
    return found if found in DTYPES else None


def call_faults(prompt: Sequence[str], prompts: Path | None) -> Iterator[UsageError]:
    """Faults of prompts: none, or both kinds."""
    if not prompt and prompts is None:
        yield UsageError(
            'there is no prompt: say what to paint, e.g. "a green turtle", or give --prompts FILE', "no_prompt"
        )
    if prompt and prompts is not None:
        yield UsageError(
            f"prompts come from the call ({prompt[0][:40]!r}) or from --prompts {prompts}: give one of the two",
            "prompts_twice",
        )


Choose = Callable[[Float[Tensor, "p 3 h w"], Sequence[Item]], Float[Tensor, " p"]]
"""(pictures, their items) -> scores, higher is better."""


def best_of(paint: Paint, count: int, choose: Choose, steps: int) -> Paint:
    """Best-of-N: generate `count` pictures per item, of `steps` each, and keep the best. The first is the picture
    of a single run; all scores are stored in the file. A score that is not a number is below all others.
    """

    def painted(items: Sequence[Item], watch: Watch) -> Painted:
        best, scores = None, []
        for number in range(count):
            drawn = [replace(item, repeat=item.repeat + number * MOST_PICTURES) for item in items]
            candidate = paint(drawn, _Later(watch, number * steps))
            found = choose(candidate.images.detach(), items).float().cpu()
            scores.append(found.where(~found.isnan(), -math.inf))
            best = (
                candidate if best is None else _merged(best, candidate, scores[-1] > torch.stack(scores[:-1]).amax(0))
            )
        assert best is not None
        table = torch.stack(scores, 1)
        best.facts = [{"candidate": int(row.argmax()), "scores": row.tolist()} for row in table]
        return best

    return painted


@dataclass(frozen=True)
class _Later:
    """A watch whose steps follow those of earlier candidates."""

    watch: Watch
    before: int

    def __call__(self, step: int, images: Float[Tensor, "p 3 h w"], numbers: Mapping[str, Float[Tensor, " p"]]) -> None:
        self.watch(self.before + step, images, numbers)

    def announce(self, loss: str) -> None:
        if not self.before:
            self.watch.announce(loss)


def _merged(old: Painted, new: Painted, better: Tensor) -> Painted:
    """Replace the pictures that are better in `new`."""

    def of(first: Tensor, second: Tensor, at: int) -> Tensor:
        shape = [1] * at + [-1] + [1] * (first.ndim - at - 1)
        return torch.where(better.to(first.device).view(shape), second, first)

    def listed(first: Mapping[str, list[Any]], second: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        chosen = better.tolist()
        return {
            name: [pair[won] for pair, won in zip(zip(values, second[name], strict=True), chosen, strict=True)]
            for name, values in first.items()
        }

    return Painted(
        of(old.images, new.images, 0),
        of(old.similarity, new.similarity, 0),
        {name: of(values, new.trace[name], 1) for name, values in old.trace.items()},
        None if old.frames is None or new.frames is None else of(old.frames, new.frames, 1),
        old.steps_of_frames,
        listed(old.texts, new.texts),
        others=listed(old.others, new.others),
    )
