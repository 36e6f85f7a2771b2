"""The loop, its terms and streams, against what can be computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Generator, Tensor

from robustclip.canvases import Pixels
from robustclip.errors import UsageError, coded
from robustclip.losses import Cosine, Target, TotalVariation
from robustclip.referees.toy import toy_referee
from robustclip.runs.rng import each, generator
from robustclip.synthesis.loop import Film, KeepBest, Moment, Noise, optimise
from robustclip.synthesis.terms import (
    Hardest,
    Lowest,
    Mean,
    Stream,
    Term,
    Terms,
    ZeroBelow,
    ZeroBelowQuantile,
    cosine_decay,
    linear_decay,
    picture_norms,
)
from robustclip.views import Draws, Views

LOSSES = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.8, 0.5, 0.6, 0.7]])


class Brightness:
    """The mean of each view: a loss with a gradient that is known."""

    def __call__(self, views: Tensor) -> Tensor:
        return views.mean((-3, -2, -1))

    def __str__(self) -> str:
        return "brightness"


class Forbidden(Brightness):
    def __call__(self, views: Tensor) -> Tensor:
        raise AssertionError("was computed")


def noisy(images: Tensor, draws: Draws) -> Tensor:
    return images + 0.1 * draws.normal(*images.shape[1:])


def generators(what: str, step: int) -> list[Generator]:
    return each(0, what, step, ids=["a", "b"])


def canvas(value: float = 0.5) -> Pixels:
    return Pixels(torch.full((2, 3, 4, 4), value))


def stream(made: Pixels, *terms: Term, lr: float = 1.0, **options: object) -> Stream:
    return Stream(Terms(terms), torch.optim.SGD(made.parameters(), lr=lr), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        (Mean(), [0.25, 0.65]),
        (Hardest(2), [0.35, 0.75]),
        (ZeroBelow(0.25), [0.175, 0.65]),
        (ZeroBelowQuantile(0.5), [0.175, 0.375]),
        (ZeroBelowQuantile(0.0), [0.25, 0.65]),
    ],
    ids=str,
)
def test_reductions_by_hand(reduce: object, expected: list[float]) -> None:
    assert reduce(LOSSES).tolist() == pytest.approx(expected)  # type: ignore[operator]


def test_the_lowest_view_counts_alone() -> None:
    assert Lowest()(LOSSES).tolist() == pytest.approx([0.1, 0.5])
    assert str(Term(Brightness(), reduce=Lowest())) == "1*brightness lowest"


def test_terms_print_themselves() -> None:
    views = Views(32, name="diffaug")
    total = Term(Brightness(), views) + 5 * Term(Brightness(), Views(8, name="patches"), reduce=Hardest(2))
    assert str(total) == "1*brightness@diffaug x32 + 5*brightness@patches x8 hardest 2"
    assert str(0.5 * total + Term(TotalVariation(), reads="latent")) == (
        "0.5*brightness@diffaug x32 + 2.5*brightness@patches x8 hardest 2 + 1*total variation(latent)"
    )


def test_a_term_at_weight_zero_is_not_computed() -> None:
    made = canvas()
    off = Term(Forbidden(), weight=lambda step: 0.0 if step < 2 else 1.0)
    _, trace = optimise(made, [stream(made, Term(Brightness()), off)], steps=2, generators=generators)
    assert set(trace) == {"loss", "brightness"}
    with pytest.raises(AssertionError, match="was computed"):
        optimise(made, [stream(made, Term(Brightness()), off)], steps=3, generators=generators)


def test_a_stream_whose_terms_all_rest_takes_no_step() -> None:
    made = canvas()
    image, trace = optimise(made, [stream(made, Term(Forbidden(), weight=0))], steps=2, generators=generators)
    assert torch.equal(image, torch.full((2, 3, 4, 4), 0.5))
    assert trace["loss"].tolist() == [[0, 0], [0, 0]]


def test_plain_descent_by_hand() -> None:
    made = canvas()
    image, trace = optimise(made, [stream(made, 2 * Term(Brightness()), lr=1.2)], steps=2, generators=generators)
    # The slope of 2 * mean over 48 values is 2/48 each: two steps of 1.2 * 2/48 take 0.1 away.
    assert torch.allclose(image, torch.full_like(image, 0.4))
    assert trace["loss"][:, 0].tolist() == pytest.approx([1.0, 0.9])
    assert trace["brightness"][:, 0].tolist() == pytest.approx([0.5, 0.45])


def test_clipping_and_scaling_are_done_picture_by_picture() -> None:
    made = canvas()
    gradients = [torch.zeros(2, 3, 4, 4)]
    gradients[0][0, 0, 0, 0], gradients[0][1, 0, 0, 0] = 3.0, 0.5
    clipped = stream(made, Term(Brightness()), clip_norm=1.0).prepared(gradients, {})
    assert picture_norms(clipped).tolist() == pytest.approx([1.0, 0.5], rel=1e-5)
    scaled = stream(made, Term(Brightness()), unit_rms=True).prepared(gradients, {})
    assert scaled[0].square().mean((1, 2, 3)).tolist() == pytest.approx([1.0, 1.0])
    nothing = stream(made, Term(Brightness()), unit_rms=True).prepared([torch.zeros(2, 3, 4, 4)], {})
    assert not nothing[0].any()


def test_levels_move_alike_whatever_their_gradients() -> None:
    made = canvas()
    gradients = [torch.full((2, 3, 1, 1), 100.0), torch.full((2, 3, 4, 4), 0.01)]
    for gradient in stream(made, Term(Brightness()), unit_rms=True, by_level=True).prepared(gradients, {}):
        assert gradient.square().mean((1, 2, 3)).tolist() == pytest.approx([1.0, 1.0])


def test_clipping_is_torchs_for_one_picture() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1, 3, 4, 4))
    parameter.grad = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ours = Stream(Terms((Term(Brightness()),)), torch.optim.SGD([parameter], lr=1.0), clip_norm=0.001)
    expected = ours.prepared([parameter.grad.clone()], {})[0]
    torch.nn.utils.clip_grad_norm_([parameter], 0.001)
    assert torch.allclose(parameter.grad, expected, rtol=1e-5)


def test_numbers_of_a_gradient_are_scaled_and_then_cut() -> None:
    gradients = [torch.tensor([[0.3, -4.0], [0.1, 0.0]])]
    made = canvas()
    found = stream(made, Term(Brightness()), scale=2.0, clip_value=0.5).prepared(gradients, {})
    assert found[0].tolist() == [[0.5, -0.5], [pytest.approx(0.2), 0.0]]


def test_one_stream_takes_the_norm_of_another() -> None:
    made = canvas()
    first = stream(made, Term(Brightness()))
    second = stream(made, Term(Brightness()), match=(first, 2.0))
    norms: dict[int, Tensor] = {}
    first.prepared([torch.full((2, 3, 4, 4), 0.25)], norms)
    matched = second.prepared([torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))], norms)
    assert torch.allclose(picture_norms(matched), 2 * norms[id(first)])


def test_all_streams_look_at_the_same_rendering() -> None:
    """Two streams that undo each other leave the picture as it was, whatever the first does to it."""
    made = canvas()
    image, _ = optimise(
        made,
        [stream(made, Term(Brightness())), stream(made, -1 * Term(Brightness()))],
        steps=3,
        generators=generators,
    )
    assert torch.allclose(image, torch.full_like(image, 0.5))


def test_schedules() -> None:
    assert [cosine_decay(4)(step) for step in (0, 2, 4)] == pytest.approx([1, 0.5, 0])
    assert [linear_decay(10, last=0.5)(step) for step in (0, 5, 10)] == pytest.approx([1, 0.75, 0.5])
    made = canvas()
    halved = stream(made, Term(Brightness()), lr=4.8, schedule=lambda step: 0.5**step)
    image, _ = optimise(made, [halved], steps=2, generators=generators)
    assert torch.allclose(image, torch.full_like(image, 0.5 - 0.1 - 0.05))


def painted(rows: Sequence[str], seed: int = 0) -> Tensor:
    """What is painted for these pictures, which are told apart by their ids."""
    referee = toy_referee()
    starts = [torch.rand(3, 8, 8, generator=generator(0, f"start of {row}")) for row in rows]
    made = Pixels(torch.stack(starts))
    target = Target(referee, referee.embed_texts(list(rows))[:, None], torch.ones(len(rows), 1))
    optimiser = torch.optim.AdamW(made.parameters(), lr=0.02)
    term = Term(Cosine([target]), Views(4, (noisy,)))
    step = Stream(Terms((term, 0.1 * term)), optimiser, clip_norm=1e-3)
    return optimise(made, [step], steps=4, generators=lambda what, k: each(seed, what, k, ids=rows))[0]


def test_the_same_seed_gives_the_same_picture_whoever_else_is_painted() -> None:
    together = painted(["a", "b", "c"])
    assert torch.equal(together, painted(["a", "b", "c"]))
    assert torch.allclose(together[1:2], painted(["b"]), atol=1e-5)
    assert not torch.allclose(together, painted(["a", "b", "c"], seed=1), atol=1e-3)


def test_two_terms_of_one_name_draw_their_own_numbers_and_are_told_apart() -> None:
    made = canvas()
    twice = Term(Brightness(), Views(2, (noisy,), name="noisy"))
    _, trace = optimise(made, [stream(made, twice, twice)], steps=1, generators=generators)
    first, second = trace["brightness@noisy x2"], trace["brightness@noisy x2 #1"]
    assert not torch.equal(first, second)


class Steps:
    """A canvas's way: 0.5, then 0.6, 0.7, ... written by a callback."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = values

    @torch.no_grad()
    def __call__(self, moment: Moment) -> None:
        moment.canvas.pixels.fill_(self.values[moment.step + 1])  # type: ignore[operator, union-attr]


