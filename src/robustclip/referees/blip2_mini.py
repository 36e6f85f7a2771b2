"""Small BLIP-2 of the embedded world: the frozen image tower of an embedded CLIP and a small Q-Former."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel, PreTrainedTokenizerFast
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from robustclip.errors import UsageError
from robustclip.referees.base import TwoTower
from robustclip.referees.blip2 import DEC, SPECIAL_TOKENS, Blip2, CaptionHead, PairTokenizer, prepared
from robustclip.referees.card import Card
from robustclip.runs.rng import seeded

SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", DEC)
WIDTH: Final = 256  # of an image token
STAGES: Final = (2, 3, 4)  # of the trunk: 8x8, 4x4 and 2x2 cells of a picture of 64 pixels


@final
class TowerTokens(nn.Module):
    """The last three stages of a convolutional tower as tokens: on the grid of the second last, the finer one
    unshuffled, the coarser one repeated; then a norm and a projection, the only trained parts.

    Raises UsageError for a tower without such stages.
    """

    def __init__(self, tower: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        trunk: Any = getattr(tower, "trunk", None)
        if not hasattr(trunk, "forward_intermediates"):
            raise UsageError("this tower has no intermediate stages: take a CLIP with a convolutional timm tower")
        self.trunk = trunk
        self.trunk.eval().requires_grad_(False)
        with torch.no_grad():
            probe = self._stages(torch.zeros(1, 3, *size, device=next(self.trunk.parameters()).device))
        self.norm = nn.LayerNorm(probe.shape[-1])
        self.projection = nn.Linear(probe.shape[-1], WIDTH)

    def train(self, mode: bool = True) -> TowerTokens:
        """The tower stays in eval mode."""
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n w"]:
        return self.projection(self.norm(self._stages(pixels)))

    def _stages(self, pixels: Tensor) -> Tensor:
        fine, middle, coarse = self.trunk.forward_intermediates(pixels, indices=list(STAGES), intermediates_only=True)
        stacked = torch.cat([F.pixel_unshuffle(fine, 2), middle, F.interpolate(coarse, scale_factor=2)], 1)
        return stacked.flatten(2).mT


def new_mini(
    tower: TwoTower,
    captions: Iterable[str],
    *,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    queries: int = 16,
    shared: int = 64,
    card: Card,
    seed: int = 0,
) -> Blip2:
    """A BLIP-2 on this CLIP's image tower, with random weights keyed by `seed` and the captions' vocabulary."""
    return build_mini(
        tower,
        vocabulary_of(captions),
        {"hidden": hidden, "layers": layers, "heads": heads, "queries": queries, "shared": shared},
        card=card,
        seed=seed,
    )


def build_mini(tower: TwoTower, vocabulary: list[str], sizes: dict[str, int], *, card: Card, seed: int = 0) -> Blip2:
    """Build it from vocabulary and sizes, as saved in a folder. Raises UsageError for heads that do not divide the
    width."""
    if sizes["hidden"] % sizes["heads"]:
        raise UsageError(
            f"{sizes['heads']} heads do not divide a width of {sizes['hidden']}: take a divisor, e.g. hidden 128 and "
            "heads 4"
        )
    with seeded(seed):
        vision = TowerTokens(tower.image_tower, tower.image_size)
    hidden = sizes["hidden"]
    config = Blip2QFormerConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=4 * hidden,
        encoder_hidden_size=WIDTH,
        hidden_dropout_prob=0.0,  # training pictures are endless
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=32,
        cross_attention_frequency=2,
        use_qformer_text_input=True,
        pad_token_id=0,
        # BERT's 0.02 is for a width of 768; for small widths it slows training.
        initializer_range=hidden**-0.5,
    )
    with seeded(seed):
        embeddings = Blip2TextEmbeddings(config)
        nn.init.normal_(embeddings.word_embeddings.weight, std=config.initializer_range)
        nn.init.normal_(embeddings.position_embeddings.weight, std=config.initializer_range)
        reader = Blip2(
            vision,
            Blip2QFormerModel._from_config(config, attn_implementation="eager"),  # faster than fused at this size
            embeddings,
            torch.randn(1, sizes["queries"], hidden) * config.initializer_range,
            shared=sizes["shared"],
            tokenizer=word_pieces(vocabulary),
            preprocess=tower.preprocess,
            card=card,
            captions=CaptionHead(hidden, len(vocabulary)),
        )
    return reader.to(tower.device)


def vocabulary_of(captions: Iterable[str], uses: int = 3) -> list[str]:
    """Word-piece vocabulary: words with at least `uses` occurrences, and all letters."""
    counted = Counter(word for caption in captions for word in _words(caption))
    letters = sorted({letter for word in counted for letter in word})
    words = sorted(word for word, count in counted.items() if count >= uses and len(word) > 1)
    return [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words]


def word_pieces(vocabulary: list[str]) -> PairTokenizer:
    """A BERT tokenizer with this vocabulary."""
    ids = {token: index for index, token in enumerate(vocabulary)}
    inner = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return PairTokenizer(PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=DEC, **SPECIAL_TOKENS))


def _words(caption: str) -> list[str]:
    normalised = normalizers.BertNormalizer(lowercase=True).normalize_str(prepared(caption))
    return [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalised)]
