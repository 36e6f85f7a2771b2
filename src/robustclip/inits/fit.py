"""`robustclip mixture fit DATA --out FILE`: fit a Gaussian mixture on pictures, as an init."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from robustclip.errors import RunError, UsageError
from robustclip.inits.gaussians import check_installed, fit_classes, fit_components
from robustclip.inits.mixture import RIDGE
from robustclip.inits.mixture_file import LARGEST_SIDE, SUFFIX, Precision, save_mixture
from robustclip.inits.pictures import read_small
from robustclip.runs.files import check_new_file
from robustclip.signatures import raise_faults, typed


@typed
def fit(
    data: Annotated[str, "emoji/SPLIT, a folder of images or of class sub-folders, or webdataset shards"],
    *,
    out: Annotated[str | os.PathLike[str], "the .safetensors file to write"],
    size: Annotated[int, "height and width of the Gaussians, in pixels"] = 16,
    components: Annotated[
        Literal["classes"] | int, "a Gaussian a class, or so many groups of similar pictures (k-means)"
    ] = "classes",
    limit: Annotated[int | None, "take no more pictures than this"] = None,
    seed: int = 0,
    ridge: Annotated[float, "added to every variance, pixels in [-1, 1]"] = RIDGE,
    directions: Annotated[int | None, "keep so many principal components (a smaller file), else all"] = None,
    precision: Annotated[Precision, "32, 16 or 8 bits a number"] = "half",
    notes: Annotated[str, "goes into the file, e.g. the licence of the pictures"] = "",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Fit Gaussians on pictures made small, and write them to a file that synthesis can start from.

    Pictures are resized so that their middle square fills size x size; transparent parts are laid on white, broken
    pictures counted and left out. One Gaussian a class, as CLIPAG has it (App. A.3), or a group of similar pictures.

    Returns images, skipped (a count a fault), gaussians, size, directions, bytes and out. Raises UsageError for all
    that the call shows to be wrong, before anything is read; RunError where no picture could be read.
    """
    _check(out, size, components, ridge, directions, overwrite=overwrite)
    small = read_small(data, size, limit=limit, seed=seed)
    if not len(small.images):
        raise RunError(
            f"none of the {small.skipped.total()} pictures of {data} could be read: {_faults(small.skipped)}"
        )
    if components == "classes":
        if not small.class_names or int(small.labels.min()) < 0:
            raise UsageError(
                f"{data} has no classes, or pictures without one: give a number of components, e.g. --components 20"
            )
        mixture = fit_classes(small.images, small.labels, small.class_names, ridge=ridge, directions=directions)
    else:
        mixture = fit_components(small.images, components, ridge=ridge, directions=directions, seed=seed)
    about = {"data": os.fspath(data), "images": str(len(small.images)), "components": str(components)}
    save_mixture(mixture, out, precision=precision, notes=about | ({"notes": notes} if notes else {}))
    return {
        "images": len(small.images),
        "skipped": dict(small.skipped),
        "gaussians": len(mixture),
        "size": size,
        "directions": mixture.means.shape[1],
        "bytes": Path(out).stat().st_size,
        "out": str(out),
    }


def _check(
    out: str | os.PathLike[str],
    size: int,
    components: str | int,
    ridge: float,
    directions: int | None,
    *,
    overwrite: bool,
) -> None:
    faults = []
    if Path(out).suffix != SUFFIX:
        faults.append(f"--out {out}: a mixture is a {SUFFIX} file")
    if not 1 <= size <= LARGEST_SIDE:
        faults.append(f"--size {size}: give pixels from 1 to {LARGEST_SIDE}, e.g. 16")
    if components != "classes" and not (type(components) is int and components >= 1):
        faults.append(f"--components {components}: use classes, or a number from 1")
    if not 0 < ridge <= 1:
        faults.append(f"--ridge {ridge}: give a variance from 0 to 1 in [-1, 1] pixels, e.g. 1e-4")
    if directions is not None and directions < 1:
        faults.append(f"--directions {directions}: give a number from 1, or leave it out to keep all")
    raise_faults("mixture fit", faults)
    if components != "classes":
        check_installed()
    check_new_file(out, overwrite=overwrite)


def _faults(skipped: dict[str, int]) -> str:
    return ", ".join(f"{count} x {fault}" for fault, count in skipped.items()) or "there are none"
