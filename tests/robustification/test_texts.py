"""Training of text towers against edits: LEAF's loss by hand, what is trained and what is not, resumption, saving."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

import robustclip
from robustclip.attacks.text import fewer_words, random_edits
from robustclip.data.captions import CaptionBatches, open_captions
from robustclip.errors import RunError, UsageError, coded
from robustclip.referees.base import TwoTower
from robustclip.referees.openclip import new_referee, sentence_text_cfg
from robustclip.referees.sentence import SentenceEncoder, package_folder
from robustclip.referees.toy import toy_referee
from robustclip.robustification import texts as module
from robustclip.robustification.export import export
from robustclip.robustification.monitor import save_trained
from robustclip.robustification.texts import check_trainable, leaf_loss, train_texts
from robustclip.runs.folder import Run
from robustclip.runs.rng import each, generator

CAPTIONS = ["a red fish", "a blue hat", "two green frogs", "a bear", "a violin", "an old clock", "a cat", "the moon"]
PREPROCESS = {"size": 32, "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


def sentence_clip(folder: Path) -> TwoTower:
    """A tiny BERT with MiniLM's tokenizer beside a timm tower, as the embedded referees are."""
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        BertModel(BertConfig(**small)).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            shutil.copy(package_folder() / file, folder)
        vision = {"timm_model_name": "test_convnext", "timm_proj": "linear", "image_size": 32}
        model_cfg = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": sentence_text_cfg()}
        return new_referee(model_cfg, PREPROCESS, SentenceEncoder(folder), 17.3, "untrained")


def plain_clip(folder: Path) -> TwoTower:
    """Both towers open_clip's own."""
    vision = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32}
    model_cfg = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": {"width": 16, "heads": 2, "layers": 1}}
    folder.mkdir()
    config = {"model_cfg": model_cfg, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(open_clip.create_model(f"local-dir:{folder}").state_dict(), folder / "model.pth")
    return robustclip.load_referee(folder)


def clip_model(folder: Path) -> TwoTower:
    """A CLIPModel of transformers."""
    export(plain_clip(folder), name="hf", to=folder / "hf", format="hf", register=False)
    return robustclip.load_referee(folder / "hf")


TOWERS = {"sentence encoder": sentence_clip, "open_clip": plain_clip, "transformers": clip_model}


@pytest.fixture
def captions(tmp_path: Path) -> CaptionBatches:
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(CAPTIONS))
    return open_captions([str(file)], batch_size=4)


def fit(referee: TwoTower, data: CaptionBatches, run: Run, **changes: Any) -> TwoTower:
    usual: dict[str, Any] = {"steps": 12, "lr": 3e-3, "weight_decay": 1e-4, "warmup": 2, "samples": 4, "log_every": 1}
    return train_texts(referee, data, run=run, **usual | changes)


def new_run(folder: Path) -> Run:
    return Run.create(folder, recipe="test", arguments={})


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in module.state_dict().values()])


def test_the_loss_by_hand() -> None:
    """Embeddings are weight * (number of a's, 1); the original's weight is 1, and that in training 2. Of the edits of
    "aa" those that insert an a are the worst: (6, 2) from (2, 1), 17, whose derivative is 2 * (4 * 3 + 1 * 1)."""
    weight = torch.tensor(2.0, requires_grad=True)

    def counts(texts: list[str]) -> Tensor:
        return torch.tensor([[float(text.count("a")), 1.0] for text in texts])

    original = counts(["aa", "aa"])
    loss = leaf_loss(
        lambda texts: weight * counts(texts), original, ["aa", "aa"], each(0, "x", ids=["1", "2"]), samples=96
    )
    assert loss.item() == (6 - 2) ** 2 + (2 - 1) ** 2
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.item() == 2 * (4 * 3 + 1 * 1)
    # With a weight of 0.5 it is the loss of an a that is the worst: (0.5, 0.5) from (2, 1); and with k = 2 of both.
    less = [leaf_loss(lambda texts: 0.5 * counts(texts), original[:1], ["aa"], each(0, "x", ids=["1"]),
                      samples=96, edits=k).item() for k in (1, 2)]  # fmt: skip
    assert less == [1.5**2 + 0.5**2, 2.0**2 + 0.5**2]


