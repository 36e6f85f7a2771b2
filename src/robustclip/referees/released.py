"""Released robust CLIPs: where each is, how its files are laid out, and what its authors report.

Facts and figures are from the sources named in `looked_up`; None means that none of them says it. Figures are the
authors', on their data and protocol, and none was measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Final, Literal

from robustclip.attacks.threat import ThreatModel
from robustclip.errors import UsageError

PREFIX: Final = "robust-clip:"
Layout = Literal["open_clip folder", "transformers folder", "open_clip file", "image tower file", "LoRA adapter"]
Tower = Literal["image", "text"]


@dataclass(frozen=True)
class Released:
    """One released model.

    `source` is "hf-hub:ORG/NAME", a citation of where the file can be downloaded, or None where no weights were found;
    `file` the file in it. `architecture` is open_clip's name, `quick_gelu` its activation (None: the config that comes
    with the weights says both). `towers` are those that were trained to be robust, `base` is the model that it was
    trained from: an open_clip tag of the architecture, which also completes a file that holds the image tower alone,
    or for an adapter the name of another entry. `threat` is "linf:EPS/255", "l2" or "levenshtein:K" for each tower.
    `sha256` maps published files to their hashes.
    """

    name: str
    family: str
    layout: Layout
    source: str | None
    architecture: str | None
    quick_gelu: bool | None
    image_size: int
    towers: tuple[Tower, ...]
    threat: str
    licence: str | None
    looked_up: tuple[str, ...]
    base: str | None = None
    file: str | None = None
    reported: Mapping[str, float] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""

    @property
    def threat_model(self) -> ThreatModel | None:
        """The image tower's L-inf ball; None for another threat and where its radius is not published."""
        norm, _, eps = self.threat.partition(",")[0].partition(":")
        known = norm == "linf" and eps
        return ThreatModel("linf", float(eps.removesuffix("/255")) / 255, self.image_size) if known else None


def _zero_shot(clean: float, two: float, four: float) -> dict[str, float]:
    names = ("clean", "linf:2/255", "linf:4/255")
    return {
        f"zero-shot accuracy in %, mean of the paper's sets, {name}": value
        for name, value in zip(names, (clean, two, four), strict=True)
    }


def _b32(clean: float, one: float, two: float, four: float) -> dict[str, float]:
    names = ("clean", "linf:1/255", "linf:2/255", "linf:4/255")
    return {f"zero-shot accuracy in %, {name}": v for name, v in zip(names, (clean, one, two, four), strict=True)}


def _nights(clean: float, linf: float, l2: float | None = None) -> dict[str, float]:
    found = {"NIGHTS 2AFC in %, clean": clean, "NIGHTS 2AFC in %, linf:4/255": linf}
    return found if l2 is None else found | {"NIGHTS 2AFC in %, l2:3": l2}


