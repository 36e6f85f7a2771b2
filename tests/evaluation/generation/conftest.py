"""Folders of pictures as `synthesize` leaves them, of plain colours, which `colour_referee` tells apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from torch import Tensor

from robustclip.runs.files import write_json
from robustclip.synthesis.pictures import write_picture

Colour = tuple[float, float, float]


@pytest.fixture
def run_folder(tmp_path: Path, plain: Callable[..., Tensor]) -> Callable[..., Path]:
    """Build one: `run_folder("name", {"red": (1, 0, 0)}, seeds=[0], referees=[...], planned=...)`."""

    def build(
        name: str,
        colours: Mapping[str, Colour],
        *,
        seeds: Sequence[int] = (0,),
        referees: object = ({"name": "guide", "weight": 1.0, "fingerprint": "f" * 64},),
        planned: int | None = None,
    ) -> Path:
        folder = tmp_path / name
        for prompt, colour in colours.items():
            for seed in seeds:
                stem = f"{prompt.replace(' ', '-').replace('|', '')}-s{seed}"
                facts = {"id": stem, "prompt": prompt, "seed": seed, "similarity": 0.5, "referees": referees}
                write_picture(folder / "images" / f"{stem}.png", plain(colour)[0], facts)
        write_json(folder / "run.json", {"notes": {} if planned is None else {"pictures": planned}})
        return folder

    return build
