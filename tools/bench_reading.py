"""Images a second of reading alone: JPEGs of shards made on the spot, decoded, cropped and resized by worker processes.

    python tools/bench_reading.py --images 5000 --batches 40

Beside images a second of wall time, which others on the machine slow down, it prints images a CPU second of the
workers and of the main process: what one core decodes, and what the process that trains spends on an image.
"""

from __future__ import annotations

import argparse
import io
import resource
import tarfile
import time
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from robustclip.data.sources import open_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--pixels", type=int, default=256, help="of a JPEG's side, as img2dataset stores them")
    parser.add_argument("--size", type=int, default=224, help="of a batch")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        size = write(Path(folder), asked.images, asked.pixels)
        print(f"{asked.images:,} JPEGs of {asked.pixels}x{asked.pixels}, {size / asked.images / 1000:.0f} kB each")
        for workers in asked.workers:
            data = open_data(folder, batch_size=asked.batch_size, size=asked.size, workers=workers, shuffle_buffer=1000)
            before = [cpu(resource.RUSAGE_SELF), cpu(resource.RUSAGE_CHILDREN), time.perf_counter()]
            read = sum(len(batch) for batch in islice(data.batches(), asked.batches))
            after = [cpu(resource.RUSAGE_SELF), cpu(resource.RUSAGE_CHILDREN), time.perf_counter()]
            main_process, decoding, wall = (late - early for late, early in zip(after, before, strict=True))
            print(
                f"{workers} workers: {read:,} images, {read / wall:,.0f} a second; {read / decoding:,.0f} a CPU second "
                f"of the workers, {read / main_process:,.0f} of the main process"
            )


def write(folder: Path, count: int, pixels: int, per_shard: int = 1000) -> int:
    """Shards of smooth random pictures, which compress about as photographs do; their size in bytes."""
    draw, size = np.random.default_rng(0), 0
    for start in range(0, count, per_shard):
        with tarfile.open(folder / f"{start // per_shard:05d}.tar", "w") as tar:
            for number in range(start, min(count, start + per_shard)):
                coarse = Image.fromarray(draw.integers(0, 256, (pixels // 4, pixels // 4, 3), dtype=np.uint8))
                encoded = io.BytesIO()
                coarse.resize((pixels, pixels), Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=90)
                size += len(encoded.getvalue())
                for ending, content in (("jpg", encoded.getvalue()), ("txt", f"picture {number}".encode())):
                    member = tarfile.TarInfo(f"{number:09d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return size


def cpu(whose: int) -> float:
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
