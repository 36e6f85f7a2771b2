"""The behaviour record: what quick calls of every verb and recipe give, as numbers in behaviour.json beside this file.

python tests/golden/behaviour.py                    run every call and compare with the record; exit 1 on a difference
python tests/golden/behaviour.py clipag judge       only these calls, and those whose files they read
python tests/golden/behaviour.py --write [NAME...]  record anew (all, or only these)
python tests/golden/behaviour.py --list             the calls

Of pictures, weights and embeddings the record holds shape, mean, deviation and a projection on a fixed direction; of
JSON, JSON lines, CSV and SVG their numbers and short words. Paths, dates, hashes, times and prose are left out. Numbers
agree within TOLERANCE, so that the record holds for other thread counts; with OMP_NUM_THREADS=1 they agree exactly on
one machine. Files and fields that are new beside the record are no difference.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

RECORD = Path(__file__).with_suffix(".json")
TESTS = Path(__file__).parents[1]
SOURCE = TESTS.parent / "src"
TOLERANCE = 5e-3  # relative, and 1e-5 of a number near zero; rounding differs between CPUs, and optimisers amplify it
WORDS = "'a green turtle' 'a blue butterfly'"
PAINT = f"{WORDS} --quick --device cpu --dtype float32"
QUICK = "--quick --device cpu --dtype float32"
SMALL = "--limit 24 --batch-size 12 --device cpu"

CALLS = {
    # name: the words after `robustclip`; % is out/NAME, where it writes, and others may read
    "list": "referees list --json %.json",  # first: exports add names
    "emoji": f"robustify emoji {QUICK} --out %",
    "emoji-fare": f"robustify emoji-fare {QUICK} --out %",
    "emoji-tecoa": f"robustify emoji-tecoa {QUICK} --out %",
    "emoji-agft": f"robustify emoji-agft {QUICK} --out %",
    "emoji-trades": f"robustify emoji-trades {QUICK} --out %",
    "emoji-jem": "robustify emoji-jem --steps 3 --warmup 1 --device cpu --dtype float32 --out %",
    "emoji-vit": f"robustify emoji-vit {QUICK} --out %",
    "clipag-vit-b32": f"robustify clipag-vit-b32 {QUICK} --out %",
    "clipag-vit-b16": f"robustify clipag-vit-b16 {QUICK} --out %",
    "clipag-convnext": f"robustify clipag-convnext {QUICK} --out %",
    "clipag-linf": f"robustify clipag-linf {QUICK} --out %",
    "fare-vit-l14": f"robustify fare-vit-l14 {QUICK} --out %",
    "tecoa-vit-l14": f"robustify tecoa-vit-l14 {QUICK} --out %",
    "leaf": f"robustify leaf {QUICK} --out %",
    "distance": f"robustify distance {QUICK} --out %",
    "trained-vanilla": f"robustify pretrain/emoji-vanilla {QUICK} --out %",
    "trained-judge": f"robustify pretrain/emoji-judge {QUICK} --out %",
    "trained-judge-disjoint": f"robustify pretrain/emoji-judge-disjoint {QUICK} --out %",
    "trained-vit-vanilla": f"robustify pretrain/emoji-vit-vanilla {QUICK} --out %",
    "trained-vqgan": f"robustify pretrain/emoji-vqgan {QUICK} --out %",
    "trained-vae": f"robustify pretrain/emoji-vae {QUICK} --out %",
    "trained-diffusion": f"robustify pretrain/emoji-diffusion --vae out/trained-vae/vae {QUICK} --out %",
    "trained-blip2": f"robustify pretrain/emoji-blip2 {QUICK} --out %",
    "killed": f"robustify emoji {QUICK} --checkpoint-every 4 --out % --resume latest",
    "clipag": f"synthesize clipag {PAINT} --out %",
    "clipag-pyramid": f"synthesize clipag {PAINT} --canvas pyramid --augment diffaug --patches 2 --seeds 3,5 "
    "--init noise --out %",
    "clipag-faithful": f"synthesize clipag-faithful {PAINT} --out %",
    "direct-ascent": f"synthesize direct-ascent {PAINT} --out %",
    "clipdraw": f"synthesize clipdraw {PAINT} --out %",
    "vqgan": f"synthesize vqgan {PAINT} --out %",
    "clipstyler": "synthesize clipstyler 'made of gold' --steps 1 --device cpu --dtype float32 --out %",
    "doodl": f"synthesize doodl {PAINT} --out %",
    "referee-can-play": f"synthesize referee-can-play {PAINT} --out %",
    "mi-tune": f"align mi-tune {QUICK} --out %",
    "ablation": f"reproduce ablation {QUICK} --out %",
    "table1": f"reproduce table1 --canvas strokes pixels --slow-pictures 2 {QUICK} --out %",
    "table2": f"reproduce table2 {QUICK} --out %",
    "inversion": f"reproduce inversion {QUICK} --out %",
    "robustness": f"reproduce robustness --rows trades {QUICK} --out %",
    "open-clip": "export out/emoji --name open-clip --to % --format open_clip",
    "half": "export out/emoji --name half --to % --half --checkpoint best",
    "timm": "export out/emoji-vit --name timm --to % --format timm",
    "image-tower": "export out/emoji --name image-tower --to % --format image-tower",
    "hf": "export inputs/tiny --name hf --to % --format hf",
    "zero-shot": "evaluate emoji-vanilla emoji-robust --attack l2:1.5@3 --attack linf:4/255@2 "
    f"--attack l2:1.5@apgd-ce --templates photo {SMALL} --csv %.csv --out %",
    "retrieval": f"evaluate out/open-clip --tasks retrieval --attack l2:1.5@2 {SMALL} --out %",
    "gradients": f"evaluate emoji-robust --tasks gradients {SMALL} --out %",
    "pag": f"evaluate emoji-robust emoji-vanilla --tasks pag --pag l2:12@2 {SMALL} --out %",
    "maps": f"evaluate emoji-robust --tasks maps,faithfulness --data emoji/scenes --attack l2:1.5@2 {SMALL} --out %",
    "certification": "evaluate emoji-robust --tasks certification --sigma 0.25 --samples 120 --limit 4 --device cpu "
    "--out %",
    "corruptions": "evaluate emoji-robust --tasks corruptions --limit 8 --device cpu --out %",
    "masking": f"evaluate emoji-vanilla --masking --attack l2:1.5@3 {SMALL} --out %",
    "signed": f"evaluate out/open-clip --attack l2:1.5@2 --sign {SMALL} --out %",
    "explain": "explain --referees emoji-vanilla emoji-robust --images emoji/scenes --limit 3 --attack l2:1.5@2 "
    "--device cpu --out %",
    "explain-vit": "explain --referees emoji-vit-robust --images emoji/unseen-styles --limit 2 --method gradcam-cls "
    "--objective untargeted --attack l2:1.5@2 --device cpu --out %",
    "judge": "judge out/clipag out/direct-ascent --judge emoji-judge --device cpu "
    "--metrics r-precision,clipscore,cosine --csv %.csv --out %",
    "judge-sets": "judge out/clipag-pyramid --judge emoji-judge --reference emoji/judge-heldback --device cpu "
    "--metrics frechet,cmmd,label-score --out %",
    "taming": "convert taming-vqgan inputs/taming.ckpt --out %",
    "lavis": "convert lavis-blip2 inputs/lavis.pth --out %",
    "mixture": "mixture fit emoji/unseen-styles --out %.safetensors --limit 60 --size 8",
    "plan": "plan emoji --json %.json",
    "plan-large": "plan fare-vit-l14 --gpu a100 --count 4 --steps 1000 --json %.json",
    "plan-tower": "plan clipag-vit-b32 --data x.tar --batch-size 512 --accumulate 4 --json %.json",
    "show": "referees show emoji-robust --json %.json",
    "verify": "referees verify emoji-robust --json %.json",
    "runs": "runs show emoji --folder out/emoji/.. --json %.json",
    "faults": "robustify emoji --stpes 3 --lr much --norm l3 --batch-size 0 --resume nowhere",
    "no-recipe": "synthesize clipga 'a cat'",
}
QUICKEST = ("clipag", "judge-sets", "hf", "plan", "show", "faults", "no-recipe")
"""Calls that the fast tests make: seconds each."""
REFEREES = {"emoji", "emoji-vit", "trained-vanilla", "open-clip", "half", "hf"}
"""Calls that end in a referee, whose embeddings are recorded."""

SKIPPED = {"checkpoints", "tensorboard", "tokenizer", "vocab.json", "merges.txt", "tokenizer.json", ".lock"}
LEFT_OUT = re.compile(
    r"(started|ended|date|created|exported|process|pid|host|versions?|commit|sha256|.*hash|.*digest|.*fingerprint|.*seconds.*|"
    r".*_per_second|data_wait|took|time|measured_on|resumed|model_id|transformers_version)$"
)
WORD = re.compile(r"[A-Za-z0-9_.:@+|=%,-]{1,40}")
FEW = 12  # entries of a list that are recorded one by one

Facts = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--write", action="store_true", help="record anew")
    parser.add_argument("--list", action="store_true", help="print the calls")
    parser.add_argument("--keep", type=Path, help="run in this new folder, and keep it")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(CALLS):
        parser.error(f"no such call: {', '.join(sorted(unknown))}; --list shows them")
    if given.list:
        for name in CALLS:
            print(f"{name}: robustclip {shlex.join(words_of(name))}")
        return 0
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    different = 0
    for name, facts in observe(given.names or list(CALLS), folder=given.keep):
        if given.write:
            recorded[name] = facts
            RECORD.write_text(serialise({name: recorded[name] for name in CALLS if name in recorded}))
            continue
        lines = list(differences(name, facts, recorded))
        different += len(lines)
        print(*(f"  {line}" for line in lines or ["as recorded"]), sep="\n", flush=True)
    return bool(different)


def observe(names: Sequence[str], *, folder: Path | None = None) -> Iterator[tuple[str, Facts]]:
    """Run the calls `names`, after those whose folders they read; (call, {file: facts}) of `names`."""
    wanted = needed(names)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if folder is None else folder
        folder.mkdir(exist_ok=True, parents=True)
        before = os.environ.get("ROBUSTCLIP_HOME")
        os.environ["ROBUSTCLIP_HOME"] = str(folder / "home")
        try:
            with chdir(folder):
                Path("out").mkdir()
                inputs(Path("inputs"), wanted)
                for name in (name for name in CALLS if name in wanted):
                    begun = time.perf_counter()
                    code, errors = killed(name) if name == "killed" else call(words_of(name))
                    facts = {"exit": {"code": code, "faults": errors.count("\n  ")}} | dict(files(name))
                    if name in REFEREES and code == 0:
                        facts["embeddings"] = embeddings(name)
                    if code not in (0, 2):
                        raise RuntimeError(f"{name} ended with {code}: {errors[-2000:]}")
                    print(
                        f"{name}: exit {code}, {len(facts) - 1} files, {time.perf_counter() - begun:.1f} s", flush=True
                    )
                    if code:
                        print(errors)
                    if name in names:
                        yield name, facts
        finally:
            os.environ.pop("ROBUSTCLIP_HOME") if before is None else os.environ.update(ROBUSTCLIP_HOME=before)


def words_of(name: str) -> list[str]:
    """The words of a call, after `robustclip`."""
    return shlex.split(CALLS[name].replace("%", f"out/{name}"))


def needed(names: Sequence[str]) -> set[str]:
    """The calls `names` and all whose folders they read."""
    own = {name: set(re.findall(r"out/([\w-]+)", words)) & set(CALLS) for name, words in CALLS.items()}
    wanted = set(names)
    while more := set().union(*(own[name] for name in wanted)) - wanted:
        wanted |= more
    return wanted


def call(words: Sequence[str]) -> tuple[int, str]:
    """(exit code, stderr) of one command, run in this process."""
    from robustclip.cli import main as command

    errors = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(errors):
        warnings.simplefilter("ignore")
        try:
            command(list(words))
        except SystemExit as end:
            return int(end.code or 0), errors.getvalue()
    return 0, errors.getvalue()


def killed(name: str) -> tuple[int, str]:
    """A run that is killed after its first checkpoint, and goes on."""
    words = words_of(name)
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "robustclip", *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        while process.poll() is None and not any(Path("out", name).glob("checkpoints/checkpoint-*.pt")):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    return call(words)


def inputs(folder: Path, wanted: set[str]) -> None:
    """Files of other formats, which some calls read."""
    import torch

    folder.mkdir()
    for name, write in (("taming", _taming), ("lavis", _lavis), ("hf", _tiny_clip)):
        if name in wanted:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                write(folder)


def _taming(folder: Path) -> None:
    """A tiny VQGAN in the layout of taming-transformers."""
    import torch

    sys.path.insert(0, str(TESTS / "diffusion"))
    from taming_layout import TamingVQGAN  # type: ignore[import-not-found]

    torch.save({"state_dict": TamingVQGAN().state_dict()}, folder / "taming.ckpt")


def _lavis(folder: Path) -> None:
    """A tiny BLIP-2 in the layout of LAVIS."""
    import torch

    sys.path.insert(0, str(TESTS / "referees"))
    from lavis_layout import TINY_EVA, TINY_QFORMER, eva, qformer  # type: ignore[import-not-found]

    shapes = {f"visual_encoder.{key}": shape for key, shape in eva(**TINY_EVA)} | dict(qformer(**TINY_QFORMER))
    weights = {key: 0.3 * torch.randn(shape) for key, shape in shapes.items()}
    torch.save({"model": weights | {"temp": torch.tensor(0.05)}}, folder / "lavis.pth")


def _tiny_clip(folder: Path) -> None:
    """A CLIP that transformers can hold, as a referee's folder."""
    import open_clip
    import torch

    from robustclip.referees.folder import save_referee
    from robustclip.referees.registry import load_referee

    tiny = {
        "embed_dim": 12,
        "quick_gelu": True,
        "vision_cfg": {"layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32},
        "text_cfg": {"width": 16, "heads": 2, "layers": 1},
    }
    (folder / "configs").mkdir()
    (folder / "configs" / "tiny-behaviour.json").write_text(json.dumps(tiny))
    open_clip.add_model_config(folder / "configs")
    torch.save(open_clip.create_model("tiny-behaviour").state_dict(), folder / "tiny.pt")
    save_referee(load_referee(folder / "tiny.pt", architecture="tiny-behaviour"), folder / "tiny")


def embeddings(name: str) -> Facts:
    """Of fixed pictures and texts, by the referee that a call ended in."""
    import torch

    from robustclip.referees.registry import load_referee

    folder = Path("out", name)
    referee = load_referee(folder / "referee" if (folder / "referee").is_dir() else folder)
    pictures = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = referee.embed_images(pictures).float().numpy()
        read = referee.embed_texts(["a green turtle", "two dogs"]).float().numpy()
    return {"images": array(seen), "texts": array(read)}


def files(name: str) -> Iterator[tuple[str, Facts]]:
    """(path, facts) of what a call wrote."""
    folder = Path("out", name)
    pattern = "*.json" if CALLS[name].startswith("reproduce") else "**/*"  # of a table not every picture
    found = sorted(path for path in folder.glob(pattern) if path.is_file()) if folder.is_dir() else []
    for path in [*found, *sorted(Path("out").glob(f"{name}.*"))]:
        if SKIPPED.isdisjoint(path.parts) and (facts := of_file(path)) is not None:
            yield path.relative_to("out").as_posix(), facts


def of_file(path: Path) -> Facts | None:
    """The facts of one file; None for a kind that is not recorded."""
    match path.suffix:
        case ".png" | ".jpg":
            return picture(path.read_bytes())
        case ".gif":
            from PIL import Image

            with Image.open(path) as film:
                return {"frames": getattr(film, "n_frames", 1), "size": list(film.size)}
        case ".safetensors" | ".pt" | ".bin":
            return weights(path)
        case ".json":
            return dict(leaves(json.loads(path.read_text())))
        case ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            return dict(leaves({"lines": lines, "last": lines[-1]})) if lines else {}
        case ".csv":
            with path.open() as file:
                rows = list(csv.DictReader(file))
            return {"rows": len(rows)} | dict(leaves(rows[:FEW]))
        case ".svg":
            drawn = re.findall(r"-?\d+\.\d+(?:e-?\d+)?", path.read_text())
            return array(np.array(drawn, dtype=np.float64))
        case ".html":
            drawn = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", path.read_text())
            seen = np.array([list(_statistics(_pixels(base64.b64decode(one)))) for one in drawn])
            return {"pictures": len(drawn), "mean": _number(float(seen.mean())) if len(drawn) else 0}
        case _:
            return None


def _pixels(data: bytes) -> Any:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


def picture(data: bytes) -> Facts:
    return array(_pixels(data))


def weights(path: Path) -> Facts:
    """Of all tensors of a file, in the order of their names."""
    import torch
    from safetensors.torch import load_file
    from torch.utils._pytree import tree_flatten_with_path

    held = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True, map_location="cpu")
    tensors = sorted(
        (str(key), leaf) for key, leaf in tree_flatten_with_path(held)[0] if isinstance(leaf, torch.Tensor)
    )
    numbers = [leaf.double().flatten().numpy() for _, leaf in tensors]
    return {"tensors": len(tensors)} | array(np.concatenate(numbers) if numbers else np.zeros(0))


