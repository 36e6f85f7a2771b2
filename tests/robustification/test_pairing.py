"""Training a BLIP-2: its losses against values by hand, what it learns, and going on where it stopped."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from robustclip.attacks.threat import ThreatModel
from robustclip.errors import UsageError, coded
from robustclip.referees.blip2 import MATCH, Blip2, CaptionHead
from robustclip.referees.card import Card
from robustclip.referees.pair_readers import SPECIAL, word_pieces
from robustclip.referees.preprocess import Preprocess
from robustclip.robustification.pairing import COLDEST, PairTrainer
from robustclip.runs.rng import generator

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0), "white": (1.0, 1.0, 1.0)}
CAPTIONS = [f"a {colour} square" for colour in COLOURS]


class Cells(nn.Module):
    """A frozen look at patches, and a projection that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Conv2d(3, 8, 4, stride=4).requires_grad_(False)
        self.projection = nn.Linear(8, 16)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.projection(self.frozen(pixels).flatten(2).mT)


def tiny(width: int = 16) -> Blip2:
    torch.manual_seed(0)
    tokenizer = word_pieces([*SPECIAL, "a", "square", *COLOURS])
    config = Blip2QFormerConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        encoder_hidden_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=32,
        use_qformer_text_input=True,
        pad_token_id=0,
        initializer_range=0.35,
    )
    preprocess = Preprocess(8)
    embeddings = Blip2TextEmbeddings(config)
    for table in (embeddings.word_embeddings, embeddings.position_embeddings):
        nn.init.normal_(table.weight, std=0.35)
    return Blip2(
        Cells(),
        Blip2QFormerModel(config),
        embeddings,
        torch.randn(1, 4, width),
        shared=8,
        tokenizer=tokenizer,
        preprocess=preprocess,
        card=Card("tiny", "blip2-mini", {}, preprocess.config(), 1.0),
        captions=CaptionHead(width, len(tokenizer)),
    )


@pytest.fixture
def images() -> Tensor:
    """A plain square of each colour, its caption at the same place in CAPTIONS."""
    return torch.tensor(list(COLOURS.values())).view(4, 3, 1, 1).expand(4, 3, 8, 8).contiguous()


def draws(k: int = 0) -> torch.Generator:
    return generator(0, "negatives", k)


def test_contrastive_loss_by_hand() -> None:
    """Both directions, labels smoothed by 0.1; a caption that comes twice is no negative of its twin."""
    trainer = PairTrainer(tiny(), steps=1)
    cosines = torch.rand(4, 4, generator=draws()) * 2 - 1
    logits = cosines / trainer.reader.temperature.item()
    soft = 0.9 * torch.eye(4) + 0.1 / 4
    expected = -(soft * (logits.log_softmax(0) + logits.log_softmax(1))).sum() / 8
    assert trainer._contrastive(cosines, CAPTIONS).item() == pytest.approx(expected.item(), rel=1e-5)
    twins = [CAPTIONS[0], CAPTIONS[0], *CAPTIONS[2:]]
    changed = cosines.clone()
    changed[0, 1] = changed[1, 0] = 1.0
    assert torch.equal(trainer._contrastive(cosines, twins), trainer._contrastive(changed, twins))
    assert not torch.equal(trainer._contrastive(cosines, CAPTIONS), trainer._contrastive(changed, CAPTIONS))


@torch.no_grad()
def test_matching_loss_by_hand(images: Tensor) -> None:
    """Of two pairs each has the other's caption as its negative; the first also its own, exchanged. Positives weigh as
    much as all negatives together."""
    trainer = PairTrainer(tiny(), steps=1)
    reader, captions, exchanged = trainer.reader, CAPTIONS[:2], "a square green"
    tokens = reader.image_tokens(images[:2])
    cosines = torch.zeros(2, 2)
    found, right = trainer._matching(tokens, captions, [exchanged, None], cosines, draws())

    def chances(row: int, text: str) -> Tensor:
        return reader.match(tokens[[row]], *reader.tokenizer([text], tokens.device)).log_softmax(1)[0]

    positives = [chances(0, captions[0])[MATCH], chances(1, captions[1])[MATCH]]
    wrong = [chances(0, captions[1]), chances(1, captions[0]), chances(0, exchanged)]
    negatives = [one[1 - MATCH] for one in wrong]
    expected = -(torch.stack(positives).mean() + torch.stack(negatives).mean()) / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    hits = [one.exp() > 0.5 for one in (*positives, *negatives)]
    assert right.item() == pytest.approx(torch.stack(hits).float().mean().item())
    swapped_alone, _ = trainer._matching(tokens, captions, [None, None], cosines, draws())
    assert swapped_alone.item() != pytest.approx(found.item(), rel=1e-6)


