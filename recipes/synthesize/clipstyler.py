"""CLIPStyler (Kwon & Ye 2022) and CLIPStyler + CLIPAG: text-guided style transfer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, Literal

import torch
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torchvision.transforms.functional import adjust_contrast

from robustclip.canvases import Canvas, Pixels, StyleNetwork
from robustclip.data.emoji import PREFIX, emoji_drawing
from robustclip.data.images import load_image, resize
from robustclip.errors import UsageError
from robustclip.flags import PictureFlags, SynthesisFlags, flat
from robustclip.losses.content import FeatureMatch, tower_features, vgg19
from robustclip.losses.similarity import Directional, NeighbourNorms, moves
from robustclip.referees.openclip import imagenet_templates
from robustclip.referees.registry import load_referee
from robustclip.runs.devices import pick_device
from robustclip.runs.files import is_file
from robustclip.synthesis.items import Item, Named, Seeds, apart, items_of_named, load_prompts, slug
from robustclip.synthesis.painted import Painted, Result, Watch
from robustclip.synthesis.prompts import parse_all
from robustclip.synthesis.session import PromptFile, Prompts, Referees, Session, Size, call_faults
from robustclip.synthesis.studio import paint_batch
from robustclip.synthesis.terms import Stream, Term, ZeroBelow
from robustclip.views import Perspective, RandomCrop, Views

CROP = 128 / 512  # the release's crops, as a share of the picture's side
WEIGHTS = (".safetensors", ".pth", ".pt")


def _contents(names: list[str]) -> list[str]:
    for name in names:
        read_content(name)
    return names


def read_content(name: str) -> torch.Tensor:
    """A content, (3,H,W) in [0,1], of a file or of `emoji:NAME`; transparency on white."""
    if name.startswith(PREFIX):
        return emoji_drawing(name.removeprefix(PREFIX))
    if not is_file(name):
        message = f"there is no content {name[:200]!r}: give a picture's file, or a drawing as emoji:cat face"
        raise UsageError(message, "missing_file", path=name)
    return load_image(name)


Contents = Annotated[list[str], AfterValidator(_contents), "pictures to restyle: files, or emoji:NAME"]

QUICK: Final = {"steps": 4, "patches": 2, "batch_size": 4}


def recipe(
    prompt: Prompts = [],  # noqa: B006  (not mutated)
    *,
    text: Annotated[list[str], "styles; alias of the prompts"] = [],  # noqa: B006
    prompts: PromptFile = None,
    content: Contents = ["emoji:cat face"],  # noqa: B006
    pairs: Annotated[bool, "combine the n-th content with the n-th style, instead of all with all"] = False,
    source: Annotated[str, "source text: a description of the content"] = "an emoji",
    referee: Referees = ["emoji-robust"],  # noqa: B006
    seeds: Seeds = [0],  # noqa: B006
    size: Size = None,
    canvas: Annotated[Literal["network", "pixels"], "canvas: the paper's style network, or pixels"] = "network",
    content_features: Annotated[
        str, "content features: a convolutional referee, or a file of VGG-19 weights"
    ] = "emoji-vanilla",
    templates: Annotated[bool, "use CLIPStyler's prompt ensemble"] = False,
    steps: NonNegativeInt = 100,
    lr: PositiveFloat = 2e-3,
    halve_every: Annotated[PositiveInt, "steps between halvings of the learning rate"] = 100,
    augment: Annotated[bool, "random perspective of patches"] = True,
    patches: NonNegativeInt = 8,
    patch_size: Annotated[float, Field(gt=0, le=1), "patch side, as a fraction of the picture's"] = 0.5,
    threshold: Annotated[NonNegativeFloat, "threshold below which patch losses count as zero"] = 0.7,
    lambda_patch: NonNegativeFloat = 9000.0,
    lambda_dir: NonNegativeFloat = 500.0,
    lambda_content: NonNegativeFloat = 150.0,
    lambda_tv: NonNegativeFloat = 2e-3,
    contrast: Annotated[NonNegativeFloat, "contrast of the saved picture; the release uses 1.5"] = 1.0,
    pictures: PictureFlags = PictureFlags(),
    common: SynthesisFlags = SynthesisFlags(),
) -> Result:
    """CLIPStyler: text-guided style transfer, by any referee.

    robustclip synthesize clipstyler "made of gold" "a pencil drawing" --content "emoji:cat face"

    Every content is combined with every style. Loss weights, threshold and network are those of train_CLIPstyler.py
    (cyclomon/CLIPstyler 4843cec). Ours, for the embedded referees' 64 pixels: steps and rate (200 and 5e-4 there), 8
    patches of half a side (64 of a quarter), no prompt ensemble (--templates), the source "an emoji" ("a Photo"),
    contrast as it is (1.5), and a content loss on a small tower's features, relative to the content's own. The release
    at its size is --size 512 --steps 200 --lr 5e-4 --patches 64 --patch-size 0.25 --templates --source "a Photo"
    --contrast 1.5 --content-features vgg19-dcbb9e9d.pth. Deviations: the release takes one step more, lacks one of
    ImageNet's 80 templates, and stretches saved pictures to the full range. --canvas pixels is CLIPAG's ablation, whose
    rate is not published.
    """
    arguments = flat(locals()) | {"prompt": [*prompt, *text], "text": []}
    styles = [Named("", one) for one in parse_all(arguments["prompt"])] if prompts is None else load_prompts(prompts)
    if pairs and len(content) != len(styles):
        raise _unequal(len(content), len(styles))
    # Random numbers depend on style and seed only.
    placed = [
        (replace(item, repeat=0), picture)
        for one, picture in zip(*_pictures(styles, content, pairs), strict=True)
        for item in items_of_named([one], arguments["seeds"])
    ]
    device = pick_device(common.device)
    if content_features.endswith(WEIGHTS):  # before the run's folder is created, because the file may be invalid
        features = vgg19(Path(content_features), device)
    else:
        tower = load_referee(content_features, device=str(device)).eval().requires_grad_(False)
        features = tower_features(tower)
    session = Session.open("clipstyler", arguments, items=[item for item, _ in placed], views=patches)
    guides, content_of = session.guides, {item.id: picture for item, picture in placed}
    ensemble = imagenet_templates() if templates else ("{}",)
    perspective = (Perspective(0.5),) if augment else ()
    crops = Views(max(patches, 1), (RandomCrop(patch_size), *perspective), name="patches")

    def paint(items: Sequence[Item], watch: Watch) -> Painted:
        shown = torch.stack([resize(read_content(content_of[item.id])[None], session.size)[0] for item in items])
        shown = shown.clamp(0, 1).to(guides.device)
        generators = [item.generator("start", device=guides.device) for item in items]
        made: Canvas = StyleNetwork(shown, generators) if canvas == "network" else Pixels(shown)
        texts = [item.prompt.wanted for item in items]
        directional = Directional(moves(guides.referees, guides.weights, shown, texts, source, ensemble), guides.dtype)
        loss = (
            Term(directional, weight=lambda_dir, name="directional")
            + Term(directional, crops, lambda_patch if patches else 0.0, ZeroBelow(threshold), name="patches")
            + Term(
                FeatureMatch(features, shown, relative=not content_features.endswith(WEIGHTS)), weight=lambda_content
            )
            + Term(NeighbourNorms(), weight=lambda_tv)
        )
        # The release steps its schedule before its optimiser: the first halving comes one step early.
        stream = Stream(
            loss, torch.optim.Adam(made.parameters(), lr=lr), schedule=lambda step: 0.5 ** ((step + 1) // halve_every)
        )
        painted = paint_batch(made, [stream], items=items, guides=guides, steps=steps, watch=watch)
        if contrast != 1:
            painted.images = adjust_contrast(painted.images, contrast)
            painted.similarity = guides.similarity(painted.images, [item.prompt for item in items])
        return painted

    return session.paint(paint, steps=steps)


def _pictures(styles: Sequence[Named], contents: Sequence[str], pairs: bool) -> tuple[list[Named], list[str]]:
    """Combinations of content and style with names, and the content of each."""
    both = (
        list(zip(contents, styles, strict=True))
        if pairs
        else [(content, style) for content in contents for style in styles]
    )
    ids = apart(
        (slug(f"{Path(content.removeprefix(PREFIX)).stem} {style.prompt.wanted}"), f"{content} {style.prompt}")
        for content, style in both
    )
    named = [replace(style, id=name) for name, (_, style) in zip(ids, both, strict=True)]
    return named, [content for content, _ in both]


def faults(
    prompt: list[str], text: list[str], prompts: Path | None, content: list[str], pairs: bool, source: str
) -> Iterator[UsageError]:
    """Faults of combinations of arguments."""
    yield from call_faults([*prompt, *text], prompts)
    if not content:
        yield UsageError(
            "there is no content to restyle: give --content cat.png, or --content 'emoji:cat face'", "no_content"
        )
    if not source.strip():
        yield UsageError("--source is empty: say what the content is, e.g. 'a Photo'", "no_source")
    if pairs and prompts is None and len(content) != len([*prompt, *text]):
        yield _unequal(len(content), len([*prompt, *text]))


def _unequal(contents: int, styles: int) -> UsageError:
    message = f"--pairs needs as many contents as styles, not {contents} and {styles}"
    return UsageError(message, "unequal_lengths", contents=contents, styles=styles)
