"""BLIP-2's first stage (Li et al. 2023) on transformers' Q-Former: matching, captioning and contrastive scores.

The losses are those of LAVIS' blip2_qformer.py; the captioning head is ours, since transformers has none.
"""

from __future__ import annotations

import logging
import re
import threading
from typing import Any, Final, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustclip.errors import UsageError
from robustclip.referees.base import PairReader, check_texts
from robustclip.referees.card import Card
from robustclip.referees.preprocess import Preprocess

_log = logging.getLogger(__name__)

DEC: Final = "[DEC]"
"""First token of captions; texts for matching begin with [CLS] (LAVIS blip2_qformer.py)."""
SPECIAL_TOKENS: Final = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
"""BERT's, as keywords of a tokenizer of transformers."""
CONTEXT: Final = 32  # maximal tokens of a text
WORDS: Final = 50  # maximal words of a caption (LAVIS blip_processors.py, max_words)
PUNCTUATION: Final = re.compile(r"[.!\"()*#:;~]")


def prepared(text: str) -> str:
    """Lower-case, replace punctuation by spaces, and truncate to 50 words (LAVIS BlipCaptionProcessor)."""
    return " ".join(PUNCTUATION.sub(" ", text.lower()).split()[:WORDS])


@final
class PairTokenizer:
    """A transformers BERT tokenizer with the token [DEC], which captioning needs (`dec`). Thread-safe."""

    def __init__(self, tokenizer: Any, *, dec: bool = True) -> None:
        self.tokenizer = tokenizer
        self.context = CONTEXT
        self._tokenizing = threading.Lock()  # a fast tokenizer keeps its padding and truncation as state
        self._warned: set[str] = set()
        has_dec = tokenizer.convert_tokens_to_ids(DEC) not in (None, tokenizer.unk_token_id)
        if dec and not has_dec:
            raise UsageError(
                f"the tokenizer has no {DEC}: add it, tokenizer.add_special_tokens({{'bos_token': '{DEC}'}})"
            )
        self.dec = int(tokenizer.convert_tokens_to_ids(DEC)) if has_dec else -1
        self.cls, self.sep, self.pad = (int(getattr(tokenizer, f"{name}_token_id")) for name in ("cls", "sep", "pad"))

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __call__(self, texts: list[str], device: torch.device) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Ids with [CLS] and [SEP], and an attention mask. Raises UsageError for anything that is not a text."""
        with self._tokenizing:
            encoded = self.tokenizer(
                [prepared(text) for text in check_texts(texts)],
                padding=True,
                truncation=True,
                max_length=self.context,
                return_tensors="pt",
            )
        return encoded["input_ids"].to(device), encoded["attention_mask"].bool().to(device)

    def check(self, texts: list[str]) -> None:
        """Warn, once for each text, about truncation."""
        for text in texts:
            with self._tokenizing:
                count = len(self.tokenizer(prepared(text), truncation=False, verbose=False)["input_ids"])
            words = len(PUNCTUATION.sub(" ", text).split())
            if (count > self.context or words > WORDS) and text not in self._warned:
                self._warned.add(text)
                _log.warning(
                    f"{text[:60]!r}... has {count} tokens, of which this referee reads {self.context}: it is truncated"
                )

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


SMOOTHING: Final = 0.1  # of the captioning loss's labels (LAVIS Qformer.py)
MATCH: Final = 1  # index of the class "match"


class CaptionHead(nn.Module):
    """BERT's head: states of text tokens to logits of the next token. Keys as in LAVIS' Qformer.cls.predictions."""

    def __init__(self, hidden: int, vocabulary: int, eps: float = 1e-12) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden, eps=eps)
        self.decoder = nn.Linear(hidden, vocabulary)

    def forward(self, states: Float[Tensor, "b l d"]) -> Float[Tensor, "b l k"]:
        return self.decoder(self.norm(F.gelu(self.dense(states))))


@final
class Blip2(PairReader):
    """BLIP-2's first stage: an image tower and a Q-Former with learned queries, with or without text.

    vision: normalised pixels -> (B,N,W), in any floating dtype; qformer: a Blip2QFormerModel of transformers, which
    computes in float32 unless the caller opens an autocast; embeddings: its Blip2TextEmbeddings; query_tokens: (1,Q,D);
    vision_projection, text_projection: to the shared width of images and texts; matching: D -> 2; captions: None
    without a captioning loss.
    """

    def __init__(
        self,
        vision: nn.Module,
        qformer: Any,
        embeddings: nn.Module,
        query_tokens: Float[Tensor, "1 q d"],
        *,
        shared: int,
        tokenizer: PairTokenizer,
        preprocess: Preprocess,
        card: Card,
        captions: CaptionHead | None = None,
    ) -> None:
        super().__init__()
        hidden = qformer.config.hidden_size
        self.vision = vision
        self.qformer = qformer
        self.embeddings = embeddings
        self.query_tokens = nn.Parameter(query_tokens)
        self.vision_projection = nn.Linear(hidden, shared)
        self.text_projection = nn.Linear(hidden, shared)
        self.itm_head = nn.Linear(hidden, 2)
        self.lm_head = captions
        self.temperature = nn.Parameter(torch.tensor(0.07))  # of the contrastive loss, in training
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.card = card
        self.can_caption = captions is not None

    # Interface of PairReader.

    def matching_logits(self, images: Float[Tensor, "b 3 H W"], texts: list[str]) -> Float[Tensor, "b 2"]:
        _one_each(images, texts)
        return self.match(self.image_tokens(images), *self.tokenizer(texts, self.device))

    def pair_losses(
        self, images: Float[Tensor, "b 3 H W"], texts: list[str], *, matching: float = 1.0, captioning: float = 1.0
    ) -> Float[Tensor, " b"]:
        _one_each(images, texts)
        tokens = self.image_tokens(images)
        ids, mask = self.tokenizer(texts, self.device)
        losses = tokens.new_zeros(len(tokens), dtype=torch.float32)
        if matching:
            target = torch.full((len(tokens),), MATCH, device=tokens.device)
            losses = losses + matching * F.cross_entropy(self.match(tokens, ids, mask), target, reduction="none")
        if captioning:
            losses = losses + captioning * self.caption_losses(tokens, ids, mask)
        return losses

    def contrastive(self, images: Float[Tensor, "b 3 H W"], texts: list[str]) -> Float[Tensor, "b t"]:
        return self.similarities(
            self.image_features(self.image_tokens(images)), self.text_features(*self.tokenizer(texts, self.device))
        )

    @torch.no_grad()
    def caption(self, images: Float[Tensor, "b 3 H W"]) -> list[str]:
        """Greedy decoding until [SEP]."""
        tokens = self.image_tokens(images)
        ids = torch.full((len(tokens), 1), self.tokenizer.dec, device=tokens.device)
        for _ in range(self.tokenizer.context - 1):
            following = self.caption_logits(tokens, ids, torch.ones_like(ids, dtype=torch.bool))[:, -1].argmax(-1)
            ids = torch.cat([ids, following[:, None]], 1)
            if (ids == self.tokenizer.sep).any(1).all():
                break
        rows = [row[1 : row.index(self.tokenizer.sep) if self.tokenizer.sep in row else None] for row in ids.tolist()]
        return [self.tokenizer.decode(row) for row in rows]

    def check_texts(self, texts: list[str]) -> None:
        self.tokenizer.check(texts)

    # Parts, on image tokens (B,N,W) and ids and mask (B,L) of texts.

    def image_tokens(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b n w"]:
        """Image tower outputs for the Q-Former, in float32. A half-precision tower computes in its dtype, regardless of
        autocast.
        """
        pixels = self.preprocess(images)
        dtype = next((parameter.dtype for parameter in self.vision.parameters()), pixels.dtype)
        if dtype == torch.float32:
            return self.vision(pixels.to(dtype)).float()
        with torch.autocast(pixels.device.type, enabled=False):  # on a CPU it cannot mix two half precisions
            return self.vision(pixels.to(dtype)).float()

    def match(
        self, tokens: Float[Tensor, "b n w"], ids: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"]
    ) -> Float[Tensor, "b 2"]:
        """Matching logits: queries and text attend to each other; averaged over queries."""
        queries = self._queries(len(tokens))
        count = queries.shape[1]
        attention = torch.cat([mask.new_ones(len(mask), count), mask], 1)
        attention = attention[:, None, None, :].expand(-1, 1, attention.shape[1], -1)
        states = self._run(self.embeddings(input_ids=ids, query_embeds=queries), count, attention, tokens)
        return self.itm_head(states[:, :count]).float().mean(1)

    def caption_logits(
        self, tokens: Float[Tensor, "b n w"], ids: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"]
    ) -> Float[Tensor, "b l k"]:
        """Queries attend to the image and each other; text attends to the queries, and causally to itself.

        LAVIS runs the queries first and caches their keys and values; transformers' Q-Former has no cache, so this is
        one equivalent pass with a block mask.
        """
        if self.lm_head is None:
            raise UsageError(
                f"{self.card.name} has no captioning loss: transformers' retrieval models lack its head. Leave it out "
                "(captioning 0), or take weights of robustclip convert lavis-blip2",
                "no_captioning",
                reader=self.card.name,
            )
        queries = self._queries(len(tokens))
        count, length = queries.shape[1], ids.shape[1]
        attention = torch.zeros(len(ids), 1, count + length, count + length, dtype=torch.bool, device=ids.device)
        attention[..., :count] = True
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        attention[:, 0, count:, count:] = causal & mask[:, None, :]
        states = self._run(self.embeddings(input_ids=ids, query_embeds=queries), count, attention, tokens)
        return self.lm_head(states[:, count:]).float()

    def caption_losses(
        self, tokens: Float[Tensor, "b n w"], ids: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"]
    ) -> Float[Tensor, " b"]:
        """Cross-entropy of next tokens with label smoothing, averaged over tokens without padding."""
        ids = torch.cat([torch.full_like(ids[:, :1], self.tokenizer.dec), ids[:, 1:]], 1)
        logits = self.caption_logits(tokens, ids, mask)[:, :-1]
        losses = F.cross_entropy(logits.mT, ids[:, 1:], reduction="none", label_smoothing=SMOOTHING)
        counted = mask[:, 1:].to(losses.dtype)
        return (losses * counted).sum(1) / counted.sum(1).clamp(min=1)

    def image_features(self, tokens: Float[Tensor, "b n w"]) -> Float[Tensor, "b q s"]:
        """Unit vectors, one per query."""
        queries = self._queries(len(tokens))
        states = self._run(queries, queries.shape[1], None, tokens)
        return F.normalize(self.vision_projection(states).float(), dim=-1)

    def text_features(self, ids: Int[Tensor, "t l"], mask: Bool[Tensor, "t l"]) -> Float[Tensor, "t s"]:
        """Unit vector of each text, at its [CLS]."""
        attention = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
        states = self._run(self.embeddings(input_ids=ids), 0, attention, None)
        return F.normalize(self.text_projection(states[:, 0]).float(), dim=-1)

    @staticmethod
    def similarities(images: Float[Tensor, "b q s"], texts: Float[Tensor, "t s"]) -> Float[Tensor, "b t"]:
        """The cosine of each text with the nearest query of each image."""
        return torch.einsum("bqs,ts->btq", images, texts).amax(-1)

    def _queries(self, count: int) -> Float[Tensor, "b q d"]:
        return self.query_tokens.expand(count, -1, -1)

    def _run(
        self,
        embedded: Float[Tensor, "b l d"],
        queries: int,
        attention: Bool[Tensor, "b 1 l l"] | None,
        tokens: Float[Tensor, "b n w"] | None,
    ) -> Float[Tensor, "b l d"]:
        """The Q-Former; `attention`: whether a position (row) attends to another (column)."""
        mask = None
        if attention is not None:  # as an additive mask, which all attention implementations support
            mask = torch.zeros(attention.shape, dtype=embedded.dtype, device=attention.device)
            mask = mask.masked_fill(~attention, torch.finfo(embedded.dtype).min)
        return self.qformer(
            query_embeds=embedded, query_length=queries, attention_mask=mask, encoder_hidden_states=tokens
        ).last_hidden_state


def _one_each(images: Tensor, texts: list[str]) -> None:
    if isinstance(texts, str) or len(images) != len(texts):
        count = "one text as it is" if isinstance(texts, str) else f"{len(texts)} texts"
        message = f"{len(images)} images and {count}: a pair reader takes a list with one text per image"
        raise UsageError(message, "not_one_each", images=len(images), texts=len(texts))
