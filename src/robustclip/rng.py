"""Randomness with a name: every stream is a pure function of (seed, purpose, indices)."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str, *indices: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator keyed by what it is for, e.g. `generator(seed, "attack", step)`.

    Two streams of different purpose or index are independent, and none depends on how much another was drawn from:
    so step 7 draws the same numbers whether the run started at 0 or resumed at 7. Global seeds are never touched.
    The numbers drawn differ between kinds of device.
    """
    key = repr((int(seed), purpose, *(int(index) for index in indices)))
    digest = hashlib.sha256(key.encode()).digest()
    stream = torch.Generator(device=device)
    stream.manual_seed(int.from_bytes(digest[:8], "little") >> 1)  # 63 bits: what a signed seed holds
    return stream
