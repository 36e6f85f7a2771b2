"""Export formats: open_clip, transformers, timm, or the image tower's state dict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, final

import torch

from robustclip.referees import toy
from robustclip.referees.base import TwoTower
from robustclip.referees.card import Card
from robustclip.referees.folder import CONFIG, IMAGE_TOWER, save_full, save_referee
from robustclip.referees.weights import digest, read_weights, write_weights
from robustclip.runs.files import atomic_write, sha256, write_json

FormatName = Literal["open_clip", "hf", "timm", "image-tower"]
CLASSIFIES, EMBEDS = "zero-shot-image-classification", "image-feature-extraction"


class Format(ABC):
    """One way to write a referee.

    `is_referee` says whether load_referee finds both towers in what it writes; `library` and `task` are the Hugging
    Face hub's words.
    """

    is_referee: ClassVar[bool]
    library: ClassVar[str]
    task: ClassVar[str]

    @abstractmethod
    def convert(self, referee: TwoTower) -> TwoTower:
        """The referee as the library has it. Raises UsageError where that has nothing like it."""

    @abstractmethod
    def write(self, referee: TwoTower, folder: Path, card: Card, *, half: bool, target: Path) -> Card:
        """Write a converted referee into an empty folder that becomes `target`; returns the card as true of it."""

    @abstractmethod
    def usage(self, card: Card, repo: str | None) -> str:
        """Code that loads the folder, or the hub's repository ORG/NAME."""


@final
class OpenClip(Format):
    """Both towers for open_clip; a toy, which has no place there, for the registry."""

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

        known = name_of(card.architecture)
        architecture = known or "ARCHITECTURE"
        quick_gelu = bool(card.architecture.get("quick_gelu", False))
        source = "" if known else f"\n# ARCHITECTURE: a name you give to the model_cfg in {CONFIG} (add_model_config)"
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
    """The card of an image tower alone: its text tower is named, with the digest of its weights."""
    text_tower = referee.text_tower.source() or {
        "name": f"that of {referee.card.name}, which is not in this folder",
        "sha256": digest(referee.text_tower.state_dict()),
    }
    return replace(card, text_tower=text_tower, weights={name: sha256(folder / name) for name in files})
