"""`make bench`: overhead of our training step over its forward and backward passes, by dtype.

Both sides of a ratio are measured in turn in one run, and the ratio is that of their medians: absolute times of a
shared machine mean nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustclip.attacks import attacking, pgd
from robustclip.attacks.threat import ThreatModel
from robustclip.referees.openclip import build_image_tower
from robustclip.robustification.losses import clip
from robustclip.runs.devices import autocast, pick_device

Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A tower at its size; batches as small as keep the bench short and as large as keep the tower busy."""

    name: str
    model_cfg: dict
    size: int
    batch: int
    channels_last: bool

    def tower(self, device: torch.device) -> nn.Module:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return build_image_tower(self.model_cfg).to(device).to(memory_format=layout)


def timm_cfg(model: str, size: int) -> dict:
    vision = {"timm_model_name": model, "timm_pool": "avg", "timm_proj": "", "image_size": size}
    return {"embed_dim": 384, "vision_cfg": vision}


VIT_B_32 = {"embed_dim": 512, "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}}
CASES = [
    Case("resnet10t at 64", timm_cfg("resnet10t", 64), 64, 64, channels_last=True),
    Case("ese_vovnet19b_slim at 64", timm_cfg("ese_vovnet19b_slim", 64), 64, 64, channels_last=True),
    Case("ViT-B/32 at 224", VIT_B_32, 224, 8, channels_last=False),
]


def training_steps(case: Case, device: torch.device, dtype: torch.dtype, attack_steps: int) -> tuple[Step, Step]:
    """(our step, the bare passes): K gradients to the images through the frozen tower in eval mode, then one training
    pass; ours adds random start, steepest steps, projections and the mode switching. Without the optimiser."""
    tower = case.tower(device).train()
    stream = torch.Generator(device).manual_seed(0)
    images = torch.rand(case.batch, 3, case.size, case.size, generator=stream, device=device)
    images = images.to(memory_format=torch.channels_last if case.channels_last else torch.contiguous_format)
    width = case.model_cfg["embed_dim"]
    texts = F.normalize(torch.randn(case.batch, width, generator=stream, device=device), dim=1)
    ids = torch.arange(case.batch, device=device)
    objective = clip(100.0)
    threat = ThreatModel("l2", 1.5, case.size)

    def losses(pixels: Tensor) -> Tensor:
        with autocast(device, dtype):
            features = tower(pixels)
        return objective(F.normalize(features.float(), dim=-1), texts, ids)

    def ours() -> None:
        adversarial = pgd(
            images, losses, threat, steps=attack_steps, coupled=True, keep="last", module=tower, generator=stream
        )
        losses(adversarial).mean().backward()

    def bare() -> None:
        with attacking(tower):
            for _ in range(attack_steps):
                leaf = images.detach().requires_grad_()
                torch.autograd.grad(losses(leaf).sum(), leaf)
        losses(images).mean().backward()

    return ours, bare


def ratio(first: Step, second: Step, rounds: int, device: torch.device) -> float:
    """Median time of `first` over that of `second`, measured in turn."""

    def seconds(step: Step) -> float:
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    seconds(first), seconds(second)
    times = [(seconds(first), seconds(second)) for _ in range(rounds)]
    return median(one for one, _ in times) / median(other for _, other in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each side (default: %(default)s)")
    parser.add_argument("--attack-steps", type=int, default=2, help="K (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    print(f"K = {arguments.attack_steps} attack steps, {device}, {torch.get_num_threads()} threads", flush=True)
    for case in CASES:
        pairs = {dtype: training_steps(case, device, dtype, arguments.attack_steps) for dtype in DTYPES}
        for dtype, pair in pairs.items():
            overhead = ratio(*pair, arguments.rounds, device)
            print(f"{case.name}, {dtype}: our step is {overhead:.3f} of its bare passes", flush=True)
        full, half = (pairs[dtype][1] for dtype in DTYPES)
        print(f"{case.name}: bfloat16 takes {ratio(half, full, arguments.rounds, device):.2f} of float32", flush=True)


DTYPES = (torch.float32, torch.bfloat16)

if __name__ == "__main__":
    main()
