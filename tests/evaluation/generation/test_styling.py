"""How well pictures were restyled, by a toy judge."""

from __future__ import annotations

import torch

from robustclip.evaluation.generation.embeddings import content_similarity, directional_similarity
from robustclip.referees.toy import toy_referee


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
