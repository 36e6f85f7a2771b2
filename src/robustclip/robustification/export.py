"""`robustclip export`: write a run as a folder for open_clip, transformers or timm."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, ClassVar, Literal, final

import torch

from robustclip.errors import UsageError
from robustclip.referees import registry, toy
from robustclip.referees.base import TwoTower, unit
from robustclip.referees.card import CARD_FILE, Card
from robustclip.referees.folder import CONFIG, IMAGE_TOWER, load_referee_folder, save_full, save_referee
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.smoothed import refuse_wrapped
from robustclip.referees.weights import digest, read_weights, write_weights
from robustclip.robustification.monitor import REFEREE, Which, referee_at
from robustclip.runs.files import atomic_write, check_new_folder, new_folder, sha256, write_json
from robustclip.runs.folder import RECORD
from robustclip.signatures import typed

FormatName = Literal["open_clip", "hf", "timm", "image-tower"]
CLASSIFIES, EMBEDS = "zero-shot-image-classification", "image-feature-extraction"


class Format(ABC):
    """An export format.

    `is_referee`: load_referee can load what it writes; `library` and `task` are those of the Hugging Face hub.
    """

    is_referee: ClassVar[bool]
    library: ClassVar[str]
    task: ClassVar[str]

    @abstractmethod
    def convert(self, referee: TwoTower) -> TwoTower:
        """Convert the referee for the library. Raises UsageError if that has no such architecture."""

    @abstractmethod
    def write(self, referee: TwoTower, folder: Path, card: Card, *, half: bool, target: Path) -> Card:
        """Write a converted referee into an empty folder, later moved to `target`; returns its card."""

    @abstractmethod
    def usage(self, card: Card, repo: str | None) -> str:
        """Code that loads the folder, or the hub's repository ORG/NAME."""


@final
class OpenClip(Format):
    """Both towers for open_clip; a toy for the registry only."""

    is_referee, library, task = True, "open_clip", CLASSIFIES

    def convert(self, referee: TwoTower) -> TwoTower:
        return referee if referee.card.family == toy.FAMILY else _as_open_clip(referee)

    def write(self, referee: TwoTower, folder: Path, card: Card, *, half: bool, target: Path) -> Card:
        if card.family == toy.FAMILY:
            return save_referee(referee, folder, half=half, card=card)
        return save_full(referee, folder, half=half, card=card, final=target)

    def usage(self, card: Card, repo: str | None) -> str:
        if card.family == toy.FAMILY:
            return ""
        place = f"hf-hub:{repo}" if repo else "local-dir:FOLDER"
        return f"""import open_clip
import robustclip

model, _, preprocess = open_clip.create_model_and_transforms("{place}")
tokenizer = open_clip.get_tokenizer("{place}")
referee = robustclip.load_referee("{place if repo else card.name}")"""


@final
class Transformers(Format):
    """A CLIPModel's folder with its processor."""

    is_referee, library, task = True, "transformers", CLASSIFIES

    def convert(self, referee: TwoTower) -> TwoTower:
        from robustclip.referees.conversion import as_transformers

        return as_transformers(referee)

    def write(self, referee: TwoTower, folder: Path, card: Card, *, half: bool, target: Path) -> Card:
        return save_referee(referee, folder, half=half, card=card)

    def usage(self, card: Card, repo: str | None) -> str:
        place = repo or "FOLDER"
        return f"""from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("{place}")
processor = CLIPProcessor.from_pretrained("{place}")"""


@final
class Timm(Format):
    """The image tower as a model of timm."""

    is_referee, library, task = False, "timm", EMBEDS

    def convert(self, referee: TwoTower) -> TwoTower:
        return _as_open_clip(referee)

    def write(self, referee: TwoTower, folder: Path, card: Card, *, half: bool, target: Path) -> Card:
        from robustclip.referees.timm_tower import save_timm

        files = save_timm(referee, folder, half=half)
        return _of_tower(referee, replace(card, family="timm"), folder, files)

    def usage(self, card: Card, repo: str | None) -> str:
        place = f"hf-hub:{repo}" if repo else "local-dir:FOLDER"
        return f"""import timm

tower = timm.create_model("{place}", pretrained=True).eval()  # its classifier's output is the embedding
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(tower))"""


