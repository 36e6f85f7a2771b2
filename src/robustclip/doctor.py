"""`robustclip doctor`: versions, devices, memory, missing packages and the commands that install them."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import psutil
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Group
from rich.table import Table
from rich.text import Text

import robustclip
from robustclip import recipes
from robustclip.signatures import typed

IMPORTED_AS: Final = {
    "grad-cam": "pytorch-grad-cam",
    "open-clip-torch": "open-clip",
    "pillow": "pil",
    "scikit-learn": "sklearn",
}
"""Packages whose module has another name, both in canonical form."""

NOT_INSTALLED: Final = "robustclip is not installed, so its requirements are unknown: pip install -e ."

GB: Final = 1e9


@typed
def doctor(*, device: str = "auto") -> dict[str, Any]:
    """Show versions, devices, memory, missing packages and the commands that install them.

    `--device` runs a small matrix product on that device, and fails if there is no such device.
    """
    import torch  # here, so that --help and `remedy` load no torch

    from robustclip.runs.devices import no_cuda

    packages = requirements()
    return {
        "robustclip": robustclip.__version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": packages,
        "missing": [name for name, package in packages.items() if package["remedy"]],
        "devices": devices(),
        "no_cuda": None if torch.cuda.device_count() else no_cuda(),
        "chosen": _tried(device),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / GB, 1),
        "memory_free_gb": round(psutil.virtual_memory().available / GB, 1),
        "disk_free_gb": round(shutil.disk_usage(Path.cwd()).free / GB, 1),
        "recipes": [recipe.name for recipe in recipes.available("robustify")],
        "referees": [entry.name for entry in robustclip.list_referees()],
    }


def requirements() -> dict[str, dict[str, Any]]:
    """This package's requirements: {name: {wanted, installed, extra, remedy}}; `remedy` is None if satisfied."""
    packages = {}
    for wanted, extra in _declared():
        if extra in ("dev", "docs"):
            continue
        try:
            installed = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            installed = None
        fits = installed is not None and wanted.specifier.contains(installed, prereleases=True)
        packages[wanted.name] = {
            "wanted": str(wanted.specifier),
            "installed": installed,
            "extra": extra,
            "remedy": None if fits else _install(wanted.name, extra),
        }
    return packages


def remedy(module: str) -> str:
    """The command that installs a module which could not be imported."""
    name = canonicalize_name(module.partition(".")[0])
    providers = [
        (wanted.name, extra)
        for wanted, extra in _declared()
        if name in (canonicalize_name(wanted.name), IMPORTED_AS.get(canonicalize_name(wanted.name)))
    ]
    # diffusers is in two extras: prefer `synthesis` to `align`, which also installs peft
    return _install(*max(providers, key=lambda one: one[1] or "")) if providers else f"pip install {name}"


def report(facts: dict[str, Any]) -> Group:
    """The facts of `doctor` for a terminal."""
    table = Table("package", "installed", "wanted", "for", box=None, pad_edge=False, header_style="dim")
    for name, package in facts["packages"].items():
        style = "" if package["remedy"] is None else "red" if package["extra"] is None else "yellow"
        purpose = package["extra"] or "everything"
        table.add_row(name, package["installed"] or "missing", package["wanted"], purpose, style=style)
    lines = [
        f"robustclip {facts['robustclip']}, Python {facts['python']} ({facts['executable']}), {facts['platform']}",
        f"{facts['memory_free_gb']} of {facts['memory_gb']} GB memory free, {facts['disk_free_gb']} GB disk free, "
        f"{facts['threads']} threads",
        *(f"{name}: {kind}" for name, kind in facts["devices"].items()),
        *([f"no CUDA device: {facts['no_cuda']}"] if facts["no_cuda"] else []),
        f"--device auto means {facts['chosen']}",
        f"recipes: {', '.join(facts['recipes']) or 'none'}",
        f"referees: {', '.join(facts['referees']) or 'none'}",
    ]
    needs = {package["remedy"]: None for package in facts["packages"].values() if package["remedy"]}
    all_is_well = "Nothing is missing." if facts["packages"] else NOT_INSTALLED
    ending = [f"To get what is missing: {command}" for command in needs] or [all_is_well]
    return Group(*map(Text, lines), Text(), table, Text(), *map(Text, ending))


def _declared() -> list[tuple[Requirement, str | None]]:
    """The installed package's requirements, each with its extra (None: the core)."""
    try:
        described = metadata.metadata("robustclip")
    except metadata.PackageNotFoundError:  # run from its source, without an installation
        return []
    extras = described.get_all("Provides-Extra") or []
    declared: list[tuple[Requirement, str | None]] = []
    for text in described.get_all("Requires-Dist") or []:
        wanted = Requirement(text)
        marker = wanted.marker
        if marker is None or marker.evaluate({"extra": ""}):
            declared.append((wanted, None))
        else:
            declared += [(wanted, extra) for extra in extras if marker.evaluate({"extra": extra})][:1]
    return declared


def _install(name: str, extra: str | None) -> str:
    return f"pip install {name}" if extra is None else f"pip install 'robustclip[{extra}]'"


def devices() -> dict[str, str]:
    """Each device torch can compute on, and what it is."""
    import torch

    devices = {"cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"}
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{card.name}, {card.total_memory / GB:.1f} GB"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return devices


def _tried(name: str) -> str:
    import torch

    from robustclip.runs.devices import pick_device

    device = pick_device(name)
    torch.ones(2, 2, device=device).matmul(torch.ones(2, 2, device=device)).sum().item()
    return str(device)
