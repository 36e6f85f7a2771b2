from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from robustclip import load_referee
from robustclip.errors import UsageError, coded
from robustclip.referees import similarity
from robustclip.referees.similarity import (
    BANKS,
    TEMPLATES,
    TEXTS_AT_ONCE,
    class_embeddings,
    embed_texts,
    resolve_templates,
)
from robustclip.referees.toy import toy_referee


def test_names_files_and_lists_give_templates(tmp_path: Path) -> None:
    file = tmp_path / "zeroshot_classification_templates.txt"
    file.write_text("a photo of a {c}.\n\nart of the {}\n", encoding="utf-8")

    assert resolve_templates("photo") == ("a photo of a {}.",)
    assert resolve_templates(file) == ("a photo of a {}.", "art of the {}")
    assert resolve_templates(["the {}"]) == ("the {}",)
    assert all(resolve_templates(similarity) == similarity for similarity in TEMPLATES.values())


@pytest.mark.parametrize(
    ("given", "check"),
    [
        ("photos", coded("unknown_templates", given="photos")),
        ([], coded("no_templates")),
        (["a photo"], coded("not_a_template", given="a photo")),
        (["{} and {}"], coded("not_a_template", given="{} and {}")),
    ],
)
def test_what_is_no_template_is_refused(given, check: Any) -> None:
    with pytest.raises(UsageError, check=check):
        resolve_templates(given)


def test_a_class_is_the_normalised_mean_of_its_normalised_texts(colour_referee) -> None:
    # Lengths 5 and 1: only after normalising do both templates count alike.
    words = {"a cat": (3.0, 4.0, 0.0), "cat": (0.0, 0.0, 1.0), "a dog": (0.0, 2.0, 0.0), "dog": (0.0, 1.0, 0.0)}

    found = class_embeddings(colour_referee(words=words), ["cat", "dog"], ["a {}", "{}"])

    expected = torch.tensor([[0.6, 0.8, 1.0], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))


def test_more_texts_than_fit_at_once(colour_referee) -> None:
    words = {str(number): (float(number), 1.0, 0.0) for number in range(600)}

    found = embed_texts(colour_referee(words=words), list(words))

    assert found.shape == (600, 3)
    torch.testing.assert_close(found[599, 0] / found[599, 1], torch.tensor(599.0))


def test_a_bank_is_embedded_once_for_all_who_read_by_the_same_encoder() -> None:
    """Which is found by its weights: a tower that has changed reads for itself again."""
    texts = [f"{number} cats" for number in range(TEXTS_AT_ONCE)]
    one, other = load_referee("emoji-vanilla"), load_referee("emoji-robust")
    passes: list[str] = []
    for name, referee in (("one", one), ("other", other)):
        referee.text_tower.transformer.register_forward_hook(lambda *_, name=name: passes.append(name))
    first = embed_texts(one, texts)
    torch.testing.assert_close(first, one.embed_texts(texts), rtol=0, atol=0)
    assert passes == ["one", "one"]
    kept = first.clone()
    first.zero_()  # the caller's own copy
    torch.testing.assert_close(embed_texts(other, texts), kept, rtol=0, atol=0)
    assert passes == ["one", "one"]
    embed_texts(other, ["a dog", *texts[1:]])
    with torch.no_grad():
        next(other.text_tower.parameters()).mul_(1.001)
    assert not torch.equal(embed_texts(other, texts), kept)
    assert passes == ["one", "one", "other", "other"]


def test_few_banks_are_kept() -> None:
    referee = toy_referee()
    for number in range(2 * BANKS):
        embed_texts(referee, [f"{number} {text}" for text in range(TEXTS_AT_ONCE)])
    assert len(similarity._banks) == BANKS