def test_the_control_edits_at_random() -> None:
    def lengths(texts: list[str]) -> Tensor:
        return torch.tensor([[float(len(text))] for text in texts])

    texts = ["abcd"] * 40
    streams = [generator(0, "edit", k) for k in range(40)]
    once = random_edits(texts, [generator(0, "edit", k) for k in range(40)])
    loss = leaf_loss(lengths, lengths(texts), texts, streams, attack="random")
    assert loss.item() == pytest.approx(sum((len(one) - 4) ** 2 for one in once) / 40)
    assert 0 < loss.item() < 1  # the search would find 1


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind == "transformers" else ()) for kind in TOWERS]
)
def test_the_loss_falls_the_image_tower_stays_and_the_result_is_a_referee(
    kind: str, captions: CaptionBatches, tmp_path: Path
) -> None:
    referee = TOWERS[kind](tmp_path / "start")
    images = torch.rand(2, 3, 32, 32, generator=generator(0, "images"))
    before, clean = referee.embed_images(images), referee.text_tower(CAPTIONS)
    image_weights, started_from = weights(referee.image_tower).clone(), referee.card
    run = new_run(tmp_path / "run")
    with run:
        fit(referee, captions, run, steps=30)
        save_trained(referee, run, name="mine", threat=referee.card.threat, started_from=started_from, samples=120)
    losses = [line["loss"] for line in run.metrics()]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert run.metrics()[0]["clean_loss"] < run.metrics()[-1]["loss"]
    assert torch.equal(weights(referee.image_tower), image_weights)
    assert torch.equal(referee.embed_images(images), before)
    assert not torch.equal(referee.text_tower(CAPTIONS), clean)
    assert not any(parameter.requires_grad for parameter in referee.parameters())

    loaded = robustclip.load_referee(run.folder / "referee")
    assert torch.equal(loaded.embed_texts(CAPTIONS), referee.embed_texts(CAPTIONS))
    assert torch.equal(loaded.embed_images(images), before)
    assert (loaded.card.text_threat, loaded.card.text_tower) == ("edits:1", None)
    assert "texts edits:1" in (run.folder / "referee" / "README.md").read_text()
    format_name = "hf" if kind == "transformers" else "open_clip"
    folder = export(run.folder, name="mine", to=tmp_path / "there", format=format_name, register=False)
    exported = robustclip.load_referee(folder)
    assert torch.equal(exported.embed_texts(CAPTIONS), referee.embed_texts(CAPTIONS))
    assert exported.card.text_threat == "edits:1"
    if format_name == "open_clip":
        model = open_clip.create_model(f"local-dir:{folder}").eval()
        with torch.no_grad():
            theirs = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS), normalize=True)
        torch.testing.assert_close(theirs, referee.embed_texts(CAPTIONS), atol=1e-5, rtol=1e-4)


