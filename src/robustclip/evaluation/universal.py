"""`robustclip universal`: train a universal perturbation on an ensemble of referees; and its files.

A file is safetensors with the tensor "delta" (3,H,W) and, as metadata, threat model, referees with the hashes of their
weights, data, attack and seed. Files of other tools have one tensor (3,H,W) or (1,3,H,W): safetensors, or a pickle that
torch's weights-only reader takes. X-TransferBench publishes safetensors whose tensor is "delta" for L-inf, and
"delta_param" for L2, of which the perturbation is the hyperbolic tangent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import torch
from jaxtyping import Float
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from robustclip import __version__
from robustclip.attacks.gradient import Losses, attacking
from robustclip.attacks.spec import AttackSpec, check_inside
from robustclip.attacks.threat import ThreatModel
from robustclip.attacks.universal import added, fitted, permuted, universal_perturbation
from robustclip.data.examples import read_examples
from robustclip.data.pictures import Images
from robustclip.errors import RunError, UsageError, faults_of
from robustclip.evaluation.ledger import exact
from robustclip.evaluation.named import NamedReferee, RefereeLike, control_of, load_named
from robustclip.evaluation.zeroshot import Candidates
from robustclip.referees.defended import attackers
from robustclip.referees.similarity import batches, class_embeddings, cosines, resolve_templates
from robustclip.referees.weights import read_pickle
from robustclip.runs.devices import pick_device, pick_dtype
from robustclip.runs.files import atomic_write, check_new_file, is_file, parse_json
from robustclip.runs.progress import TrainingProgress
from robustclip.runs.rng import batch_rows
from robustclip.signatures import typed

SUFFIX: Final = ".safetensors"
FORMAT: Final = "robustclip universal 1"
LARGEST_SIDE: Final = 4096  # pixels
X_TRANSFER_L2: Final = "delta_param"
QUICK: Final = {"attack": "linf:4/255@4", "batch_size": 4}


@dataclass(frozen=True)
class Stored:
    """A perturbation (3,H,W) of a file, the file's SHA-256, and what the file says of it: empty for other tools'."""

    delta: Float[Tensor, "3 h w"]
    sha256: str
    about: dict[str, Any] = field(default_factory=dict)


def read_universal(path: str | Path) -> Stored:
    """Read a file of `robustclip universal`, or of another tool (see the module).

    Raises UsageError for a missing file, a pickle that could run code, no or several tensors, another shape, numbers
    that are not finite, and metadata that are not those of this format; RunError for a damaged file.
    """
    path = Path(path)
    if not is_file(path):
        raise UsageError(f"there is no perturbation {str(path)[:200]}: robustclip universal REFEREE... --out FILE")
    about: dict[str, Any] = {}
    if path.suffix == SUFFIX:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise RunError(f"{path} is truncated or damaged: {str(error)[:200]}", "damaged") from error
        about = _about(path, metadata["universal"]) if "universal" in metadata else {}
    else:
        content = read_pickle(path)
        found = content.items() if isinstance(content, Mapping) else [("", content)]
        tensors = {str(name): value for name, value in found if isinstance(value, Tensor)}
    if len(tensors) != 1:
        raise UsageError(f"{path} holds {len(tensors)} tensors, not one perturbation (3, H, W)", "not_one_tensor")
    [(name, delta)] = tensors.items()
    delta = _checked(path, delta)
    if name == X_TRANSFER_L2:
        delta = delta.tanh()
    return Stored(delta, hashlib.sha256(path.read_bytes()).hexdigest(), about)


def _checked(path: Path, delta: Tensor) -> Float[Tensor, "3 h w"]:
    shape = tuple(delta.shape)
    shape = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
    if len(shape) != 3 or shape[0] != 3 or not all(0 < side <= LARGEST_SIDE for side in shape):
        raise UsageError(f"{path} holds {tuple(delta.shape)}, not one perturbation (3, H, W)", "wrong_shape")
    if not delta.is_floating_point() or delta.layout != torch.strided or delta.is_meta:
        raise UsageError(f"{path} holds {delta.dtype}, not floats in [-1, 1]", "wrong_type")
    delta = delta.detach().float().reshape(shape).contiguous()
    if not bool(delta.isfinite().all()):
        raise UsageError(f"{path} holds numbers that are not finite", "not_finite")
    return delta


def _about(path: Path, text: str) -> dict[str, Any]:
    """The metadata. Raises UsageError for another format, or an invalid threat model."""
    about = parse_json(text, path)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UsageError(f"{path} has metadata that are not of {FORMAT!r}: train it again", "other_format")
    ThreatModel.from_json(about.get("threat"))  # type: ignore[arg-type]  # which raises for it
    if not isinstance(about.get("referees"), dict):
        raise UsageError(f"{path} does not name the referees that it was trained on: train it again", "other_format")
    return about


def save_universal(path: str | Path, delta: Float[Tensor, "3 h w"], about: Mapping[str, Any]) -> None:
    """Write a perturbation with its metadata, atomically."""
    text = json.dumps({"format": FORMAT, **about}, ensure_ascii=False).encode(errors="backslashreplace").decode()
    with atomic_write(path) as file:
        file.write(save({"delta": delta.detach().cpu().contiguous()}, metadata={"universal": text}))


@dataclass(frozen=True)
class Applied:
    """A stored perturbation and its control at the images' size, within an attack's threat model, by their names in
    the report; `record` is what the report says of them."""

    deltas: dict[str, Float[Tensor, "3 h w"]]
    record: dict[str, Any]

    @classmethod
    def of(cls, spec: AttackSpec, images: Images, size: tuple[int, int], *, batch_size: int, seed: int) -> Applied:
        """Fit the file's perturbation to the images and measure it: its norm, and norm and RMS of what clamping leaves
        of it and of its control, image by image. Raises UsageError as `read_universal` and for a zero perturbation;
        RunError if an image left the threat model."""
        stored, threat = read_universal(spec.file), spec.threat(size)
        delta = fitted(stored.delta, threat)
        if not bool(delta.any()):
            raise UsageError(f"{spec.file} holds zeros alone, which change no image", "zero")
        deltas = {str(spec): delta, control_of(spec): permuted(delta, seed=seed)}
        norms = []
        for batch in batches(torch.arange(len(images)), batch_size):
            clean = images[batch].float()
            moved = [added(clean, one) for one in deltas.values()]
            for one in moved:
                check_inside(clean, one, threat)
            norms.append(torch.stack([torch.stack([threat.norms(one - clean), _rms(one - clean)]) for one in moved]))
        record: dict[str, Any] = {"sha256": stored.sha256, "norm": float(threat.norms(delta[None]))}
        for name, (norm, rms) in zip(("left", "control"), torch.cat(norms, 2), strict=True):
            record[name] = {"mean": float(norm.mean()), "most": float(norm.max()), "rms": float(rms.mean())}
        resized = stored.delta.shape != delta.shape
        record |= {"resized_from": list(stored.delta.shape[1:]) if resized else None, "about": stored.about or None}
        return cls(deltas, record)

    def __str__(self) -> str:
        left, control, was, about = (self.record[name] for name in ("left", "control", "resized_from", "about"))
        trained = f"trained on {', '.join(about['referees'])}" if about else "of unknown training"
        resized = "" if was is None else f", resized from {was[0]}x{was[1]}"
        return (
            f"stored perturbation {self.record['sha256'][:8]}, {trained}{resized}: norm {self.record['norm']:.4g}; "
            f"after clamping {left['mean']:.4g} on average, {left['most']:.4g} at most; "
            f"RMS {left['rms'] * 255:.2f}/255, of the control {control['rms'] * 255:.2f}/255"
        )


def _rms(change: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    return change.square().mean((1, 2, 3)).sqrt()


@typed
def universal(
    referees: Annotated[Sequence[RefereeLike], "names, tags or folders: the ensemble"],
    *,
    out: Annotated[Path, "the .safetensors file to write"],
    attack: Annotated[str, "norm:eps@steps[:step_size]; a batch each step"] = "linf:4/255@200",
    data: Annotated[str | Path, "labelled images, as of evaluate; not those of a later measurement"] = (
        "emoji/guide-styles"
    ),
    templates: Annotated[str, "plain, emoji, photo, openai-simple, or a text file"] = "plain",
    limit: Annotated[int | None, "number of images, sampled by the seed", Field(gt=0)] = None,
    size: Annotated[int | None, "resize images of a folder to this height and width", Field(gt=0, le=LARGEST_SIDE)] = (
        None
    ),
    batch_size: Annotated[int, Field(gt=0, le=2**16)] = 32,
    quick: bool = False,  # noqa: ARG001  (see QUICK)
    overwrite: bool = False,  # noqa: ARG001  (see `faults`)
    device: str = "auto",
    dtype: str = "float32",
    seed: int = 0,
) -> dict[str, Any]:
    """Train one perturbation that makes an ensemble of referees misclassify all images, and write it to a file.

        robustclip universal emoji-robust emoji-vanilla-long --attack l2:1.5@200 --out delta.safetensors
        robustclip evaluate emoji-judge --attack l2:1.5@universal:delta.safetensors

    Projected gradient steps from zero (`attacks.universal`) raise the mean over the referees of the zero-shot
    cross-entropy among all labels of the data; an epoch takes every image once, in an order drawn by the seed.

    Returns out, referees, threat, images, steps, norm, and the mean loss of the first and the last ten batches. Raises
    UsageError for data without labels, and for all faults of the call.
    """
    spec, where = read_attack(attack), pick_device(device)
    measured = load_named(referees, device=where)
    examples = read_examples(data, size=size, limit=limit, seed=seed)
    if not examples.label_names:
        raise UsageError(f"a universal perturbation is trained on labels, and {examples.name} has none", "no_labels")
    threat = spec.threat(examples.size)
    among = Candidates.among(examples.label_names, examples.labels)
    losses = [_loss(one, among, resolve_templates(templates), pick_dtype(dtype, where)) for one in measured]
    seen: list[float] = []
    with TrainingProgress(total=spec.steps, title="universal perturbation") as progress:

        def watch(loss: float) -> None:
            seen.append(loss)
            progress.advance(images=batch_size, loss=loss)

        def drawn() -> Iterator[tuple[Tensor, Sequence[Losses]]]:
            for step in range(spec.steps):
                batch = batch_rows(len(examples), batch_size, step, seed, "universal perturbation")
                images, targets = examples.images[batch].to(where), among.targets[batch].to(where)
                yield images, [partial(loss, targets=targets) for loss in losses]

        delta = universal_perturbation(drawn(), threat, step_size=spec.step_size, watch=watch)
    about = {
        "threat": threat.to_json(),
        "attack": str(spec),
        "referees": {one.name: exact(one.referee) for one in measured},
        "data": examples.name,
        "images": len(examples),
        "labels": len(among.names),
        "templates": templates,
        "batch_size": batch_size,
        "seed": seed,
        "versions": {"robustclip": __version__, "torch": torch.__version__},
    }
    save_universal(out, delta, about)
    return {
        "out": str(out),
        "referees": ", ".join(one.name for one in measured),
        "threat": str(threat),
        "images": len(examples),
        "steps": spec.steps,
        "norm": float(threat.norms(delta[None])),
        "first_loss": sum(seen[:10]) / len(seen[:10]),
        "last_loss": sum(seen[-10:]) / len(seen[-10:]),
        "attack": f"{spec.ball}@universal:{out}",
    }


def _loss(
    one: NamedReferee, among: Candidates, templates: Sequence[str], dtype: torch.dtype
) -> Callable[..., Float[Tensor, " b"]]:
    """(images, targets) -> (B,) cross-entropies of a referee; of a defended one through its defence."""
    classes = class_embeddings(one.referee, among.names, templates)

    def loss(images: Tensor, targets: Tensor) -> Tensor:
        source = attackers(one.referee)[""]  # whose noise begins anew with each batch
        with attacking(source):
            logits = one.referee.logit_scale * cosines(source, images, classes, dtype)
        return F.cross_entropy(logits, targets, reduction="none")

    return loss


def read_attack(text: str) -> AttackSpec:
    """Norm, eps, steps and step size, which by default is eps / 10 (ours: with PGD's 2.5 * eps / steps, the loss on
    training drawings ended lower). Raises UsageError for an attack other than PGD, and for restarts."""
    spec = AttackSpec.parse(text)
    spec.check_pgd("training a universal perturbation", restarts=False)
    return replace(spec, step=spec.step or spec.eps / 10)


def faults(attack: str, templates: str, out: Path, overwrite: bool) -> Iterator[str | UsageError]:
    """Faults of a call that can be found before loading anything."""
    if Path(out).suffix != SUFFIX:
        yield f"--out {out}: a perturbation is a {SUFFIX} file"
    yield from faults_of([partial(read_attack, attack), partial(resolve_templates, templates)])
    yield from faults_of([partial(check_new_file, out, overwrite=overwrite)])
