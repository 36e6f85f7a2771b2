"""Rehearse a training at full size: `plan`'s estimate against a short run with drawn weights and synthetic JPEGs.

    python tools/rehearse.py --batch-size 8 --steps 10                     # a CPU
    python tools/rehearse.py --batch-size 512 --steps 50 --images 20000 --workers 8 --dtype bfloat16

Writes an open_clip model of --architecture at its real size with random weights, and WebDataset shards of JPEGs of
256x256 pixels; runs the recipe on them; and prints images/s, memory and the share of time spent waiting for data beside
the estimate of `robustclip plan --gpu here`. The learning rate is 1e-12, so that random weights do not diverge.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path
from tempfile import TemporaryDirectory

import open_clip
import torch
from bench_reading import write
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

import robustclip
from robustclip.runs.devices import pick_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="clipag-vit-b32")
    parser.add_argument("--architecture", default="ViT-B-32")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="10 or more, a multiple of 10")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    asked = parser.parse_args()
    device = pick_device(asked.device)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        start = drawn(asked.architecture, folder / "start")
        (folder / "shards").mkdir()
        write(folder / "shards", asked.images, pixels=256)
        settings = {"start": start, "batch_size": asked.batch_size, "steps": asked.steps, "dtype": asked.dtype}
        settings |= {"device": asked.device, "warmup": 0, "evaluate_every": 0}
        planned = robustclip.plan(asked.recipe, gpu="here", **settings)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        robustclip.robustify(
            asked.recipe, data=[str(folder / "shards")], workers=asked.workers, lr=1e-12, out=folder / "run", **settings
        )
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        ran = [line for line in lines if "images_per_second" in line][-1]
        record = json.loads((folder / "run" / "run.json").read_text())
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 1024 * maximum_resident()
    table = Table("", "plan", "run", "run / plan")
    speed = ran["images_per_second"]
    table.add_row(
        "images/s", f"{planned.images_per_second:.2f}", f"{speed:.2f}", f"{speed / planned.images_per_second:.2f}"
    )
    table.add_row(
        "memory, GB", f"{planned.memory.peak / 1e9:.1f}", f"{peak / 1e9:.1f}", f"{peak / planned.memory.peak:.2f}"
    )
    table.add_row("waiting for data", "0%", f"{ran['data_wait']:.1%}", "")
    console = Console()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    ran_as = f"batch {asked.batch_size}, {asked.steps} steps, {record['notes']['dtype']}"
    console.print(f"{asked.recipe} from {asked.architecture} on {name}: {ran_as}")
    console.print(table)


def drawn(architecture: str, folder: Path) -> str:
    """Write an open_clip model with random weights; its name for load_referee."""
    torch.manual_seed(0)
    model = open_clip.create_model(architecture)
    folder.mkdir()
    config = {"model_cfg": open_clip.get_model_config(architecture), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return f"local-dir:{folder}"


def maximum_resident() -> int:
    """Largest resident memory of this process, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
