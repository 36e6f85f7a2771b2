"""Open-vocabulary detectors of transformers: OWL-ViT, OWLv2 and Grounding DINO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from robustclip.data.images import to_pil
from robustclip.errors import UsageError
from robustclip.referees.base import Detection
from robustclip.referees.vqa import architecture
from robustclip.referees.weights import check_finite, digest, weights_file
from robustclip.runs.files import read_json
from robustclip.runs.plain import check_sizes, refusing

KINDS: Final = ("OwlViTForObjectDetection", "Owlv2ForObjectDetection", "GroundingDinoForObjectDetection")
THRESHOLD: Final = 0.3
"""Least score of a detection, ours; T2I-CompBench's UniDet has other scores."""


@final
class Detector:
    """A transformers detector with its processor."""

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        self.model, self.processor, self.name = model.eval(), processor, name
        self.fingerprint = digest(model.state_dict())
        self.grounding = "GroundingDino" in type(model).__name__

    @torch.no_grad()
    def detect(
        self, images: Float[Tensor, "b 3 h w"], labels: Sequence[str], *, threshold: float = THRESHOLD
    ) -> list[list[Detection]]:
        """Detections of `labels` in each picture in [0,1], by descending score."""
        if not labels:
            return [[] for _ in images]
        return [self._one(image, list(labels), threshold) for image in images]

    def _one(self, image: Float[Tensor, "3 h w"], labels: list[str], threshold: float) -> list[Detection]:
        texts = [labels] if self.grounding else [[f"a photo of a {label}" for label in labels]]
        inputs = self.processor(text=texts, images=to_pil(image), return_tensors="pt").to(self.model.device)
        outputs = self.model(**inputs)
        size = [tuple(image.shape[-2:])]
        if self.grounding:
            output = self.processor.post_process_grounded_object_detection(
                outputs, inputs.input_ids, threshold=threshold, text_threshold=threshold, target_sizes=size
            )[0]
            names = [_nearest(text, labels) for text in output["text_labels"]]
        else:
            output = self.processor.post_process_grounded_object_detection(
                outputs, threshold=threshold, target_sizes=size
            )[0]
            names = [labels[int(index)] for index in output["labels"]]
        height, width = image.shape[-2:]
        boxes = (output["boxes"].cpu() / torch.tensor([width, height, width, height])).clamp(0, 1).tolist()
        each = zip(names, output["scores"].tolist(), boxes, strict=True)
        results = [Detection(name, score, tuple(box)) for name, score, box in each if name is not None]
        return sorted(results, key=lambda one: -one.score)


def _nearest(text: str, labels: Sequence[str]) -> str | None:
    """The label of Grounding DINO's text, which joins the matched tokens and may be part of a label or of several; None
    if it matches none."""
    return next((label for label in labels if text == label), None) or next(
        (label for label in labels if text and (label in text or text in label)), None
    )


def load_detector(folder: str | Path, device: str | torch.device = "cpu") -> Detector:
    """Load a detector from a transformers folder; only local files are read, safetensors only.

    Raises UsageError for another folder, RunError for damaged weights.
    """
    folder = Path(folder)
    if architecture(folder) not in KINDS:
        raise UsageError(
            f"{folder} holds no transformers detector ({', '.join(KINDS)}): give e.g. a download of "
            "google/owlv2-base-patch16-ensemble"
        )
    file = weights_file(folder, ("model",))
    if file is None or ".safetensors" not in file.name:
        raise UsageError(f"{folder} has no model.safetensors: weights are loaded from safetensors alone")
    check_sizes(read_json(folder / "config.json"), str(folder / "config.json"))
    with refusing(f"{folder} is no detector that transformers loads"):
        model = AutoModelForZeroShotObjectDetection.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    check_finite(model, source=str(folder))
    return Detector(model.to(device).requires_grad_(False), processor, folder.name)
