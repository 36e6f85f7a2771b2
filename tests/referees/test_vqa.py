"""A BlipForQuestionAnswering of drawn weights in transformers' layout, against the release's formula by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer, BlipConfig, BlipForQuestionAnswering, BlipImageProcessor

from robustclip.errors import RunError, UsageError
from robustclip.referees.compbench import load_vqa

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "a", "green", "bench", "blue", "bowl", "?"]
SIDE = 32
QUESTIONS = ["a green bench?", "a bowl?"]


def blip_folder(folder: Path, words: list[str] = WORDS) -> Path:
    """As Salesforce/blip-vqa-base: the vocabulary, then [DEC] (which begins an answer) and [ENC]."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        BlipImageProcessor(size={"height": SIDE, "width": SIDE}).to_json_string()
    )
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(words) + 2, "bos_token_id": len(words), "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(
        text_config={**width, **text, "encoder_hidden_size": 16, "max_position_embeddings": 40},
        vision_config={**width, "image_size": SIDE, "patch_size": 16},
    )
    torch.manual_seed(0)
    model = BlipForQuestionAnswering(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return blip_folder(tmp_path / "blip")


def test_the_probability_of_yes_is_that_of_the_release(folder: Path) -> None:
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).mul(255).round() / 255
    found = load_vqa(folder).yes(images, [QUESTIONS, QUESTIONS[:1]])

    model = BlipForQuestionAnswering.from_pretrained(folder).eval()
    mean, std = torch.tensor(BlipImageProcessor().image_mean), torch.tensor(BlipImageProcessor().image_std)
    pixels = (images - mean[:, None, None]) / std[:, None, None]
    for row, questions in enumerate([QUESTIONS, QUESTIONS[:1]]):
        for place, question in enumerate(questions):
            words = [WORDS.index(word) for word in question.replace("?", " ?").split()]
            ids = torch.tensor([[len(WORDS) + 1, *words, WORDS.index("[SEP]")]])  # [ENC] where [CLS] would be
            with torch.no_grad():
                seen = model.vision_model(pixel_values=pixels[row, None]).last_hidden_state
                asked = model.text_encoder(input_ids=ids, encoder_hidden_states=seen).last_hidden_state
                begin = torch.tensor([[len(WORDS)]])
                chances = model.text_decoder(input_ids=begin, encoder_hidden_states=asked).logits[0, 0].softmax(0)
            yes, no = chances[WORDS.index("yes")], chances[WORDS.index("no")]
            assert found[row][place].item() == pytest.approx((yes / (yes + no)).item(), abs=1e-6)
    assert 0.01 < found[0][0] < 0.99
    assert found[0][0] != found[0][1]
    assert load_vqa(folder).yes(images[:1], [[]])[0].shape == (0,)


def test_what_is_no_vqa_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        load_vqa(tmp_path / "nowhere")
    with pytest.raises(UsageError, check=lambda error: error.code == "no_yes"):
        load_vqa(blip_folder(tmp_path / "french", [*WORDS[:5], "oui", "non", *WORDS[7:]]))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    with pytest.raises(UsageError):
        load_vqa(folder)
    config["text_config"]["hidden_size"] = 10**9
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError):
        load_vqa(folder)


def test_damaged_weights_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["vision_model.post_layernorm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(RunError):
        load_vqa(folder)
    del weights["vision_model.post_layernorm.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UsageError):
        load_vqa(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError):
        load_vqa(folder)
