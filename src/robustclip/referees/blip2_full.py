"""Load full-size BLIP-2 (transformers' vision tower and Q-Former) from our folders and from transformers'."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from robustclip.errors import UsageError
from robustclip.referees.blip2 import DEC, SPECIAL_TOKENS, Blip2, CaptionHead, PairTokenizer
from robustclip.referees.card import Card
from robustclip.referees.folder import refuse_other_files
from robustclip.referees.huggingface import processor_file, read_preprocess
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.weights import INDEX, check_finite, check_fit, read_weights, write_weights
from robustclip.runs.files import is_file, read_json, sha256
from robustclip.runs.plain import check_sizes, refusing

_log = logging.getLogger(__name__)

FAMILY: Final = "blip2"
WEIGHTS: Final = "model.safetensors"
LIBRARY: Final = "Blip2ForImageTextRetrieval"
TOWER: Final = "vision.tower."
LAST_NORM: Final = f"{TOWER}post_layernorm."
MATRIX: Final = f"{TOWER}embeddings.patch_embedding.weight"  # whose dtype is the tower's


@final
class VisionTokens(nn.Module):
    """transformers' image tower: normalised pixels (B,3,h,w) to (B,N,W), including its last norm."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n w"]:
        tower = self.tower
        states = tower.embeddings(pixels)
        for block in tower.encoder.layers:
            output = block(states)
            states = output[0] if isinstance(output, tuple) else output
        return tower.post_layernorm(states.to(tower.post_layernorm.weight.dtype))  # LAVIS: float32 after a half tower


def build_full(
    sizes: Mapping[str, Any], tokenizer: PairTokenizer, preprocess: Preprocess, card: Card, *, norm_eps: float = 1e-5
) -> Blip2:
    """BLIP-2 with random weights, of `sizes` as in cards: configs of vision tower and Q-Former, numbers of queries,
    shared width, captioning head. `norm_eps` of the tower's last norm: 1e-5 in LAVIS, 1e-6 in transformers. Raises
    UsageError for invalid configs.
    """
    described = {name: value for name, value in sizes.items() if name in ("vision", "qformer")}
    check_sizes(described, card.name)
    with refusing(f"{card.name} describes no BLIP-2"):
        vision = Blip2VisionModel(Blip2VisionConfig(**sizes["vision"]))
        vision.post_layernorm.eps = norm_eps
        width = vision.config.hidden_size
        config = Blip2QFormerConfig(
            **{"encoder_hidden_size": width, "use_qformer_text_input": True, **sizes["qformer"]}
        )
        queries, shared = int(sizes["queries"]), int(sizes["shared"])
        return Blip2(
            VisionTokens(vision),
            Blip2QFormerModel(config),
            Blip2TextEmbeddings(config),
            torch.zeros(1, queries, config.hidden_size),
            shared=shared,
            tokenizer=tokenizer,
            preprocess=preprocess,
            card=card,
            captions=CaptionHead(config.hidden_size, config.vocab_size) if sizes["captions"] else None,
        )


def fill(
    sizes: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    tokenizer: PairTokenizer,
    preprocess: Preprocess,
    card: Card,
    *,
    source: str,
    norm_eps: float = 1e-5,
) -> Blip2:
    """Load weights. The image tower takes its matrices' dtype, the rest float32. Raises UsageError before allocation if
    they do not fit; RunError for non-finite ones.
    """
    with torch.device("meta"):
        bare = build_full(sizes, tokenizer, Preprocess.from_config(preprocess.config()), card, norm_eps=norm_eps)
    complete = dict(weights) | preprocess_state(bare)
    check_fit(bare, complete, source=source, hint="Give a whole folder, or convert it again")
    bare.preprocess = preprocess
    bare.load_state_dict(in_two_dtypes(weights) | preprocess_state(bare), assign=True)
    restore(bare)
    check_finite(bare, source=source)
    return bare


def in_two_dtypes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cast the image tower, except its last norm, to its matrices' dtype, and the rest to float32. LAVIS halves only
    the tower's matrices (convert_weights_to_fp16) and computes under autocast; here a tower computes in one dtype."""
    tower = weights[MATRIX].dtype if weights[MATRIX].dtype in (torch.float16, torch.bfloat16) else torch.float32
    return {
        name: value.to(tower if name.startswith(TOWER) and not name.startswith(LAST_NORM) else torch.float32)
        for name, value in weights.items()
    }


def preprocess_state(reader: Blip2) -> dict[str, Tensor]:
    """The preprocessing's buffers, which are not saved."""
    return {f"preprocess.{name}": value for name, value in reader.preprocess.state_dict().items()}