def test_a_packaged_encoder_is_written_once_it_is_trained(
    captions: CaptionBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    referee = sentence_clip(tmp_path / "start")
    referee.text_tower.is_packaged = True  # as MiniLM's, which cards name
    assert referee.text_tower.source() is not None
    fit(referee, captions, new_run(tmp_path / "run"), steps=1)
    assert referee.text_tower.source() is None


def test_the_attack_is_on_the_tower_in_training(
    captions: CaptionBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    referee = plain_clip(tmp_path / "start")
    tower, found = referee.text_tower, []
    anchors = tower(["a cat"])
    leaf = module.leaf

    def watched(texts: list[str], score: Any, *rest: Any, **options: Any) -> list[str]:
        with torch.no_grad():
            found.append((score(texts, range(len(texts))), (tower(["a cat"]) - anchors).square().sum()))
        return leaf(texts, score, *rest, **options)

    monkeypatch.setattr(module, "leaf", watched)
    fit(referee, captions, new_run(tmp_path / "run"), steps=3)
    assert [bool(scores.any()) for scores, _ in found] == [False, True, True]  # clean texts, before and after updates
    assert found[2][1] > 0


def test_a_resumed_run_ends_in_the_same_weights(captions: CaptionBatches, tmp_path: Path) -> None:
    whole = fit(plain_clip(tmp_path / "a"), captions, new_run(tmp_path / "whole"))
    broken = new_run(tmp_path / "broken")

    class Unplugged(CaptionBatches):
        def batches(self, position: dict[str, Any] | None = None) -> Any:
            for number, batch in enumerate(super().batches(position)):
                if number == 8:
                    raise ConnectionError
                yield batch

    data = Unplugged(captions.mixture, captions.batch_size)
    with pytest.raises(ConnectionError):
        fit(plain_clip(tmp_path / "b"), data, broken, checkpoint_every=5)
    resumed = fit(plain_clip(tmp_path / "c"), captions, Run.open(broken.folder), resume=True)
    assert torch.equal(weights(resumed.text_tower), weights(whole.text_tower))
    assert [line["loss"] for line in Run.open(broken.folder).metrics()] == [
        line["loss"] for line in Run.open(tmp_path / "whole").metrics()
    ]


TWO_PROCESSES = """\
compute_environment: LOCAL_MACHINE
distributed_type: {kind}
use_cpu: true
mixed_precision: 'no'
num_machines: 1
num_processes: 2
main_process_port: 0
{more}"""


@pytest.mark.slow
@pytest.mark.usefixtures("captions")
def test_two_processes_make_the_same_run_and_shards_are_refused(tmp_path: Path) -> None:
    plain_clip(tmp_path / "start")
    flags = [f"--start={tmp_path / 'start'}", f"--data={tmp_path / 'captions.txt'}", "--steps=4", "--batch-size=4"]
    call = ["-m", "robustclip", "robustify", "leaf", *flags, "--samples=4", "--warmup=0", "--device=cpu", "--out"]
    kinds = {"two": ("MULTI_GPU", ""), "sharded": ("FSDP", "fsdp_config:\n  fsdp_version: 2\n")}
    done = {}
    for name in ("one", *kinds):
        launch = []
        if name in kinds:
            config = tmp_path / f"{name}.yaml"
            config.write_text(TWO_PROCESSES.format(kind=kinds[name][0], more=kinds[name][1]))
            launch = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
        done[name] = subprocess.run(
            [sys.executable, *launch, *call, str(tmp_path / name)],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert "--use_fsdp" in done["sharded"].stderr
    assert done["sharded"].returncode != 0
    lines = [Run.open(tmp_path / name).metrics()[-1] for name in ("one", "two")]
    assert lines[1]["loss"] == pytest.approx(lines[0]["loss"], rel=1e-4)
    one, two = (robustclip.load_referee(tmp_path / name / "referee").embed_texts(CAPTIONS) for name in ("one", "two"))
    torch.testing.assert_close(two, one, atol=1e-3, rtol=0)


def test_words_and_control_are_in_the_card(captions: CaptionBatches, tmp_path: Path) -> None:
    referee = plain_clip(tmp_path / "start")
    fit(referee, captions, new_run(tmp_path / "control"), steps=1, attack="random")
    assert referee.card.text_threat is None
    fit(referee, captions, new_run(tmp_path / "words"), steps=1, edits=2, allowed=fewer_words({"cat"}))
    assert referee.card.text_threat == "edits:2, fewer words"
    assert str(referee.card.robust_to) == "texts edits:2, fewer words"


def test_what_cannot_be_trained_is_told(captions: CaptionBatches, tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=lambda error: error.code == "no_text_weights"):
        check_trainable(toy_referee())
    with pytest.raises(UsageError, check=coded("wrapped", kind="smoothed")):
        check_trainable(robustclip.load_referee("emoji-vanilla~smooth:0.25x2"))
    with pytest.raises(RunError, check=coded("wrong_scores")):
        fit(plain_clip(tmp_path / "start"), captions, new_run(tmp_path / "run"), lr=1e30, warmup=0)
