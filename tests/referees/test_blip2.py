"""The BLIP-2 referee against transformers' own, against two passes, and against losses by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
)

from robustclip.errors import UsageError, coded
from robustclip.losses.scores import Pairing
from robustclip.referees.blip2 import MATCH, SMOOTHING, Blip2, CaptionHead, PairTokenizer, prepared
from robustclip.referees.card import Card
from robustclip.referees.pair_readers import SPECIAL, word_pieces
from robustclip.referees.preprocess import Preprocess

WORDS = ["a", "an", "and", "red", "blue", "fish", "hat", "cat", "of", "##s"]
TEXTS = ["a red fish", "a blue hat and a red cat and a fish", "cat"]
QUERIES = 4


@pytest.fixture(scope="module")
def tokenizer() -> PairTokenizer:
    return word_pieces([*SPECIAL, *WORDS])


@pytest.fixture(scope="module")
def library(tokenizer: PairTokenizer) -> Any:
    """transformers' model of a tiny size, with weights that are not all alike."""
    torch.manual_seed(0)
    qformer = Blip2QFormerConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        encoder_hidden_size=24,
        use_qformer_text_input=True,
        pad_token_id=0,
    )
    vision = Blip2VisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = Blip2Config(
        vision_config=vision, qformer_config=qformer, num_query_tokens=QUERIES, image_text_hidden_size=16
    )
    model = Blip2ForImageTextRetrieval(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


class Tokens(nn.Module):
    """transformers' image tower as ours has it."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tower(pixel_values=pixels).last_hidden_state


@pytest.fixture(scope="module")
def reader(library: Any, tokenizer: PairTokenizer) -> Blip2:
    torch.manual_seed(1)
    preprocess = Preprocess(16)
    ours = Blip2(
        Tokens(library.vision_model),
        library.qformer,
        library.embeddings,
        library.query_tokens.detach().clone(),
        shared=16,
        tokenizer=tokenizer,
        preprocess=preprocess,
        card=Card("tiny", "blip2", {}, preprocess.config(), 1.0),
        captions=CaptionHead(32, len(tokenizer)),
    )
    for name in ("itm_head", "vision_projection", "text_projection"):
        getattr(ours, name).load_state_dict(getattr(library, name).state_dict())
    return ours.eval().requires_grad_(False)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_matching_logits_are_transformers(library: Any, reader: Blip2, images: Tensor) -> None:
    ids, mask = reader.tokenizer(TEXTS, torch.device("cpu"))
    theirs = library(
        pixel_values=reader.preprocess(images),
        input_ids=ids,
        attention_mask=mask.long(),
        use_image_text_matching_head=True,
    ).logits_per_image
    torch.testing.assert_close(reader.matching_logits(images, TEXTS), theirs, atol=1e-5, rtol=0)
    assert theirs.std() > 0.01  # so that agreeing says something


@torch.no_grad()
def test_contrast_is_transformers(library: Any, reader: Blip2, images: Tensor) -> None:
    ids, mask = reader.tokenizer(TEXTS[:1], torch.device("cpu"))
    theirs = library(pixel_values=reader.preprocess(images), input_ids=ids, attention_mask=mask.long())
    found = reader.contrastive(images, TEXTS[:1])
    torch.testing.assert_close(found, theirs.logits_per_image, atol=1e-5, rtol=0)


@torch.no_grad()
def test_one_masked_pass_is_two_passes(reader: Blip2, images: Tensor) -> None:
    """LAVIS: the queries alone, each layer's keys and values kept; then the text on them, causal, without the image."""
    tokens = reader.image_tokens(images)
    ids, mask = reader.tokenizer(TEXTS, torch.device("cpu"))
    qformer: Any = reader.qformer
    queries = qformer.layernorm(reader.query_tokens.expand(3, -1, -1))
    text = qformer.layernorm(reader.embeddings(input_ids=ids))
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()[None] & mask[:, None, :]
    for layer in qformer.encoder.layer:
        before = queries
        queries = layer.attention(before)
        if layer.has_cross_attention:
            queries = layer.crossattention(queries, encoder_hidden_states=tokens)
        queries = layer.feed_forward_chunk_query(queries)
        text = _on_prefix(layer, text, before, causal)
    states = text
    expected = reader.lm_head(states) if reader.lm_head is not None else states
    found = reader.caption_logits(tokens, ids, mask)
    for row, kept in enumerate(mask.sum(1).tolist()):  # what padding sees nobody reads
        torch.testing.assert_close(found[row, :kept], expected[row, :kept], atol=1e-5, rtol=1e-5)


def _on_prefix(layer: Any, text: Tensor, prefix: Tensor, causal: Tensor) -> Tensor:
    """A layer's self-attention of text over kept queries and what came before, then its feed-forward of text."""
    own = layer.attention.attention
    both = torch.cat([prefix, text], 1)
    heads, width = own.num_attention_heads, own.attention_head_size

    def split(states: Tensor) -> Tensor:
        return states.unflatten(-1, (heads, width)).transpose(1, 2)

    query, key, value = split(own.query(text)), split(own.key(both)), split(own.value(both))
    seen = torch.cat([torch.ones(*causal.shape[:2], prefix.shape[1], dtype=torch.bool), causal], -1)
    scores = (query @ key.mT / math.sqrt(width)).masked_fill(~seen[:, None], -torch.inf)
    attended = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    return layer.feed_forward_chunk(layer.attention.output(attended, text))


@torch.no_grad()
def test_captioning_loss_by_hand(reader: Blip2, images: Tensor) -> None:
    """Labels smoothed by 0.1 over the vocabulary; [DEC] first and not scored, [SEP] last and scored, no padding."""
    tokens = reader.image_tokens(images)
    ids, mask = reader.tokenizer(TEXTS, torch.device("cpu"))
    found = reader.caption_losses(tokens, ids, mask)
    for row, count in enumerate(mask.sum(1).tolist()):
        own = ids[row : row + 1, :count].clone()
        own[0, 0] = reader.tokenizer.dec
        logs = reader.caption_logits(tokens[row : row + 1], own, torch.ones_like(own, dtype=torch.bool))[0].log_softmax(
            -1
        )
        right = torch.stack([logs[place, own[0, place + 1]] for place in range(count - 1)])
        smooth = logs[:-1].mean(-1)
        expected = -((1 - SMOOTHING) * right + SMOOTHING * smooth).mean()
        assert found[row].item() == pytest.approx(expected.item(), abs=1e-5)
        assert own[0, -1] == reader.tokenizer.sep


@torch.no_grad()
def test_matching_loss_is_of_a_match(reader: Blip2, images: Tensor) -> None:
    logits = reader.matching_logits(images, TEXTS)
    expected = -logits.log_softmax(1)[:, MATCH]
    found = reader.pair_losses(images, TEXTS, captioning=0)
    torch.testing.assert_close(found, expected)
    both = reader.pair_losses(images, TEXTS, matching=2, captioning=3)
    alone = reader.pair_losses(images, TEXTS, matching=0)
    torch.testing.assert_close(both, 2 * expected + 3 * alone)


@torch.no_grad()
def test_a_pair_does_not_depend_on_its_batch(reader: Blip2, images: Tensor) -> None:
    together = reader.pair_losses(images, TEXTS)
    alone = torch.cat([reader.pair_losses(images[row : row + 1], [text]) for row, text in enumerate(TEXTS)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_gradients_reach_the_pixels_of_their_own_picture(reader: Blip2, images: Tensor) -> None:
    pixels = images.clone().requires_grad_()
    reader.pair_losses(pixels, TEXTS)[1].backward()
    assert pixels.grad is not None
    found = pixels.grad.flatten(1).abs().sum(1)
    assert found[1] > 0
    assert found[0] == found[2] == 0


def test_a_tower_in_half_precision_gives_losses_in_float32(library: Any, reader: Blip2, images: Tensor) -> None:
    whole = reader.pair_losses(images, TEXTS)
    library.vision_model.bfloat16()
    try:
        half = reader.pair_losses(images, TEXTS)
    finally:
        library.vision_model.float()
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, atol=0.2, rtol=0.1)
    assert not torch.equal(half, whole)


def test_without_a_head_there_is_no_captioning(reader: Blip2, images: Tensor) -> None:
    head, reader.lm_head, reader.can_caption = reader.lm_head, None, False
    try:
        with pytest.raises(UsageError, check=coded("no_captioning", reader="tiny")):
            reader.pair_losses(images, TEXTS)
        with pytest.raises(UsageError, match=r"--captioning 0"):
            Pairing(reader, TEXTS)
        assert reader.pair_losses(images, TEXTS, captioning=0).shape == (3,)
    finally:
        reader.lm_head, reader.can_caption = head, True


def test_captions_end(reader: Blip2, images: Tensor) -> None:
    said = reader.caption(images)
    assert len(said) == 3
    assert not any(token in text for text in said for token in SPECIAL)


def test_texts_are_read_as_lavis_does() -> None:
    assert prepared('A  "Red" Fish, (and) a hat! #1') == "a red fish, and a hat 1"
    assert len(prepared("word " * 60).split()) == 50


def test_a_long_text_is_cut_and_that_is_said_once(tokenizer: PairTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    long = "a red fish " * 15
    tokenizer.check([long, "a cat"])
    tokenizer.check([long])
    assert caplog.text.count("47 tokens") == 1
    ids, _ = tokenizer([long], torch.device("cpu"))
    assert ids.shape == (1, tokenizer.context)
    assert ids[0, -1] == tokenizer.sep


def test_one_text_an_image(reader: Blip2, images: Tensor) -> None:
    with pytest.raises(UsageError, check=coded("not_one_each", images=3, texts=2)):
        reader.matching_logits(images, TEXTS[:2])
    with pytest.raises(UsageError, check=coded("not_one_each", images=1)):
        reader.matching_logits(images[:1], "a")  # type: ignore[arg-type]


def test_the_term_prints_and_shapes(reader: Blip2, images: Tensor) -> None:
    loss = Pairing(reader, TEXTS)
    views = images[:, None].expand(-1, 2, -1, -1, -1)
    found = loss(views)
    assert found.shape == (3, 2)
    torch.testing.assert_close(found[:, 0], reader.pair_losses(images, TEXTS), atol=1e-5, rtol=0)
    assert str(loss) == "itm+lm"
    assert str(Pairing(reader, TEXTS, matching=2, captioning=0)) == "2itm"
    with pytest.raises(UsageError, match="are both 0"):
        Pairing(reader, TEXTS, matching=0, captioning=0)


def test_a_tokenizer_without_dec_is_refused(tokenizer: PairTokenizer) -> None:
    class Without:
        unk_token_id = 1

        def convert_tokens_to_ids(self, token: str) -> int:
            return 1

    with pytest.raises(UsageError, match=r"has no \[DEC\]"):
        PairTokenizer(Without())


def test_the_qformer_is_the_librarys(reader: Blip2) -> None:
    assert isinstance(reader.qformer, Blip2QFormerModel)