_FARE4 = Released(
    name="fare4-vit-l-14",
    family="FARE",
    layout="open_clip folder",
    source="hf-hub:chs20/fare4-clip",
    architecture="ViT-L-14",
    quick_gelu=True,
    image_size=224,
    towers=("image",),
    threat="linf:4/255",
    licence="mit",
    base="openai",
    reported=_zero_shot(61.1, 45.9, 32.4),
    looked_up=("chs20/RobustVLM README", "model cards of chs20 on the hub"),
    remark="Also released as a file of the image tower alone (fare_eps_4.pt).",
)
_RCLIP = replace(
    _FARE4,
    name="fare4-vit-b-16-laion2b",
    source="hf-hub:chs20/FARE4-ViT-B-16-laion2B-s34B-b88K",
    architecture="ViT-B-16",
    quick_gelu=False,
    base="laion2b_s34b_b88k",
    reported=_nights(90.6, 71.5, 65.5),
    looked_up=("model cards of chs20 on the hub", "fra31/perceptual-metrics README"),
    remark="",
)
_SIM4 = replace(
    _FARE4,
    name="simclip4-vit-l-14",
    family="Sim-CLIP",
    layout="image tower file",
    source="hf-hub:hossainzarif19/SimCLIP",
    file="simclip4.pt",
    reported={},
    looked_up=("speedlab-git/SimCLIP README and training code", "model card of hossainzarif19/SimCLIP on the hub"),
    remark="",
)
_LEAF = replace(
    _FARE4,
    name="leaf-vit-l-14-fare2",
    family="LEAF",
    layout="transformers folder",
    source="hf-hub:LEAF-CLIP/CLIP-ViT-L-rho50-k1-constrained-FARE2",
    towers=("image", "text"),
    threat="linf:2/255, levenshtein:1",
    reported={},
    looked_up=("LIONS-EPFL/LEAF README and conversion/convert_2.py", "model cards of LEAF-CLIP on the hub"),
    remark="The folder has no tokenizer and no image processor: CLIP's own.",
)
_DELTA = Released(
    name="delta-clip-vit-l-14",
    family="Delta-CLIP",
    layout="open_clip folder",
    source="hf-hub:zw123/delta_clip_l14_224",
    architecture=None,
    quick_gelu=None,
    image_size=224,
    towers=("image", "text"),
    threat="linf",
    licence="cc-by-4.0",
    looked_up=("model cards and file lists of zw123 on the hub", "abstract of arXiv 2501.09446"),
    remark=(
        "Trained from scratch with a text tower and a word-piece tokenizer of its own: its image tower beside another "
        "text tower classifies at chance."
    ),
)
_ADVFLYP = Released(
    name="advflyp-vit-b-32",
    family="AdvFLYP",
    layout="image tower file",
    source="hf-hub:xingslong/AdvFLYP",
    file="AdvFLYP_full_checkpoint.pth.tar",
    architecture="ViT-B-32",
    quick_gelu=True,
    image_size=224,
    towers=("image",),
    threat="linf:1/255",
    licence=None,
    base="openai",
    sha256={"AdvFLYP_full_checkpoint.pth.tar": "97fe54264a98d09787a3e819405cf32e0d6e2c2eb0dd592746d42ec3974cac37"},
    looked_up=("Sxing2/AdvFLYP README and code/main.py", "model card of xingslong/AdvFLYP on the hub"),
    remark="A trainer's checkpoint: the trained tensors are under partial_state_dict, beside an empty state_dict.",
)
_QTAFT = replace(
    _ADVFLYP,
    name="qt-aft-vit-l-14",
    family="QT-AFT",
    source="hf-hub:futakw/clip-qt-aft",
    file="CLIP-ViT-L-14_QTAFT_eps4.pt",
    architecture="ViT-L-14",
    threat="linf:4/255",
    sha256={},
    looked_up=("model card of futakw/clip-qt-aft on the hub",),
    remark="A trainer's checkpoint: the tower is under vision_encoder_state_dict, as TeCoA's own code saves it.",
)
_LORA = replace(
    _RCLIP,
    name="r-clip-lora-tecoa4-vit-b-16",
    family="R-CLIP",
    layout="LoRA adapter",
    source="download link in the README of fra31/perceptual-metrics",
    file="lora-vit-b-16-tecoa",
    base="tecoa4-vit-b-16-laion2b",
    reported=_nights(94.6, 81.5),
    licence=None,
    looked_up=("fra31/perceptual-metrics README and utils_lora.py",),
    remark=(
        "A PEFT adapter (rank 16, alpha 0.5) of the attention's input projections. Its authors compute LayerNorms with "
        "eps 1e-6, open_clip with 1e-5."
    ),
)