def restore(reader: Blip2) -> None:
    """Recreate buffers that are not saved, after building on the meta device."""
    embeddings: Any = reader.embeddings
    count = embeddings.position_embeddings.weight.shape[0]
    embeddings.position_ids = torch.arange(count).expand(1, -1)


def save_full(reader: Blip2, folder: Path, sizes: Mapping[str, Any], provenance: dict[str, Any], *, name: str) -> Card:
    """Write weights in their dtypes, the tokenizer and a card into an existing folder."""
    weights = {name: value for name, value in reader.state_dict().items() if not name.startswith("preprocess.")}
    write_weights(folder / WEIGHTS, weights)
    reader.tokenizer.tokenizer.save_pretrained(folder)
    card = Card(
        name=name,
        family=FAMILY,
        architecture=dict(sizes),
        preprocess=reader.preprocess.config(),
        logit_scale=1 / reader.temperature.item(),
        weights={WEIGHTS: sha256(folder / WEIGHTS)},
        provenance=provenance,
    )
    card.save(folder)
    return card


def load_full(folder: Path, card: Card) -> Blip2:
    """Load a folder written by `save_full`. Raises UsageError and RunError as `fill`."""
    if not is_file(folder / WEIGHTS):
        raise UsageError(f"{folder} has no {WEIGHTS}: give a whole folder")
    refuse_other_files(folder, card)
    preprocess = Preprocess.from_config(card.preprocess)
    weights = read_weights(folder / WEIGHTS)
    return fill(card.architecture, weights, tokenizer_of(folder), preprocess, card, source=str(folder / WEIGHTS))


def is_library_folder(folder: Path) -> bool:
    """Whether the folder is a transformers BLIP-2 for retrieval."""
    path = folder / "config.json"
    if not is_file(path):
        return False
    config = read_json(path)
    return isinstance(config, dict) and LIBRARY in (config.get("architectures") or [])


def load_library(folder: Path) -> Blip2:
    """Load transformers' Blip2ForImageTextRetrieval, with a note that it has no captioning head."""
    config = read_json(folder / "config.json")
    sizes = {
        "vision": {**config.get("vision_config", {})},
        "qformer": {**config.get("qformer_config", {})},
        "queries": config.get("num_query_tokens", 32),  # transformers omits defaults
        "shared": config.get("image_text_hidden_size", 256),
        "captions": False,
    }
    for part in ("vision", "qformer"):
        sizes[part].pop("model_type", None)
    side = sizes["vision"].get("image_size", 224)
    preprocess = _library_preprocess(folder, side)
    card = Card(folder.name, FAMILY, {}, preprocess.config(), 1.0)
    renamed = {
        f"vision.tower.{name.removeprefix('vision_model.')}" if name.startswith("vision_model.") else name: value
        for name, value in _library_weights(folder).items()
        if not name.endswith("position_ids")
    }
    renamed["temperature"] = torch.tensor(0.07)
    tokenizer = tokenizer_of(folder, dec=False)
    reader = fill(sizes, renamed, tokenizer, preprocess, card, source=str(folder), norm_eps=_eps(sizes["vision"]))
    _log.warning(
        f"{folder.name} has no captioning loss: transformers' {LIBRARY} comes without it; matching alone counts"
    )
    return reader


def _library_preprocess(folder: Path, side: int) -> Preprocess:
    """From the folder's image processor; without one BLIP-2's own (CLIP's mean and std, squash)."""
    if processor_file(folder) is None:
        return Preprocess((side, side), resize_mode="squash")
    return read_preprocess(folder, side)[0]


def tokenizer_of(folder: Path, *, dec: bool = True) -> PairTokenizer:
    """The tokenizer of a folder. Raises UsageError for none."""
    with refusing(f"{folder} contains no tokenizer"):
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return PairTokenizer(tokenizer, dec=dec)


def bert_tokenizer() -> PairTokenizer:
    """bert-base-uncased with [DEC] after its 30,522 entries, as in LAVIS; the vocabulary comes from the sentence
    encoder's package."""
    from robustclip.referees.sentence import package_folder

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(package_folder() / "tokenizer.json"), **SPECIAL_TOKENS)
    tokenizer.add_special_tokens({"bos_token": DEC})
    return PairTokenizer(tokenizer)


def _eps(vision: Mapping[str, Any]) -> float:
    return float(vision.get("layer_norm_eps", 1e-6))


def _library_weights(folder: Path) -> dict[str, Tensor]:
    """From one file, or from an index of shards."""
    file = next((folder / name for name in (WEIGHTS, WEIGHTS + INDEX) if is_file(folder / name)), None)
    if file is None:
        raise UsageError(
            f"{folder} has no {WEIGHTS}: weights are loaded from safetensors alone",
            "missing_file",
        )
    return read_weights(file)
