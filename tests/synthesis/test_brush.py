"""A batch through the loop: what comes out of it, and what is shown on the way."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from robustclip.canvases import Pixels, Pyramid
from robustclip.losses import TotalVariation
from robustclip.referees.toy import toy_referee
from robustclip.synthesis.guides import Guides
from robustclip.synthesis.items import Item, items_of
from robustclip.synthesis.loop import KeepBest, Moment
from robustclip.synthesis.painted import Painted
from robustclip.synthesis.prompts import parse_all
from robustclip.synthesis.studio import FRAMES, generators_of, paint_batch
from robustclip.synthesis.terms import Stream, Term, Terms
from robustclip.views import GaussianNoise, Views

CPU = torch.device("cpu")
ITEMS = items_of(parse_all(["a cat", "a dog:1 | a house:-0.5"]))
GUIDES = Guides([toy_referee()], [1.0], torch.float32)
STARTS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Seen:
    """A watch that remembers."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.images: list[Tensor] = []
        self.numbers: list[dict[str, Tensor]] = []
        self.told: list[str] = []

    def __call__(self, step: int, images: Tensor, numbers: Mapping[str, Tensor]) -> None:
        self.steps.append(step)
        self.images.append(images.clone())
        self.numbers.append(dict(numbers))

    def announce(self, loss: str) -> None:
        self.told.append(loss)


def painted(
    canvas: Pixels | Pyramid,
    *terms: Term,
    steps: int = 4,
    lr: float = 10.0,
    watch: Seen | None = None,
    **options: object,
) -> Painted:
    made = Terms(terms or (cosine(),))
    stream = Stream(made, torch.optim.SGD(canvas.parameters(), lr=lr))
    watch = watch or Seen()
    return paint_batch(canvas, [stream], items=ITEMS, guides=GUIDES, steps=steps, watch=watch, **options)  # type: ignore[arg-type]


def cosine() -> Term:
    return Term(GUIDES.cosine([item.prompt for item in ITEMS]))


def similarity(images: Tensor) -> Tensor:
    return GUIDES.similarity(images, [item.prompt for item in ITEMS])


def test_the_final_picture_and_how_similar_it_is() -> None:
    canvas = Pixels(STARTS)
    made = painted(canvas)
    assert torch.equal(made.images, canvas.pixels)
    assert torch.allclose(made.similarity, similarity(canvas.pixels.detach()), atol=1e-6)
    assert (made.similarity > similarity(STARTS)).all()
    assert made.trace["loss"].shape == (4, 2)


def test_each_step_is_shown_with_the_similarity_of_what_is_shown() -> None:
    """The weights of the second prompt add up to 0.5: its similarity is 0.5 less the loss, that of the first 1 less."""
    watch = Seen()
    made = painted(Pixels(STARTS), cosine(), Term(TotalVariation(), weight=0.1), watch=watch)
    assert watch.steps == [1, 2, 3, 4]
    assert torch.equal(watch.images[0], STARTS)
    for step, (images, numbers) in enumerate(zip(watch.images, watch.numbers, strict=True)):
        assert torch.allclose(numbers["similarity"], similarity(images), atol=1e-5)
        assert torch.allclose(numbers["similarity"], torch.tensor([1.0, 0.5]) - made.trace["cosine"][step], atol=1e-5)
        assert torch.equal(numbers["total variation"], made.trace["total variation"][step])


def test_a_first_term_that_is_no_cosine() -> None:
    watch = Seen()
    made = painted(Pixels(STARTS), Term(TotalVariation()), watch=watch, lr=0.1)
    assert torch.equal(watch.numbers[0]["similarity"], -made.trace["total variation"][0])


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(0, [0]), (1, [0, 1]), (4, [0, 1, 2, 3, 4]), (16, [0, 2, 4, 6, 8, 10, 12, 14, 16])],
)
def test_the_way_begins_with_the_start_and_ends_with_the_picture(steps: int, expected: list[int]) -> None:
    made = painted(Pixels(STARTS), steps=steps)
    assert made.frames is not None
    assert made.steps_of_frames == expected
    assert made.frames.shape == (len(expected), 2, 3, 16, 16)
    assert len(expected) <= FRAMES + 1
    assert torch.equal(made.frames[0], STARTS)
    assert torch.equal(made.frames[-1], made.images)


def test_what_was_kept_is_handed_out_and_measured() -> None:
    steps = 3
    made = painted(Pixels(STARTS), steps=steps, lr=1e4, keep=KeepBest())  # steps so long that the start is the best
    worse = painted(Pixels(STARTS), steps=steps, lr=1e4)
    best = made.trace["loss"].argmin(0)
    assert (made.similarity >= worse.similarity).all()
    for picture, step in enumerate(best.tolist()):
        assert made.similarity[picture] == pytest.approx(
            [1.0, 0.5][picture] - made.trace["cosine"][step, picture].item(), abs=1e-5
        )
    assert made.frames is not None
    assert torch.equal(made.frames[-1], made.images)


def test_margins_are_handed_to_nobody() -> None:
    watch = Seen()
    made = painted(Pyramid(2, (16, 16), margin=4), watch=watch, keep=KeepBest())
    assert made.frames is not None
    assert {tuple(one.shape[-2:]) for one in (made.images, made.frames, *watch.images)} == {(16, 16)}


def test_callbacks_see_every_step() -> None:
    steps: list[int] = []

    def note(moment: Moment) -> None:
        steps.append(moment.step)

    painted(Pixels(STARTS), callbacks=[note])
    assert steps == [0, 1, 2, 3]


def test_a_picture_draws_its_own_numbers() -> None:
    def drawn(items: list[Item], purpose: str, step: int) -> Tensor:
        return torch.stack([torch.rand(3, generator=one) for one in generators_of(items, CPU)(purpose, step)])

    both = drawn(ITEMS, "views", 3)
    assert torch.equal(drawn(ITEMS[1:], "views", 3), both[1:])
    assert not torch.equal(both[0], both[1])
    for other in (drawn(ITEMS, "views", 4), drawn(ITEMS, "patches", 3)):
        assert not torch.equal(other, both)


def test_what_is_minimised_is_told_before_the_first_step() -> None:
    watch = Seen()
    painted(Pixels(STARTS), cosine(), Term(TotalVariation(), weight=0.1), watch=watch)
    assert watch.told == ["1*cosine + 0.1*total variation"]


def test_where_the_loss_does_not_tell_the_similarity_is_that_of_the_picture_itself() -> None:
    watch, prompts = Seen(), [item.prompt for item in ITEMS]
    views = Views(3, (GaussianNoise(0.1),))
    painted(Pixels(STARTS), Term(GUIDES.spherical(prompts), views), watch=watch)
    for images, numbers in zip(watch.images, watch.numbers, strict=True):
        assert torch.allclose(numbers["similarity"], similarity(images), atol=1e-6)
