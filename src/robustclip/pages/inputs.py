"""Read --images and --texts as image-text pairs; unreadable images are listed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from jaxtyping import Float
from torch import Tensor

from robustclip.data.emoji import load_emoji, load_labels
from robustclip.data.folders import find_pictures
from robustclip.data.images import FORMATS, decode, from_pil, resize
from robustclip.data.pictures import Stored, draw_subset
from robustclip.data.scenes import SCENES, Box, compose_scenes
from robustclip.errors import Skip, UsageError
from robustclip.explanation.looks import Objective, negate
from robustclip.runs.files import is_file, is_folder, read_lines

EMBEDDED: Final = "emoji/"
LARGEST: Final = 1024  # maximal pixels of the longer side, which bounds the cost of an attack
SMALLEST: Final = 8
LONGEST: Final = 100  # times its shorter side: the centre crop that a tower sees of longer ones is uninformative
MOST: Final = 20_000  # pairs; their pictures weigh a gigabyte
SHOWN: Final = 5  # notes, where nothing is left
SHOW: Final = f"give picture files ({', '.join(FORMATS)}), folders of them, emoji/SPLIT or {SCENES}"


Open = Callable[[], Tensor]  # an image (3,H,W) in [0,1]


@dataclass(frozen=True)
class Pair:
    """An image of `size` (height, width), decoded by `open`, and a text. `other` is the text that an attack pulls
    towards ("" for none); `box` (top, left, bottom, right; half-open pixels) that of the text's object, if known."""

    id: str
    open: Open
    size: tuple[int, int]
    text: str
    other: str = ""
    box: Box | None = None

    @property
    def image(self) -> Float[Tensor, "3 H W"]:
        """The image in [0,1], decoded on access to bound memory."""
        return self.open()


@dataclass(frozen=True)
class Source:
    """An image that is not opened yet, with its caption, if any."""

    id: str
    open: Open
    caption: str | None
    box: Box | None = None
    remarks: Counter[str] = field(default_factory=Counter)  # oddities of decoding, and of the text beside it


def read_pairs(
    images: Sequence[str],
    texts: Sequence[str] = (),
    *,
    negations: Sequence[str] = (),
    targets: Sequence[str] = (),
    objective: Objective = "negation",
    limit: int | None = None,
    seed: int = 0,
) -> tuple[list[Pair], list[str]]:
    """(pairs of every image with every text, or with its own caption without texts; notes on images left out).

    A caption is a drawing's label, a scene's text, the first line of a .txt beside a picture, or its sub-folder's name.
    `limit`: a random subset of each source, drawn by the seed, in the original order. Images keep their size up to 1024
    pixels a side. Boxes belong to captions: a given text has one only if it is the scene's own.

    Raises UsageError for a missing source, if no image is left, and for more than 20,000 pairs.
    """
    notes: list[str] = []
    found = [one for source in images for one in draw_subset(list(_find(source, notes)), limit, seed)]
    texts = list(dict.fromkeys(text.strip() for text in texts))
    if len(found) * max(1, len(texts)) > MOST:
        message = f"{len(found)} images x {max(1, len(texts))} texts are more than {MOST:,} pairs: give --limit"
        raise UsageError(message, "too_many", images=len(found), texts=max(1, len(texts)))
    others = _others(texts, negations, targets, objective)
    pairs: list[Pair] = []
    for one in _apart(found):
        if not texts and one.caption is None:
            why = next(iter(one.remarks), "give --texts, or a file beside it with the ending .txt")
            notes.append(f"{one.id} has no text: {why}")
            continue
        try:
            image = one.open()
        except (UsageError, OSError) as error:
            notes.append(f"{one.id}: {error}")
            continue
        notes += [f"{one.id}: {remark}" for remark in one.remarks]
        if why := _unfit(image):
            notes.append(f"{one.id}: {why}")
            continue
        size, read = (image.shape[-2], image.shape[-1]), one.open
        if (small := _within(image).shape[-2:]) != size:
            notes.append(f"{one.id} has {size[0]}x{size[1]} pixels and was resized to {small[0]}x{small[1]}")
            size, read = (small[0], small[1]), partial(_reduced, one.open)
        for text in texts or [one.caption or ""]:
            box = one.box if text == one.caption else None
            pairs.append(Pair(one.id, read, size, text, others(text), box))
    if not pairs:
        few = "; ".join(notes[:SHOWN])
        raise UsageError(f"no image is left to explain ({few or 'none was found'}): {SHOW}", "no_images")
    return pairs, notes


