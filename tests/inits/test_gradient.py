from __future__ import annotations

import torch

from robustclip.inits import basic
from robustclip.runs.rng import generator

CPU = torch.device("cpu")


def test_a_gradient_grows_across_in_red_and_downwards_in_the_others() -> None:
    made = basic.gradient(6, 10, [generator(0, "start", index) for index in range(3)], CPU)
    assert made.shape == (3, 3, 6, 10)
    assert 0 <= made.min() <= made.max() <= 1
    red, green, blue = made.unbind(1)
    assert torch.equal(red, red[:, :1].expand_as(red))
    assert torch.equal(green, green[..., :1].expand_as(green))
    assert torch.equal(blue, blue[..., :1].expand_as(blue))
    assert (red[..., 0] == 0).all()
    assert (green[:, 0] == 0).all()
    assert (blue[:, 0] > 0).all()
    steps = red[:, 0].diff(dim=1)
    assert torch.allclose(steps, steps[:, :1].expand_as(steps), atol=1e-6), "evenly"
    assert len({round(one.item(), 4) for one in red[:, 0, -1]}) == 3, "each its own level"
    alone = basic.gradient(6, 10, [generator(0, "start", 1)], CPU)
    assert torch.equal(alone[0], made[1])
