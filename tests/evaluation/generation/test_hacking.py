from __future__ import annotations

import numpy as np
import pytest
import torch

from robustclip.data.emoji import embedded_prompts, real_drawings
from robustclip.evaluation.generation.hacking import hacking, scaled
from robustclip.evaluation.generation.results import Column
from robustclip.evaluation.named import NamedReferee
from robustclip.referees.toy import toy_referee


def test_hacking_by_hand() -> None:
    given = {"g": [1.5, 2.0], "a": [0.5, 0.0], "b": [1.0, 0.5]}
    alike = {name: lambda *_, values=values: torch.tensor(values) for name, values in given.items()}

    found = hacking(alike, "g", ["a", "b"], torch.zeros(2, 3, 8, 8), ["x", "y"])

    assert {column: values.tolist() for column, values in found.items()} == {
        Column("similarity", "guide"): [1.5, 2.0],
        Column("similarity", "a"): [0.5, 0.0],
        Column("similarity", "b"): [1.0, 0.5],
        Column("hacking"): [0.75, 1.75],
    }


def test_real_drawings_have_similarity_1_with_their_names_and_0_with_all_others() -> None:
    drawings, shown = real_drawings()
    similarity = scaled(NamedReferee("toy", toy_referee(), None))
    names = list(dict.fromkeys(shown))

    with_own = similarity(drawings.images, shown)
    with_all = np.array([similarity(drawings.images, [name] * len(shown)).sum().item() for name in names])

    assert with_own.mean().item() == pytest.approx(1, abs=1e-3)
    others = with_all.sum() - with_own.sum().item()
    assert others / (len(shown) * (len(names) - 1)) == pytest.approx(0, abs=1e-3)
    assert set(shown) < {one.prompt for one in embedded_prompts()}
