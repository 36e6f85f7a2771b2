"""What is told beside R-Precision: means, paired differences, preferences, and how well pictures were restyled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from robustclip.evaluation.generation.likeness import Likeness
from robustclip.evaluation.generation.styling import content_similarity, directional_similarity
from robustclip.referees.toy import toy_referee


def test_means_differences_and_preferences_by_hand(tmp_path: Path) -> None:
    found = Likeness(seed=0)
    found.add("robust", "cosine", np.array([0.5, 0.4, 0.3, 0.2]))
    found.add("control", "cosine", np.array([0.1, 0.4, 0.5, 0.0]))
    found.seconds["robust"] = 1.25
    assert found.mean("robust", "cosine").value == pytest.approx(0.35)
    difference = found.difference("robust", "control", "cosine")
    assert difference.value == pytest.approx(0.1)
    assert difference.low <= 0.1 <= difference.high
    assert found.preferred("robust", "control", "cosine").value == pytest.approx(0.625)  # two of four, and a tie
    found.save(tmp_path, "similarity", "Cosine", [("robust", "control")])
    told = json.loads((tmp_path / "similarity.json").read_text())
    assert told["pairs"][0]["difference"]["value"] == pytest.approx(0.1)
    assert told["seconds"] == {"robust": 1.25}
    text = (tmp_path / "similarity.txt").read_text()
    assert "robust minus control" in text
    assert "1.25" in text


def test_restyled_pictures_by_hand() -> None:
    judge = toy_referee()
    contents, pictures = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = directional_similarity(judge, pictures, contents, ["gold", "fire"], "a photo")
    with torch.no_grad():
        moved = judge.embed_images(pictures) - judge.embed_images(contents)
        texts = judge.embed_texts(["gold", "fire"]) - judge.embed_texts(["a photo"])
    assert torch.allclose(found, torch.cosine_similarity(moved, texts), atol=1e-5)
    assert directional_similarity(judge, contents, contents, ["gold", "fire"], "a photo").abs().max() < 1e-3
    assert torch.allclose(content_similarity(judge, contents, contents), torch.ones(2), atol=1e-5)