@pytest.mark.parametrize(("late", "expected"), [(False, 0.2), (True, 0.6)])
def test_the_best_picture_and_the_notebooks_which_is_a_step_late(late: bool, expected: float) -> None:
    made = canvas(0.5)
    keep = KeepBest(late=late)
    way = Steps([0.5, 0.2, 0.6, 0.4])
    still = stream(made, Term(Brightness()), lr=0.0)
    last, _ = optimise(made, [still], steps=3, generators=generators, callbacks=[keep, way])
    assert torch.allclose(keep.images(last), torch.full_like(last, expected))
    assert keep.losses is not None
    assert keep.losses.tolist() == pytest.approx([0.2, 0.2])


def test_the_last_picture_is_kept_late_where_its_step_was_the_best() -> None:
    made = canvas(0.5)
    keep = KeepBest(late=True)
    still = stream(made, Term(Brightness()), lr=0.0)
    last, _ = optimise(made, [still], steps=2, generators=generators, callbacks=[keep, Steps([0.5, 0.3, 0.1])])
    assert torch.allclose(keep.images(last), torch.full_like(last, 0.1))


def test_a_film_has_frames_from_the_first_step_on() -> None:
    made = canvas()
    film = Film(10, 4)
    optimise(made, [stream(made, Term(Brightness()))], steps=10, generators=generators, callbacks=[film])
    assert film.steps == [0, 2, 5, 8]
    assert film.frames().shape == (4, 2, 3, 4, 4)
    assert torch.equal(film.frames()[0], torch.full((2, 3, 4, 4), 0.5))
    assert Film(0, 3).frames().numel() == 0


