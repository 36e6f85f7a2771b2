from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustclip.errors import UsageError
from robustclip.evaluation.templates import TEMPLATES, class_embeddings, embed_texts, resolve_templates


def test_names_files_and_lists_give_templates(tmp_path: Path) -> None:
    file = tmp_path / "zeroshot_classification_templates.txt"
    file.write_text("a photo of a {c}.\n\nart of the {}\n", encoding="utf-8")

    assert resolve_templates("photo") == ("a photo of a {}.",)
    assert resolve_templates(file) == ("a photo of a {}.", "art of the {}")
    assert resolve_templates(["the {}"]) == ("the {}",)
    assert all(resolve_templates(templates) == templates for templates in TEMPLATES.values())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("photos", "unknown templates 'photos': use plain"),
        ([], "no templates"),
        (["a photo"], "exactly one {}"),
        (["{} and {}"], "exactly one {}"),
    ],
)
def test_what_is_no_template_is_refused(given, told: str) -> None:
    with pytest.raises(UsageError, match=told):
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
