"""Named random generators: every stream is a pure function of (seed, purpose, indices)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


def generator(seed: int, purpose: str, *indices: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator keyed by what it is for, e.g. `generator(seed, "attack", step)`.

    Two streams of different purpose or index are independent, and none depends on how much another was drawn from:
    so step 7 draws the same numbers whether the run started at 0 or resumed at 7. Global seeds are never touched.
    The numbers drawn differ between kinds of device.
    """
    key = repr((int(seed), purpose, *(int(index) for index in indices)))
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).digest()
    stream = torch.Generator(device=device)
    stream.manual_seed(int.from_bytes(digest[:8], "little") >> 1)  # 63 bits: what a signed seed holds
    return stream


def each(
    seed: int, purpose: str, *indices: int, ids: Sequence[str], device: str | torch.device = "cpu"
) -> list[torch.Generator]:
    """A generator for each sample, keyed by its id as well: what is drawn for a sample does not depend on which others
    share its batch, its part of a batch or its process."""
    return [generator(seed, f"{purpose} of {id}", *indices, device=device) for id in ids]  # noqa: A001


@contextmanager
def seeded(seed: int, purpose: str, *indices: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Within the block, what draws from torch's global generators (dropout inside a tower) draws from a stream of this
    name; they are as before after it."""
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(generator(seed, purpose, *indices).initial_seed())
        yield