@torch.no_grad()
def test_negatives_are_drawn_by_similarity(images: Tensor) -> None:
    trainer = PairTrainer(tiny(), steps=1)
    tokens = trainer.reader.image_tokens(images[:3])
    near = torch.tensor([[0.0, 1.0, -1.0], [1.0, 0.0, -1.0], [1.0, -1.0, 0.0]])  # of each, one other alone is near
    found, _ = trainer._matching(tokens, CAPTIONS[:3], [None] * 3, near, draws())
    rows, texts = [0, 1, 2] * 2, [*CAPTIONS[:3], CAPTIONS[1], CAPTIONS[0], CAPTIONS[0]]
    logits = trainer.reader.match(tokens[rows], *trainer.reader.tokenizer(texts, tokens.device))
    expected = F.cross_entropy(logits, torch.tensor([MATCH] * 3 + [1 - MATCH] * 3))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@torch.no_grad()
def test_captions_that_are_all_the_same_have_no_negatives(images: Tensor) -> None:
    trainer = PairTrainer(tiny(), steps=1)
    tokens = trainer.reader.image_tokens(images[:2])
    captions = [CAPTIONS[0]] * 2
    found, _ = trainer._matching(tokens, captions, [None, CAPTIONS[0]], torch.zeros(2, 2), draws())
    logits = trainer.reader.match(tokens, *trainer.reader.tokenizer(captions, tokens.device))
    assert found.item() == pytest.approx(-logits.log_softmax(1)[:, MATCH].mean().item(), rel=1e-5)


def test_a_batch_of_one_caption_is_refused(images: Tensor) -> None:
    with pytest.raises(UsageError, check=coded("one_text", pairs=4)):
        PairTrainer(tiny(), steps=1).step(images, ["a square"] * 4, [None] * 4, draws(0))


def test_it_learns_to_tell_colours_and_the_tower_stays(images: Tensor) -> None:
    reader = tiny()
    kept = copy.deepcopy(reader.vision.frozen.state_dict())  # type: ignore[union-attr]
    trainer = PairTrainer(reader, steps=80, lr=5e-3)
    for k in range(80):
        numbers = trainer.step(images, CAPTIONS, [None] * 4, draws(k))
    assert numbers["loss"] == pytest.approx(sum(numbers[name] for name in ("contrastive", "matching", "captioning")))
    reader.eval()
    assert reader.contrastive(images, CAPTIONS).argmax(1).tolist() == [0, 1, 2, 3]
    wrong = [*CAPTIONS[1:], CAPTIONS[0]]
    right, other = (reader.matching_logits(images, texts).diff(dim=1)[:, 0] for texts in (CAPTIONS, wrong))
    assert (right > other).all()
    assert reader.caption(images) == CAPTIONS
    after = reader.vision.frozen.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(kept[name], after[name]) for name in kept)
    assert COLDEST <= reader.temperature.item() <= 0.5


def test_under_attack_it_learns_from_images_inside_the_ball_that_raise_the_loss(images: Tensor) -> None:
    threat, seen = ThreatModel("l2", 2.0, 8), []
    trainer = PairTrainer(tiny(), steps=4, threat=threat, attack_steps=3)
    looked = trainer.reader.image_tokens
    trainer.reader.image_tokens = lambda pixels: seen.append(pixels.detach()) or looked(pixels)  # type: ignore[method-assign,func-returns-value]
    trainer.step(images, CAPTIONS, [None] * 4, draws())
    learned = seen[-1]  # after the three steps of the attack
    assert len(seen) == 4
    assert threat.contains(learned - images).all()
    assert learned.min() >= 0
    assert learned.max() <= 1
    fresh = tiny()
    with torch.no_grad():
        assert (fresh.pair_losses(learned, CAPTIONS) > fresh.pair_losses(images, CAPTIONS)).all()
    assert all(parameter.requires_grad for parameter in trainer.reader.qformer.parameters())


def test_a_training_that_goes_on_is_the_one_that_never_stopped(images: Tensor) -> None:
    whole, first, second = (PairTrainer(tiny(), steps=6, lr=1e-2) for _ in range(3))
    for k in range(6):
        expected = whole.step(images, CAPTIONS, [None, "a square green", None, None], draws(k))
    for k in range(3):
        first.step(images, CAPTIONS, [None, "a square green", None, None], draws(k))
    second.load(copy.deepcopy(first.state()))
    assert second.done == 3
    for k in range(3, 6):
        found = second.step(images, CAPTIONS, [None, "a square green", None, None], draws(k))
    assert found == expected
    states = (trainer.reader.state_dict() for trainer in (whole, second))
    for one, other in zip(*(state.values() for state in states), strict=True):
        assert torch.equal(one, other)


def test_a_state_of_another_reader_is_refused() -> None:
    with pytest.raises(UsageError, check=coded("other_checkpoint")):
        PairTrainer(tiny(32), steps=1).load(PairTrainer(tiny(), steps=1).state())
