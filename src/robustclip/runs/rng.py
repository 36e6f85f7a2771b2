"""Named random generators: every stream is a pure function of (seed, purpose, indices)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


def generator(seed: int, purpose: str, *indices: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator keyed by seed and purpose, e.g. `generator(seed, "attack", step)`.

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
    """One generator per sample, keyed also by its id, so that draws do not depend on batch, part or process."""
    return [generator(seed, f"{purpose} of {id}", *indices, device=device) for id in ids]  # noqa: A001


def batch_rows(samples: int, batch_size: int, k: int, seed: int, purpose: str) -> torch.Tensor:
    """Indices (batch_size,) of batch k in an endless sequence of permutations of `samples`, one per epoch; a batch may
    span two epochs, so no sample is dropped."""
    positions = range(k * batch_size, (k + 1) * batch_size)
    epochs = range(positions[0] // samples, positions[-1] // samples + 1)
    row = torch.cat([torch.randperm(samples, generator=generator(seed, purpose, epoch)) for epoch in epochs])
    first = positions[0] - epochs[0] * samples
    return row[first : first + batch_size]


@contextmanager
def seeded(seed: int, purpose: str | None = None, *indices: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Context manager: seed torch's global generators (of dropout, of a module's weights) by a named stream, without a
    purpose by `seed` itself, and restore them afterwards.
    """
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed if purpose is None else generator(seed, purpose, *indices).initial_seed())
        yield