@final
class ImageTower(Format):
    """The tensors of open_clip's `visual`, as FARE and TeCoA are released, and as safetensors."""

    is_referee, library, task = False, "open_clip", EMBEDS
    pickle: ClassVar[str] = "image_tower.pt"

    def convert(self, referee: TwoTower) -> TwoTower:
        return _as_open_clip(referee)

    def write(self, referee: TwoTower, folder: Path, card: Card, *, half: bool, target: Path) -> Card:
        write_weights(folder / IMAGE_TOWER, referee.image_tower.state_dict(), half=half)
        with atomic_write(folder / self.pickle) as file:
            torch.save(read_weights(folder / IMAGE_TOWER), file)
        write_json(folder / CONFIG, {"model_cfg": card.architecture, "preprocess_cfg": card.preprocess})
        return _of_tower(referee, card, folder, [IMAGE_TOWER, self.pickle])

    def usage(self, card: Card, repo: str | None) -> str:
        from robustclip.referees.openclip import name_of

        name = name_of(card.architecture)
        architecture = name or "ARCHITECTURE"
        quick_gelu = bool(card.architecture.get("quick_gelu", False))
        source = "" if name else f"\n# ARCHITECTURE: a name you give to the model_cfg in {CONFIG} (add_model_config)"
        return f"""import open_clip
import robustclip
import torch

# TAG: the weights whose text tower this image tower was trained beside{source}
model, _, preprocess = open_clip.create_model_and_transforms(
    "{architecture}", pretrained=TAG, force_quick_gelu={quick_gelu}
)
model.visual.load_state_dict(torch.load("{self.pickle}"))
referee = robustclip.load_referee("{self.pickle}", architecture="{architecture}", quick_gelu={quick_gelu}, \
pretrained=TAG)"""


FORMATS: dict[str, Format] = {
    "open_clip": OpenClip(),
    "hf": Transformers(),
    "timm": Timm(),
    "image-tower": ImageTower(),
}


def _as_open_clip(referee: TwoTower) -> TwoTower:
    from robustclip.referees.conversion import as_open_clip

    return as_open_clip(referee)


def _of_tower(referee: TwoTower, card: Card, folder: Path, files: list[str]) -> Card:
    """The card of an image tower alone: it names the text tower, with the digest of its weights."""
    text_tower = referee.text_tower.source() or {
        "name": f"that of {referee.card.name}, which is not in this folder",
        "sha256": digest(referee.text_tower.state_dict()),
    }
    return replace(card, text_tower=text_tower, weights={name: sha256(folder / name) for name in files})


AWKWARD = ["the dog’s “bone”", "cat &amp; dog", "cat &lt;3", "ﬁsh", "the dogâ€™s bone", "ＣＡＴ"]
TRANSPARENCY = (
    "robustclip lays transparent pictures on white, other libraries' transforms drop the alpha (often to black). The "
    "same for them: Image.alpha_composite(Image.new('RGBA', p.size, 'white'), p.convert('RGBA')).convert('RGB')"
)


@typed
def export(
    run: Annotated[Path | TwoTower, "a run's folder, or what load_referee takes: a name, a folder, a tag"],
    *,
    name: Annotated[str, "name of the referee"],
    to: Annotated[Path | None, "output folder; default: one in the registry"] = None,
    format: Annotated[FormatName, "library that loads it"] = "open_clip",
    checkpoint: Annotated[Which, "checkpoint of a run: last, or best probe accuracy under attack"] = "last",
    half: Annotated[bool, "round weights to float16"] = False,
    register: Annotated[bool, "register it, so that load_referee finds it by name"] = True,
    push: Annotated[str | None, "upload it to the Hugging Face hub as ORG/NAME"] = None,
) -> Path:
    """Export a run or a referee for a library, register it under `name`, and return the folder.

        open_clip     both towers, open_clip's config and tokenizer files:
                      open_clip.create_model_and_transforms("local-dir:FOLDER")
        hf            a CLIPModel of transformers with its processor:
                      CLIPModel.from_pretrained("FOLDER"), CLIPProcessor.from_pretrained("FOLDER")
        timm          the image tower, whose classifier gives the embedding:
                      timm.create_model("local-dir:FOLDER", pretrained=True)
        image-tower   the tensors of open_clip's `visual`, as robust CLIPs are often released:
                      model.visual.load_state_dict(torch.load("FOLDER/image_tower.pt"))

    Each folder contains the card. robustclip.load_referee(NAME) loads the first two; the others lack a text tower and
    are not registered. Conversion between open_clip and transformers requires an architecture that both have; unit
    embeddings, also those of a timm tower, agree within 1e-5, which is checked before writing. Without conversion,
    float32 embeddings after load_referee are bit-equal.

    The pixels of the hf processor are those of the referee where an image has the tower's size. Where it resizes, they
    differ by 1/255, more at hard edges: like open_clip's own transform it rounds to 8 bits and clamps the overshoot of
    bicubic resampling, and the referee does not, for its gradients; the card has the measured difference.
    Its tokenizer does not clean texts as open_clip's does (curly quotes, HTML entities); the card has the effect on
    their embeddings. Transparent pictures are composited on white here, and lose their alpha in other libraries'
    transforms: the card has the code that makes them equal.

    A text tower of transformers (the sentence encoder) is one that open_clip finds by hub id or path only: the config
    in the folder names the folder's own absolute path, where config.json describes the encoder, and its weights come
    from the folder's safetensors. So plain open_clip needs no network, and the folder must not be moved; export it
    again (`export(FOLDER, name=..., to=...)`) to put it elsewhere. load_referee works after a move.

    Only --push uses the network: the folder becomes one commit of a model repository, with the card as README.md and
    `license: unknown`, to be set there.

    Raises UsageError for an unsafe or taken name, an existing folder, a run without a referee, an architecture that the
    format's library lacks, and --push without a token; RunError if the hub refuses.
    """
    kind = FORMATS[format]
    register = register and kind.is_referee
    registry.check_name(name) if register else registry.check_safe(name)
    target = registry.home() / name if to is None else Path(to)
    check_new_folder(target)
    original = _referee_of(run, checkpoint)
    refuse_wrapped(original.image_tower, "has no weights of its own to export", "export its base")
    referee = kind.convert(original)
    card = _card(referee.card, name, half=half)
    card.provenance |= {"resizing": _resizing(referee), "transparency": TRANSPARENCY, **_texts(original, referee)}

    with new_folder(target) as draft:
        card = kind.write(referee, draft, card, half=half, target=target)
        card.save(draft, kind.usage(card, None))
    if to is not None and register:
        registry.add(target, name=name)
    if push is not None:
        from robustclip.robustification.push import push as upload

        where = upload(target, push, card=card, usage=kind.usage(card, push), library=kind.library, task=kind.task)
        print(f"pushed to {where}", file=sys.stderr)
    return target


