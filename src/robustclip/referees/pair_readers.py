"""Load pair readers (BLIP-2) by name or folder, among them the small ones of the embedded world: the frozen image tower
of an embedded CLIP and a small Q-Former."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel, PreTrainedTokenizerFast
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from robustclip.data import embedded
from robustclip.errors import UsageError
from robustclip.referees import blip2_full
from robustclip.referees.base import FAMILIES, TwoTower
from robustclip.referees.blip2 import DEC, SPECIAL_TOKENS, Blip2, CaptionHead, PairTokenizer, prepared
from robustclip.referees.blip2_full import is_library_folder, load_full, load_library
from robustclip.referees.card import CARD_FILE, Card
from robustclip.referees.folder import refuse_other_files
from robustclip.referees.registry import find, load_referee
from robustclip.referees.smoothed import fingerprint
from robustclip.referees.weights import digest, load_strictly, read_weights, write_weights
from robustclip.runs.files import is_file, sha256, write_text
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
            "heads 4",
            "heads_do_not_divide",
            heads=sizes["heads"],
            hidden=sizes["hidden"],
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


def vocabulary_of(captions: Iterable[str]) -> list[str]:
    """Word-piece vocabulary: words with at least three occurrences, and all letters."""
    counted = Counter(word for caption in captions for word in _words(caption))
    letters = sorted({letter for word in counted for letter in word})
    words = sorted(word for word, count in counted.items() if count >= 3 and len(word) > 1)
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


FAMILY: Final = "blip2-mini"
WEIGHTS, VOCABULARY = "model.safetensors", "vocab.txt"
TOWER: Final = "vision.trunk."  # prefix of weights that are loaded by the tower's name
SIZES: Final = ("hidden", "layers", "heads", "queries", "shared")
LARGEST: Final = 4096  # bound of sizes in a card, against excessive memory


def pair_reader_names() -> list[str]:
    """The pair readers that come with the package."""
    return list(embedded.folders("pair_readers", CARD_FILE))


def load_pair_reader(name_or_folder: str | Path, device: str | torch.device = "cpu") -> Blip2:
    """Load a pair reader by its embedded or registered name, or from a folder: of `save_mini`, of `robustclip convert
    lavis-blip2`, or transformers' Blip2ForImageTextRetrieval, which has no captioning loss. Frozen, in eval mode.

    Raises UsageError for a name or folder that is not a pair reader's, and for an invalid card; RunError for damaged
    weights, and for files that are not the card's.
    """
    return _load(_folder_of(name_or_folder), name_or_folder).to(device).eval().requires_grad_(False)


def _load(folder: Path, name_or_folder: str | Path) -> Blip2:
    if is_library_folder(folder):
        return load_library(folder)
    if not is_file(folder / CARD_FILE):
        raise UsageError(
            f"there is no pair reader {str(name_or_folder)[:200]!r}: give a folder, or a name "
            f"({', '.join(pair_reader_names())}){embedded.hint(name_or_folder)}",
            "unknown_pair_reader",
            given=str(name_or_folder),
        )
    card = Card.load(folder)
    if card.family not in FAMILIES:
        raise UsageError(
            f"{folder} holds a referee of the family {card.family}, which does not read pairs: robustclip.load_referee "
            f"loads it. Pair readers: {', '.join(pair_reader_names())}, and folders of robustclip convert lavis-blip2",
            "not_a_pair_reader",
            family=card.family,
        )
    return load_full(folder, card) if card.family == blip2_full.FAMILY else _load_mini(folder, card)


def save_mini(reader: Blip2, folder: Path, tower: str, sizes: dict[str, int], *, provenance: dict[str, Any]) -> Card:
    """Write card, vocabulary and weights in half precision. The image tower is not among them: the card names the CLIP
    that it is of, and its fingerprint."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value for name, value in reader.state_dict().items() if _is_own(name)}
    write_weights(folder / WEIGHTS, weights, half=True)
    write_text(folder / VOCABULARY, "\n".join(_entries(reader)) + "\n")
    own = fingerprint(load_referee(tower))
    card = Card(
        name=reader.card.name,
        family=FAMILY,
        architecture={"tower": tower, "fingerprint": own, **sizes},
        preprocess=reader.preprocess.config(),
        logit_scale=1 / reader.temperature.item(),
        weights={WEIGHTS: sha256(folder / WEIGHTS), VOCABULARY: sha256(folder / VOCABULARY)},
        provenance=provenance,
    )
    card.save(folder, usage=USAGE.format(name=card.name))
    return card