def test_noise_is_each_pictures_own_and_ends() -> None:
    made = canvas()
    noise = Noise(0.05, each(0, "noise", ids=["a", "b"]), last=1)
    still = stream(made, Term(Brightness()), lr=0.0)
    optimise(made, [still], steps=1, generators=generators, callbacks=[noise])
    once = made.pixels.detach().clone()
    assert once.std().item() == pytest.approx(0.05, rel=0.3)
    assert not torch.equal(once[0], once[1])
    noise(Moment(1, 2, made, once, once[:, 0, 0, 0], {}))
    assert torch.equal(made.pixels, once)


def test_faults_of_terms_are_told() -> None:
    made = canvas()
    with pytest.raises(UsageError, check=coded("not_rendered", reads="latent")):
        optimise(made, [stream(made, Term(Brightness(), reads="latent"))], steps=1, generators=generators)
    with pytest.raises(UsageError, check=coded("wrong_shape", shape=())):
        optimise(made, [stream(made, Term(lambda views: views.mean()))], steps=1, generators=generators)
    with pytest.raises(UsageError, check=coded("no_terms")):
        Terms(())
    with pytest.raises(UsageError, check=coded("out_of_range", argument="k", given=5, most=4)):
        Hardest(5)(LOSSES)
    with pytest.raises(UsageError, match="clip_value must be positive"):
        stream(made, Term(Brightness()), clip_value=0.0)
    with pytest.raises(UsageError, match="clip_norm must be positive"):
        stream(made, Term(Brightness()), clip_norm=0.0)
