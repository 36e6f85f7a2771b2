"""The numbers of `evaluate` are those of the package clip_benchmark, on the same shards and exported referee."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from robustclip.data import load_split
from robustclip.data.images import to_pil
from robustclip.evaluation import evaluate
from robustclip.robustification.export import export

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("clip_benchmark") is None, reason="pip install clip_benchmark (the extra dev has it)"),
]

CLASSES = 100
DEPTHS = (1, 5, 10)
TEMPLATES = ["an emoji of {c}", "{c}, a small colourful drawing"]

LAUNCHER = """
import builtins
from clip_benchmark.cli import main
from clip_benchmark.metrics import zeroshot_classification

def number(value):
    return builtins.float(value.item() if hasattr(value, "item") else value)

zeroshot_classification.float = number
main()
"""
"""The package's command line. Its version 1.6.2 makes Python numbers of arrays with one entry, which NumPy 2.4 refuses:
in that one module `float` means again what it meant before. Nothing else is touched."""


@pytest.fixture(scope="module")
def referee(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(Path("emoji-robust"), name="r", to=tmp_path_factory.mktemp("exported") / "r", register=False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two layouts, `classification` and `retrieval`: drawings in styles that the referee has not seen, of 64x64
    pixels, in a plain shard and a gzipped one. No caption is that of two images, which each side counts differently."""
    split = load_split("emoji", "unseen-styles")
    every = split.labels.unique()
    labels = every[:: len(every) // CLASSES][:CLASSES]
    rows = torch.isin(split.labels, labels).nonzero().flatten().tolist()
    names = [split.label_names[label] for label in labels.tolist()]
    classification, retrieval = [], []
    for row in rows:
        name = split.label_names[int(split.labels[row])]
        picture = {"png": png(split.images[row])}
        captions = f"{name}, picture {row}\na drawing of {name} in the style {split.styles[row]}, number {row}"
        classification.append(picture | {"cls": str(names.index(name)).encode()})
        retrieval.append(picture | {"txt": captions.encode()})
    root = tmp_path_factory.mktemp("shards")
    write(root / "classification", classification)
    (root / "classification" / "classnames.txt").write_text("\n".join(names))
    (root / "classification" / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES))
    write(root / "retrieval", retrieval)
    (root / "retrieval" / "dataset_type.txt").write_text("retrieval")
    return root


def png(image: torch.Tensor) -> bytes:
    file = io.BytesIO()
    to_pil(image).save(file, "PNG")
    return file.getvalue()


def write(root: Path, samples: list[dict[str, bytes]]) -> None:
    folder = root / "test"
    folder.mkdir(parents=True)
    (folder / "nshards.txt").write_text("2")
    middle = len(samples) // 2
    for number, part in enumerate((samples[:middle], samples[middle:])):
        with tarfile.open(folder / f"{number}.tar", "w:gz" if number else "w") as tar:
            for index, sample in enumerate(part):
                for ending, content in sample.items():
                    member = tarfile.TarInfo(f"s{index:06}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def theirs(referee: Path, data: Path, task: str, tmp_path: Path, *options: str) -> dict[str, float]:
    """What the package measures, without mixed precision."""
    command = ["eval", "--model", f"local-dir:{referee}", "--pretrained", "", "--dataset", "wds/own"]
    command += ["--dataset_root", str(data), "--task", task, "--no_amp", "--num_workers", "0", "--quiet"]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LAUNCHER, *command, "--output", "out.json", *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    metrics: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())["metrics"]
    return metrics


def test_zero_shot_accuracy(referee: Path, shards: Path, tmp_path: Path) -> None:
    data = shards / "classification"
    report = evaluate([referee], data=data, templates="dataset", device="cpu")
    found = theirs(referee, data, "zeroshot_classification", tmp_path)
    for ours, name in (("top-1", "acc1"), ("top-5", "acc5")):
        row = report.row("r", ours)
        assert abs(row.value - found[name]) <= 1 / row.n + 1e-6
    assert 0.2 < found["acc1"] < found["acc5"] < 0.99  # a number that could be wrong


def test_retrieval(referee: Path, shards: Path, tmp_path: Path) -> None:
    data = shards / "retrieval"
    report = evaluate([referee], data=data, tasks=["retrieval"], device="cpu")
    depths = [str(depth) for depth in DEPTHS]
    found = theirs(referee, data, "zeroshot_retrieval", tmp_path, "--recall_k", *depths)
    for ours, name in (("image to text", "text_retrieval"), ("text to image", "image_retrieval")):
        for depth in DEPTHS:
            row, value = report.row("r", f"{ours} recall@{depth}"), found[f"{name}_recall@{depth}"]
            assert abs(row.value - value) <= 1 / row.n + 1e-6
    assert 0.1 < found["image_retrieval_recall@1"] < found["image_retrieval_recall@10"] < 0.99