USAGE: Final = """from robustclip.referees.pair_readers import load_pair_reader

reader = load_pair_reader("{name}")  # or the path of this folder
reader.matching_logits(images, ["a yellow banana and a blue butterfly"])"""


def pair_fingerprint(reader: Blip2) -> str:
    """SHA-256 of all its weights."""
    return digest(reader.state_dict())


def _load_mini(folder: Path, card: Card) -> Blip2:
    described = card.architecture
    sizes = {name: described.get(name) for name in SIZES}
    if not all(type(size) is int and 0 < size <= LARGEST for size in sizes.values()):
        message = f"{folder / CARD_FILE} has no whole sizes ({', '.join(SIZES)}): write the folder again"
        raise UsageError(message, "not_sizes", sizes=sizes)
    tower = load_referee(str(described.get("tower")))
    if fingerprint(tower) != described.get("fingerprint"):
        raise UsageError(
            f"{folder} was trained on the image tower of another {described.get('tower')!r} than the one of that name "
            "here: train it again (robustclip robustify pretrain/emoji-blip2)",
            "other_tower",
            tower=described.get("tower"),
        )
    for name in (WEIGHTS, VOCABULARY):
        if not is_file(folder / name):
            raise UsageError(f"{folder} has no {name}: give a whole folder")
    refuse_other_files(folder, card)
    return _built(folder, tower, card, {name: int(str(size)) for name, size in sizes.items()})


def _built(
    folder: Path,
    tower: TwoTower,
    card: Card,
    sizes: dict[str, int],
    hint: str = "Give a whole folder, or train it again",
) -> Blip2:
    """The folder's weights on the image tower of `tower`."""
    vocabulary = (folder / VOCABULARY).read_text(encoding="utf-8").rstrip("\n").split("\n")
    reader = build_mini(tower, vocabulary, sizes, card=card)
    weights = {name: value.float() for name, value in read_weights(folder / WEIGHTS).items()}
    weights |= {name: value for name, value in reader.state_dict().items() if not _is_own(name)}
    load_strictly(reader, weights, source=str(folder / WEIGHTS), hint=hint)
    return reader


def move_to_tower(name_or_folder: str | Path, tower: TwoTower, card: Card) -> tuple[Blip2, dict[str, int]]:
    """(A small pair reader's Q-Former and projections on the image tower of another CLIP, its sizes), to be tuned on.

    Raises UsageError for another kind of pair reader, and for a tower whose stages have other widths.
    """
    start = load_pair_reader(name_or_folder)
    if start.card.family != FAMILY:
        raise UsageError(
            f"{start.card.name} has an image tower of its own: a tower can be exchanged below emoji-blip2 and other "
            "readers of robustify pretrain/emoji-blip2",
            "not_a_mini",
        )
    sizes = {name: int(start.card.architecture[name]) for name in SIZES}
    hint = f"Give a tower whose stages are as wide as those of {start.card.architecture['tower']}"
    return _built(_folder_of(name_or_folder), tower, card, sizes, hint), sizes


def _is_own(name: str) -> bool:
    return not name.startswith((TOWER, "preprocess."))


def _entries(reader: Blip2) -> list[str]:
    vocabulary = reader.tokenizer.tokenizer.get_vocab()
    return sorted(vocabulary, key=lambda token: vocabulary[token])


def is_pair_reader(name_or_folder: str | Path) -> bool:
    """Whether a name or folder is a pair reader's."""
    folder = _folder_of(name_or_folder)
    if is_library_folder(folder):
        return True
    return is_file(folder / CARD_FILE) and Card.load(folder).family in FAMILIES


def _folder_of(name_or_folder: str | Path) -> Path:
    """The folder of an embedded or registered name, or the folder itself."""
    shipped = embedded.folders("pair_readers", CARD_FILE)
    if str(name_or_folder) in shipped:
        return shipped[str(name_or_folder)]
    entry = find(str(name_or_folder))
    return Path(name_or_folder) if entry is None else entry.existing_folder()