def faults_of_texts(
    images: Sequence[str],
    texts: Sequence[str],
    negations: Sequence[str],
    targets: Sequence[str],
    *,
    objective: Objective,
) -> Iterator[str]:
    """Faults of images and texts that can be found before reading them."""
    for source in images:
        if not (is_folder(source) or is_file(source) or source.startswith(EMBEDDED)):
            yield f"no image or folder at {source[:200]!r}: {SHOW}"
    if not images:
        yield f"no images: {SHOW}"
    for name, given in (("text", texts), ("negation", negations), ("target", targets)):
        if any(not text.strip() for text in given):
            yield f"a {name} is empty: each needs a word"
    if negations and objective != "negation":
        yield f"negations have no effect with the objective {objective!r}: leave them out, or take negation"
    if targets and objective != "targeted":
        yield f"targets have no effect with the objective {objective!r}: leave them out, or take targeted"
    if objective == "targeted" and not targets:
        yield 'a targeted attack needs a target: e.g. --targets "a dog"'
    if negations and len(negations) != len(texts):
        yield f"{len(negations)} negations for {len(texts)} texts: give one for each, in their order"
    if len(targets) > 1 and len(targets) != len(texts):
        yield f"{len(targets)} targets for {len(texts)} texts: give one for all, or one for each in their order"
    given = [text.strip() for text in texts]
    if (negations or len(targets) > 1) and (again := [text for text in given if given.count(text) > 1]):
        yield f"the text {again[0]!r} is given twice, and with it a text of its own: give each once"


def _others(
    texts: Sequence[str], negations: Sequence[str], targets: Sequence[str], objective: Objective
) -> Callable[[str], str]:
    """Function from a text to the one that the attack pulls towards."""
    match objective:
        case "negation":
            negated = dict(zip(texts, negations, strict=True)) if negations else {}
            return lambda text: negated.get(text) or negate(text)
        case "targeted":
            each = dict(zip(texts, targets, strict=True)) if len(targets) > 1 else dict.fromkeys(texts, targets[0])
            return lambda text: each.get(text, targets[0])
        case "untargeted":
            return lambda _: ""


def _find(source: str, notes: list[str]) -> Iterator[Source]:
    if is_folder(source):
        yield from _in_folder(Path(source), notes)
    elif is_file(source):
        yield _file(Path(source), Path(source).name, folder_caption=None)
    elif source == SCENES:
        for scene in compose_scenes():
            yield Source(scene.id, partial(_same, scene.image), scene.text, scene.box)
    elif source.startswith(EMBEDDED):
        split = source.removeprefix(EMBEDDED)
        drawings = load_labels(split)
        for row, (id_, label) in enumerate(zip(drawings.ids, drawings.labels.tolist(), strict=True)):
            yield Source(id_, partial(_drawing, split, row), drawings.label_names[label])
    else:
        raise UsageError(f"no image or folder at {source[:200]!r}: {SHOW}", "missing_file", path=source)


def _in_folder(folder: Path, notes: list[str]) -> Iterator[Source]:
    """Pictures of a folder and its sub-folders, by name; links to folders are not followed, as they may form cycles."""
    content = find_pictures(folder, follow=False)
    for path in content.pictures:
        inner = path.parent.name.replace("_", " ") if path.parent != folder else None
        yield _file(path, path.relative_to(folder).as_posix(), folder_caption=inner)
    captions = [path.with_suffix(".txt") for path in content.pictures]
    notes += [f"{folder.name}: {line}" for line in content.left_out(folder, captions)]


def _file(path: Path, name: str, *, folder_caption: str | None) -> Source:
    beside, caption = path.with_suffix(".txt"), folder_caption
    remarks: Counter[str] = Counter()
    try:
        caption = next((line for line in (read_lines(beside) if is_file(beside) else []) if line), folder_caption)
    except UsageError as error:
        caption, remarks[str(error).replace(str(beside), beside.name)] = None, 1
    return Source(name, partial(_open, path, remarks), caption, remarks=remarks)


def _open(path: Path, remarks: Counter[str] | None = None) -> Float[Tensor, "3 H W"]:
    try:
        return from_pil(decode(Stored(path).read(), remarks=remarks))
    except Skip as error:
        raise UsageError(f"no readable picture ({error})") from error
    except UsageError as error:  # a report does not show local paths
        raise UsageError(str(error).replace(f"{path} ", "")) from error


def _drawing(split: str, row: int) -> Float[Tensor, "3 H W"]:
    return load_emoji(split, [row]).images[0]


def _same(image: Float[Tensor, "3 H W"]) -> Float[Tensor, "3 H W"]:
    return image


def _unfit(image: Float[Tensor, "3 H W"]) -> str:
    height, width = image.shape[-2:]
    if min(height, width) < SMALLEST:
        return f"{height}x{width} pixels are too few: at least {SMALLEST} a side are needed"
    if max(height, width) > LONGEST * min(height, width):
        return f"{height}x{width} pixels are too elongated: at most {LONGEST} times as long as wide"
    return ""


def _within(image: Float[Tensor, "3 H W"]) -> Float[Tensor, "3 h w"]:
    """The image, resized to at most LARGEST pixels a side, at the same aspect ratio."""
    scale = LARGEST / max(image.shape[-2:])
    if scale >= 1:
        return image
    return resize(image[None], (max(1, round(image.shape[-2] * scale)), max(1, round(image.shape[-1] * scale))))[0]


def _reduced(read: Open) -> Float[Tensor, "3 h w"]:
    return _within(read())


def _apart(found: Sequence[Source]) -> Iterator[Source]:
    """The same images with unique ids."""
    seen: dict[str, int] = {}
    for one in found:
        count = seen[one.id] = seen.get(one.id, 0) + 1
        yield one if count == 1 else replace(one, id=f"{one.id} ({count})")
