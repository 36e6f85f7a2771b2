"""Rehearse a training at full size: `plan`'s estimate against a short run with drawn weights and synthetic JPEGs.

    python tools/rehearse.py --batch-size 8 --steps 10                     # a CPU
    python tools/rehearse.py --batch-size 512 1024 2048 4096 --steps 50 --images 20000 --workers 8 --dtype bfloat16
    python tools/rehearse.py --quick                                       # a small tower, two images

Writes an open_clip model of --architecture at its real size with random weights, and WebDataset shards of JPEGs of
256x256 pixels. For each batch size a process plans by `robustclip plan --gpu here`, another runs the recipe, and a
third times an update's attack and gradients beside their bare passes (tools/bench.py); the table has images/s, memory
and the share of time spent waiting for data beside the plan. The first batch size that the memory does not hold is
named, and no larger one is tried. Memory is what is allocated on a GPU, and on a CPU the largest resident memory
without what was resident before the run. The learning rate is 1e-12, so that random weights do not diverge.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import open_clip
import psutil
import torch
from bench import Case, ratio, training_steps
from bench_reading import write
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

import robustclip
from robustclip.errors import RunError
from robustclip.runs.devices import DTYPES, is_out_of_memory, largest_resident, pick_device

T = TypeVar("T")


@dataclass(frozen=True)
class Planned:
    images_per_second: float
    memory: float
    attack_steps: int


@dataclass(frozen=True)
class Ran:
    images_per_second: float
    memory: float
    waited: float
    dtype: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="clipag-vit-b32")
    parser.add_argument("--architecture", default="ViT-B-32")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[8], help="one or several")
    parser.add_argument("--steps", type=int, default=10, help="10 or more, a multiple of 10")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of an update and of its bare passes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quick", action="store_true", help="a small tower, two images, ten steps")
    asked = parser.parse_args()
    if asked.quick:
        asked.architecture, asked.batch_size, asked.steps, asked.images, asked.rounds = "ViT-S-32-alt", [2], 10, 20, 1
    device = pick_device(asked.device)
    table = Table("batch", "images/s", "plan", "GB", "plan", "waiting for data", "update / bare passes")
    edge = ""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        start = drawn(asked.architecture, folder / "start")
        (folder / "shards").mkdir()
        write(folder / "shards", asked.images, pixels=256)
        for size, row in until_full(sorted(asked.batch_size), lambda size: rehearse(size, start, folder, asked)):
            if row is None:
                edge = f"batch {size:,}: out of memory, no larger one was tried"
                break
            table.add_row(f"{size:,}", *row)
            print(" | ".join((f"{size:,}", *row)), flush=True)
    console = Console()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    console.print(f"{asked.recipe} from {asked.architecture} on {name}: {asked.steps} steps")
    console.print(table)
    console.print(edge)


def until_full(sizes: Sequence[int], row_of: Callable[[int], T]) -> Iterator[tuple[int, T | None]]:
    """(size, its row), and at last (size, None) of the first one that ran out of memory or was killed for it."""
    for size in sizes:
        try:
            yield size, row_of(size)
        except (RunError, RuntimeError, MemoryError) as error:
            told = isinstance(error, RunError) and error.code == "out_of_memory"
            if not (told or isinstance(error, BrokenProcessPool) or is_out_of_memory(error)):
                raise
            yield size, None
            return


def rehearse(size: int, start: str, folder: Path, asked: argparse.Namespace) -> tuple[str, ...]:
    """A row of the table, by processes of its own; raises what a lack of memory raises there."""
    settings = {"start": start, "batch_size": size, "steps": asked.steps, "dtype": asked.dtype}
    settings |= {"device": asked.device, "warmup": 0, "evaluate_every": 0}
    planned = alone(planned_run, asked.recipe, settings)
    call = settings | {"data": [str(folder / "shards")], "workers": asked.workers, "out": folder / f"run-{size}"}
    ran = alone(trained, asked.recipe, call)
    overhead = alone(update_over_passes, asked.architecture, size, planned.attack_steps, asked, ran.dtype)
    speed = ran.images_per_second / planned.images_per_second
    return (
        f"{ran.images_per_second:.2f}",
        f"{planned.images_per_second:.2f} (run / plan {speed:.2f})",
        f"{ran.memory / 1e9:.2f}",
        f"{planned.memory / 1e9:.2f} (run / plan {ran.memory / planned.memory:.2f})",
        f"{ran.waited:.1%}",
        f"{overhead:.3f}",
    )


def alone(work: Callable[..., T], *arguments: Any) -> T:
    """`work(*arguments)` in a process of its own. Raises BrokenProcessPool if it is killed."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def planned_run(recipe: str, settings: dict[str, Any]) -> Planned:
    found = robustclip.plan(recipe, gpu="here", **settings)
    return Planned(found.images_per_second, found.memory.peak, found.settings.attack_steps)


def trained(recipe: str, call: dict[str, Any]) -> Ran:
    device = pick_device(call["device"])
    taken = memory_taken(device)
    robustclip.robustify(recipe, lr=1e-12, **call)
    lines = [json.loads(line) for line in (call["out"] / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "images_per_second" in line][-1]
    dtype = json.loads((call["out"] / "run.json").read_text())["notes"]["dtype"]
    return Ran(last["images_per_second"], taken(), last["data_wait"], dtype)


def update_over_passes(architecture: str, size: int, attack_steps: int, asked: argparse.Namespace, dtype: str) -> float:
    """Time of attack and gradients over that of their forward and backward passes alone."""
    config = open_clip.get_model_config(architecture)
    side = config["vision_cfg"].get("image_size", 224)
    case = Case(architecture, config, side, size, channels_last=False)
    device = pick_device(asked.device)
    return ratio(*training_steps(case, device, DTYPES[dtype], attack_steps), asked.rounds, device)


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


def memory_taken(device: torch.device) -> Callable[[], float]:
    """A function that returns the most bytes taken since now: allocated on a GPU; on a CPU the largest resident memory
    without what is resident now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: float(torch.cuda.max_memory_allocated(device))
    before = psutil.Process().memory_info().rss
    return lambda: float((largest_resident() or before) - before)


if __name__ == "__main__":
    main()
