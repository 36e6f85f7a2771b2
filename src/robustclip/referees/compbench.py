"""T2I-CompBench's judges of transformers: yes/no visual question answering by BlipForQuestionAnswering, and the
open-vocabulary detectors OWL-ViT, OWLv2 and Grounding DINO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    BlipConfig,
    BlipForQuestionAnswering,
    PreTrainedTokenizerFast,
)

from robustclip.data.images import to_pil
from robustclip.errors import UsageError
from robustclip.referees.base import Detection
from robustclip.referees.huggingface import processor_file, read_preprocess
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.weights import check_finite, check_fit, digest, load_strictly, read_weights, weights_file
from robustclip.runs.files import is_file, read_json
from robustclip.runs.plain import check_sizes, refusing

ANSWERER: Final = "BlipForQuestionAnswering"
TIED: Final = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}
"""Tied weights, which files may omit."""
LONGEST: Final = 35  # tokens of a question (BLIP, blip_vqa.py)


def architecture(folder: str | Path) -> str | None:
    """The transformers architecture of a folder; None if it has none."""
    path = Path(folder) / "config.json"
    config = read_json(path) if is_file(path) else None
    names = config.get("architectures") if isinstance(config, dict) else None
    return str(names[0]) if isinstance(names, list) and names else None


@final
class BlipQuestions:
    """BLIP for yes/no questions. The probability of yes is that of the answer's first token among "yes" and "no"
    (blip_vqa.py of T2I-CompBench, vqa_prob).

    The question begins with [ENC], the vocabulary's last entry, instead of [CLS], as in BLIP; transformers' `generate`
    keeps [CLS]. Raises UsageError for a tokenizer without the two words.
    """

    def __init__(self, model: Any, tokenizer: Any, preprocess: Preprocess, name: str) -> None:
        self.model, self.tokenizer, self.preprocess, self.name = model.eval(), tokenizer, preprocess, name
        self.words = [tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")]
        if any(one is None or one == tokenizer.unk_token_id for one in self.words):
            raise UsageError(
                f"{name} lacks the words yes and no: take a VQA model with an English vocabulary", "no_yes"
            )
        text = model.config.text_config
        self.begin = int(text.bos_token_id)
        self.encode = self.begin + 1 if self.begin + 1 < text.vocab_size else None
        self.fingerprint = digest(model.state_dict())

    @property
    def device(self) -> torch.device:
        return self.preprocess.mean.device

    @torch.no_grad()
    def yes(self, images: Float[Tensor, "b 3 h w"], questions: Sequence[Sequence[str]]) -> list[Float[Tensor, " q"]]:
        """The probability of yes to each question about each picture in [0,1]."""
        states = self.model.vision_model(pixel_values=self.preprocess(images.to(self.device))).last_hidden_state
        return [self._ask(state, list(texts)) for state, texts in zip(states, questions, strict=True)]

    def _ask(self, state: Float[Tensor, "n d"], questions: list[str]) -> Float[Tensor, " q"]:
        """Batches of equal length, since padding would slightly change the outputs under transformers' masks."""
        ids = [self.tokenizer(text, truncation=True, max_length=LONGEST)["input_ids"] for text in questions]
        probabilities = torch.zeros(len(ids))
        for length in {len(one) for one in ids}:
            rows = [row for row, one in enumerate(ids) if len(one) == length]
            probabilities[rows] = self._answer(state, torch.tensor([ids[row] for row in rows], device=self.device))
        return probabilities

    def _answer(self, state: Float[Tensor, "n d"], ids: Int[Tensor, "q l"]) -> Float[Tensor, " q"]:
        if self.encode is not None:
            ids[:, 0] = self.encode
        encoded = self.model.text_encoder(input_ids=ids, encoder_hidden_states=state.expand(len(ids), -1, -1))
        begin = torch.full((len(ids), 1), self.begin, device=self.device)
        decoded = self.model.text_decoder(input_ids=begin, encoder_hidden_states=encoded.last_hidden_state)
        return decoded.logits[:, 0, self.words].float().softmax(1)[:, 0].cpu()


def load_vqa(folder: str | Path, device: str | torch.device = "cpu") -> BlipQuestions:
    """Load a BlipForQuestionAnswering from a transformers folder; only local files are read.

    Raises UsageError for another folder, RunError for damaged weights.
    """
    folder = Path(folder)
    if architecture(folder) != ANSWERER:
        raise UsageError(
            f"{folder} contains no {ANSWERER} of transformers: give e.g. a download of Salesforce/blip-vqa-base"
        )
    config = read_json(folder / "config.json")
    check_sizes(config, str(folder / "config.json"))
    with refusing(f"{folder} describes no {ANSWERER}"), torch.device("meta"):
        bare: Any = BlipForQuestionAnswering(BlipConfig.from_dict(config))
    file = weights_file(folder, ("model", "pytorch_model"))
    if file is None:
        raise UsageError(f"{folder} contains no weights (model.safetensors or pytorch_model.bin)")
    weights = {name: value for name, value in read_weights(file).items() if not name.endswith("position_ids")}
    for tied, source in TIED.items():
        if source in weights:
            weights.setdefault(tied, weights[source])
    check_fit(bare, weights, source=str(file), hint="Download it again")
    with refusing(f"{folder} describes no {ANSWERER}"):
        model: Any = BlipForQuestionAnswering(BlipConfig.from_dict(config))
    load_strictly(model, weights, source=str(file))
    side = int(model.config.vision_config.image_size)
    preprocess = (
        Preprocess((side, side), resize_mode="squash")
        if processor_file(folder) is None
        else read_preprocess(folder, side)[0]
    )
    with refusing(f"{folder} contains no tokenizer"):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    model.to(device).eval().requires_grad_(False)
    return BlipQuestions(model, tokenizer, preprocess.to(device), folder.name)


DETECTORS: Final = ("OwlViTForObjectDetection", "Owlv2ForObjectDetection", "GroundingDinoForObjectDetection")
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
    if architecture(folder) not in DETECTORS:
        raise UsageError(
            f"{folder} contains no transformers detector ({', '.join(DETECTORS)}): give e.g. a download of "
            "google/owlv2-base-patch16-ensemble"
        )
    file = weights_file(folder, ("model",))
    if file is None or ".safetensors" not in file.name:
        raise UsageError(f"{folder} has no model.safetensors: weights are loaded from safetensors alone")
    check_sizes(read_json(folder / "config.json"), str(folder / "config.json"))
    with refusing(f"{folder} is not a detector that transformers loads"):
        model = AutoModelForZeroShotObjectDetection.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    check_finite(model, source=str(folder))
    return Detector(model.to(device).requires_grad_(False), processor, folder.name)