def array(values: Any) -> Facts:
    mean, deviation, projection = _statistics(values)
    return {"shape": list(values.shape), "mean": mean, "deviation": deviation, "projection": projection}


def _statistics(values: Any) -> tuple[float, float, float]:
    """Mean, standard deviation, and the RMS after each value is multiplied by a fixed number about 1, so that order
    counts."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    if not len(flat):
        return 0.0, 0.0, 0.0
    direction = np.random.default_rng(0).uniform(0.5, 1.5, len(flat))
    return _number(flat.mean()), _number(flat.std()), _number(float(np.sqrt(np.mean((direction * flat) ** 2))))


def _number(value: float) -> float:
    return float(f"{value:.7g}")


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of the numbers, truth values and short words of a JSON value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not LEFT_OUT.match(str(key)):
                yield from leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        if len(value) > FEW and all(isinstance(one, int | float) for one in value):
            yield from leaves(array(np.array(value, dtype=np.float64)), name)
        else:
            for index, inner in enumerate(value[:FEW]):
                yield from leaves(inner, f"{name}.{index}")
            yield f"{name}.length", len(value)
    elif isinstance(value, float):
        yield name, _number(value)
    elif isinstance(value, str):
        try:
            yield name, _number(float(value))
        except ValueError:
            if WORD.fullmatch(value):
                yield name, value
    else:
        yield name, value


def differences(name: str, facts: Facts, recorded: dict[str, Facts]) -> Iterator[str]:
    """A line for each recorded value of a call that is another now, or gone."""
    if name not in recorded:
        yield f"{name}: not in the record; add it with --write {name}"
    for file, values in recorded.get(name, {}).items():
        now = facts.get(file)
        if now is None:
            yield f"{name}: {file} is gone"
            continue
        for key, value in values.items():
            if key not in now:
                yield f"{name}: {file}: {key} is gone (was {value!r})"
            elif not same(now[key], value):
                yield f"{name}: {file}: {key} was {value!r}, is {now[key]!r}"


def same(one: Any, other: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    if not numbers:
        return bool(one == other)
    return one == other or math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=1e-5)


def serialise(record: dict[str, Facts]) -> str:
    """JSON with one file a line, so that a change shows as the lines of what changed."""
    calls = []
    for name, facts in record.items():
        lines = ",\n".join(f"  {json.dumps(file)}: {json.dumps(values)}" for file, values in facts.items())
        calls.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(calls) + "\n}\n"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(SOURCE))
    sys.exit(main())