RELEASED: Final = {
    PREFIX + entry.name: replace(entry, name=PREFIX + entry.name)
    for entry in (
        Released(
            name="clipag-vit-b-32",
            family="CLIPAG",
            layout="open_clip file",
            source="Zenodo record 10446026",
            file="CLIPAG_ViTB32.pt",
            architecture="ViT-B-32",
            quick_gelu=False,
            image_size=224,
            towers=("image",),
            threat="l2",
            licence="cc-by-4.0",
            base="laion2b_s34b_b79k",
            reported={"FID on COCO, 30k": 42.3, "Inception Score on COCO, 30k": 18.7, "CLIPScore of ViT-H/14": 34.7},
            looked_up=("royg27/CLIPAG README", "arXiv 2306.16805", "licence: a third party's README"),
        ),
        _FARE4,
        replace(
            _FARE4,
            name="fare2-vit-l-14",
            source="hf-hub:chs20/fare2-clip",
            threat="linf:2/255",
            reported=_zero_shot(67.0, 43.1, 20.5),
            remark="Also released as a file of the image tower alone (fare_eps_2.pt).",
        ),
        replace(
            _FARE4,
            name="tecoa4-vit-l-14",
            family="TeCoA",
            source="hf-hub:chs20/tecoa4-clip",
            reported=_zero_shot(54.2, 42.3, 31.9),
            sha256={"open_clip_pytorch_model.bin": "7d85c081ffe48ee9a31fa4a025384212bc0d1f27ca6378cc44297cc4f6dfad37"},
            remark="Also released as a file of the image tower alone (tecoa_eps_4.pt).",
        ),
        replace(
            _FARE4,
            name="tecoa2-vit-l-14",
            family="TeCoA",
            source="hf-hub:chs20/tecoa2-clip",
            threat="linf:2/255",
            reported=_zero_shot(60.0, 43.6, 27.0),
            sha256={"open_clip_pytorch_model.bin": "c10d93237ca654e85b9977b6bb9195ea017e0e87ab15145e67dcf92245bd4af4"},
            remark="Also released as a file of the image tower alone (tecoa_eps_2.pt).",
        ),
        _RCLIP,
        replace(
            _RCLIP,
            name="tecoa4-vit-b-16-laion2b",
            family="TeCoA",
            source="hf-hub:chs20/TeCoA4-ViT-B-16-laion2B-s34B-b88K",
            reported=_nights(91.9, 79.4, 77.1),
        ),
        replace(
            _RCLIP,
            name="fare4-vit-b-32-laion2b",
            source="hf-hub:chs20/FARE4-ViT-B-32-laion2B-s34B-b79K",
            architecture="ViT-B-32",
            base="laion2b_s34b_b79k",
            reported=_b32(53.8, 44.4, 35.5, 21.2),
            looked_up=("chs20/RobustVLM README", "the hub id in third parties' code"),
        ),
        replace(
            _RCLIP,
            name="tecoa4-vit-b-32-laion2b",
            family="TeCoA",
            source="hf-hub:chs20/TeCoA4-ViT-B-32-laion2B-s34B-b79K",
            architecture="ViT-B-32",
            base="laion2b_s34b_b79k",
            reported=_b32(46.8, 40.6, 34.5, 23.3) | _nights(91.0, 79.1, 79.7),
            looked_up=("chs20/RobustVLM README", "model card of the hub id"),
        ),
        replace(
            _RCLIP,
            name="r-clip-fare4-convnext-base-w",
            family="R-CLIP",
            source="hf-hub:chs20/FARE4-convnext_base_w-laion2B-s13B-b82K-augreg",
            architecture="convnext_base_w",
            image_size=256,
            base="laion2b_s13b_b82k_augreg",
            reported=_nights(90.6, 74.3, 66.1),
            remark="Its authors report NIGHTS on 224 pixels, centre crops of what the original was trained on (256).",
        ),
        replace(
            _RCLIP,
            name="r-clip-tecoa4-convnext-base-w",
            family="R-CLIP",
            layout="image tower file",
            source="download link in the README of fra31/perceptual-metrics",
            file="convnext_base_w-tecoa-eps4.pt",
            architecture="convnext_base_w",
            image_size=256,
            base="laion2b_s13b_b82k_augreg",
            reported=_nights(92.3, 81.9, 78.5),
            licence=None,
            looked_up=("fra31/perceptual-metrics README and utils_perceptual_models.py",),
            remark="Its authors report NIGHTS on 224 pixels, centre crops of what the original was trained on (256).",
        ),
        _LORA,
        _SIM4,
        replace(_SIM4, name="simclip2-vit-l-14", file="simclip2.pt", threat="linf:2/255"),
        _LEAF,
        replace(
            _LEAF,
            name="leaf-vit-h-14-fare2",
            source="hf-hub:LEAF-CLIP/OpenCLIP-ViT-H-rho50-k1-constrained-FARE2",
            architecture="ViT-H-14",
            quick_gelu=False,
            base="laion2b_s32b_b79k",
        ),
        replace(
            _LEAF,
            name="fare2-vit-h-14",
            family="FARE",
            source="hf-hub:LEAF-CLIP/OpenCLIP-ViT-H-FARE2",
            architecture="ViT-H-14",
            quick_gelu=False,
            base="laion2b_s32b_b79k",
            towers=("image",),
            threat="linf:2/255",
        ),
        replace(
            _LEAF,
            name="fare2-vit-g-14",
            family="FARE",
            source="hf-hub:LEAF-CLIP/OpenCLIP-ViT-g-FARE2",
            architecture="ViT-g-14",
            quick_gelu=False,
            base="laion2b_s12b_b42k",
            towers=("image",),
            threat="linf:2/255",
        ),
        _DELTA,
        replace(_DELTA, name="delta-clip-vit-l-14-336", source="hf-hub:zw123/delta_clip_l14_336", image_size=336),
        replace(_DELTA, name="delta-clip-vit-h-14-336", source="hf-hub:zw123/delta_clip_h14_336", image_size=336),
        _ADVFLYP,
        replace(
            _ADVFLYP,
            name="advflyp-plain-vit-b-32",
            file="AdvFLYP_NonReg_checkpoint.pth.tar",
            sha256={
                "AdvFLYP_NonReg_checkpoint.pth.tar": "263f07ba2612cdd96de9684b4ce822fddd545298e38ef7cbde21283cc1616377"
            },
        ),
        _QTAFT,
        replace(_QTAFT, name="qt-aft-vit-b-16", file="CLIP-ViT-B-16_QTAFT_eps4.pt", architecture="ViT-B-16"),
        replace(
            _ADVFLYP,
            name="agft-vit-b-32",
            family="AGFT",
            source=None,
            file=None,
            sha256={},
            reported={"robust accuracy in %, mean of 15 sets": 46.57},
            looked_up=("YuboCui/AGFT README, train.py and clip_model.py", "the figure: a third party's note"),
            remark="Its code saves the tower under modules and clip.visual, beside prompts under params.",
        ),
    )
}
"""All entries by name."""


def find_released(name: str) -> Released:
    """The entry of that name. Raises UsageError for an unknown one, naming near ones."""
    if name not in RELEASED:
        near = get_close_matches(name, RELEASED, n=3, cutoff=0.4) or list(RELEASED)
        raise UsageError(
            f"no released robust CLIP is called {name[:100]!r}; near ones: {', '.join(near)}. robustclip referees list "
            "shows all",
            "unknown_release",
            name=name,
        )
    return RELEASED[name]
