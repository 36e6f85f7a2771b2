"""Yes/no visual question answering by transformers' BlipForQuestionAnswering."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import BlipConfig, BlipForQuestionAnswering, PreTrainedTokenizerFast

from robustclip.errors import UsageError
from robustclip.referees.huggingface import processor_file, read_preprocess
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.weights import check_fit, digest, load_strictly, read_weights, weights_file
from robustclip.runs.files import is_file, read_json
from robustclip.runs.plain import check_sizes, refusing

KIND: Final = "BlipForQuestionAnswering"
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
    if architecture(folder) != KIND:
        raise UsageError(f"{folder} holds no {KIND} of transformers: give e.g. a download of Salesforce/blip-vqa-base")
    config = read_json(folder / "config.json")
    check_sizes(config, str(folder / "config.json"))
    with refusing(f"{folder} describes no {KIND}"), torch.device("meta"):
        bare: Any = BlipForQuestionAnswering(BlipConfig.from_dict(config))
    file = weights_file(folder, ("model", "pytorch_model"))
    if file is None:
        raise UsageError(f"{folder} holds no weights (model.safetensors or pytorch_model.bin)")
    weights = {name: value for name, value in read_weights(file).items() if not name.endswith("position_ids")}
    for tied, source in TIED.items():
        if source in weights:
            weights.setdefault(tied, weights[source])
    check_fit(bare, weights, source=str(file), hint="Download it again")
    with refusing(f"{folder} describes no {KIND}"):
        model: Any = BlipForQuestionAnswering(BlipConfig.from_dict(config))
    load_strictly(model, weights, source=str(file))
    side = int(model.config.vision_config.image_size)
    preprocess = (
        Preprocess((side, side), resize_mode="squash")
        if processor_file(folder) is None
        else read_preprocess(folder, side)[0]
    )
    with refusing(f"{folder} holds no tokenizer"):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    model.to(device).eval().requires_grad_(False)
    return BlipQuestions(model, tokenizer, preprocess.to(device), folder.name)