def faults(to: Path | None, format: FormatName, register: bool, push: str | None) -> Iterator[UsageError]:
    """Faults of a call of `export` that can be found without running it."""
    if to is None and not FORMATS[format].is_referee:
        message = f"an image tower alone cannot be registered: give --to DIR with --format {format}"
        yield UsageError(message, "tower_alone", format=format)
    elif to is None and not register:
        yield UsageError(
            "an export that is not registered needs a folder: give --to DIR, or leave out --no-register", "no_folder"
        )
    if push is not None:
        from robustclip.robustification.push import fault

        if reason := fault(push):
            yield reason


def _referee_of(run: Path | TwoTower, which: Which) -> TwoTower:
    """The referee to export: of a run, or by load_referee. Raises UsageError if there is none."""
    folder = None if isinstance(run, TwoTower) or registry.find(str(run)) else Path(run)
    if folder is not None and (folder / RECORD).is_file():
        return referee_at(folder, which)
    if which == "best":
        raise UsageError("--checkpoint best is for a run's folder: leave it out for a referee", "not_a_run")
    if isinstance(run, TwoTower):
        return run
    if folder is not None and (folder / REFEREE / CARD_FILE).is_file():
        return load_referee_folder(folder / REFEREE)
    if folder is not None and not folder.exists() and not {":", "~"} & {*str(run)}:
        message = f"there is no run {folder}: give the folder that robustclip robustify wrote"
        raise UsageError(message, "no_such_run", folder=str(folder))
    return registry.load_referee(run)


@torch.no_grad()
def _resizing(referee: TwoTower) -> str:
    """Report of the difference that 8-bit PIL resizing makes, measured on two pictures."""
    height, width = (side * 3 // 2 for side in referee.image_size)
    noise = torch.rand(1, 3, height, 2 * width, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise[..., :5, :5], noise.shape[-2:], mode="bilinear")
    exact = Preprocess.from_config(referee.preprocess.config()).to(referee.device)
    exact.exact = True
    differences = []
    for name, image in (("noise", noise), ("a smooth picture", smooth)):
        image = ((image * 255).round() / 255).to(referee.device)
        ours, theirs = referee.preprocess(image), exact(image)
        pixel = ((ours - theirs) * exact.std).abs().max().item() * 255
        cosine = (unit(referee.image_tower(ours)) * unit(referee.image_tower(theirs))).sum().item()
        differences.append(f"{pixel:.1f}/255 and cosine {cosine:.4f} ({name} of {height}x{2 * width})")
    return (
        "a transform on PIL pictures rounds to 8 bits and clamps, robustclip does neither, so that gradients pass. "
        f"Largest difference of a pixel, and of the embedding: {', '.join(differences)}; none without resizing. "
        "referee.preprocess.exact = True gives the transform's values"
    )


def _texts(original: TwoTower, referee: TwoTower) -> dict[str, str]:
    """Report of the embeddings of awkward texts by the other library's tokenizer, if the family changed."""
    if original.card.family == referee.card.family:
        return {}
    cosines = (original.embed_texts(AWKWARD).cpu() * referee.embed_texts(AWKWARD).cpu()).sum(1)
    others = int((cosines < 1 - 1e-4).sum())
    reported = (
        f"open_clip's tokenizer mends texts and transformers' does not: of {len(AWKWARD)} awkward ones (curly quotes, "
        f"HTML entities, ligatures, mojibake) {others} embed otherwise than before, lowest cosine {cosines.min():.3f}"
    )
    return {"texts": reported}


def _card(card: Card, name: str, *, half: bool) -> Card:
    """The card under its new name; rounded weights do not inherit claims."""
    provenance = {**card.provenance, "exported": datetime.now(UTC).date().isoformat()}
    return replace(card, name=name, provenance=provenance, claims=[] if half else list(card.claims))
