"""`robustclip selftest`: every check on every device and dtype, against float64 on the CPU."""

from __future__ import annotations

import math
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from typing import Any, Final, Literal

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.utils import collect_env

import robustclip
from robustclip.doctor import devices
from robustclip.errors import Coded, UsageError, require
from robustclip.runs.devices import free_memory, is_out_of_memory, largest_resident, no_cuda, pick_device
from robustclip.runs.progress import watched
from robustclip.runs.terminal import counted
from robustclip.selftest.checks import CHECKS, Check
from robustclip.selftest.settings import TRUTH, Setting, accelerators, dtypes_of, settings_of
from robustclip.signatures import typed

Result = Literal["within", "exceeded", "overflow", "not finite", "out of memory", "failed", "skipped"]
Fault = tuple[Result, str]
GOOD: Final = ("within", "skipped")
LONGEST: Final = 300  # characters of an exception's message
MB: Final = 1e6


@dataclass(frozen=True)
class Row:
    """One check in one setting.

    result      "within" its bound, "exceeded", "overflow" (not finite in float16) and so on, see `Result`
    reason      why, of all but the first
    difference  from the truth, relative to its norm, as is the bound
    seconds     of the only run, kernels' loading and compilation included
    memory      the peak in bytes that was allocated on a CUDA device, unknown elsewhere (see `Selftest.resident`)
    """

    check: str
    device: str
    setting: str
    bound: float
    result: Result
    reason: str = ""
    difference: float | None = None
    seconds: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Selftest:
    """What was found on this machine, and the rows; `resident` is the process's largest resident memory in bytes."""

    versions: dict[str, str | None]
    found: dict[str, dict[str, Any]]
    notes: list[str]
    rows: list[Row]
    resident: int | None = None

    @property
    def faults(self) -> list[Row]:
        """Rows that are neither within their bound nor skipped."""
        return [row for row in self.rows if row.result not in GOOD]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "faults": len(self.faults)}

    def table(self) -> Group:
        """What was found, a table a device of differences and their bounds, and what is wrong."""
        lines = [" ".join(f"{name} {version}" for name, version in self.versions.items() if version)]
        for name, facts in self.found.items():
            free = "" if facts["free_gb"] is None else f", {facts['free_gb']:.1f} GB free"
            lines.append(f"{name}: {facts['is']}{free}; {', '.join(facts['dtypes'])}")
        parts: list[Text | Table] = [*map(Text, [*lines, *self.notes])]
        for name in dict.fromkeys(row.device for row in self.rows):
            parts += [Text(), _table(name, [row for row in self.rows if row.device == name])]
        run = [row for row in self.rows if row.result != "skipped"]
        within = sum(row.result == "within" for row in run)
        seconds = sum(row.seconds or 0 for row in self.rows)
        took = f"{seconds:.0f} s" + (f", {self.resident / MB:,.0f} MB resident at most" if self.resident else "")
        parts += [Text(), Text(f"{within} of {counted(len(run), 'check')} within their bounds; {took}")]
        reasons = dict.fromkeys(row.reason for row in self.rows if row.result == "skipped")
        parts += [Text(f"skipped: {reason}") for reason in reasons]
        parts += [
            Text(f"{row.device}, {row.setting}, {row.check}: {row.result}: {row.reason}", style="red")
            for row in self.faults
        ]
        return Group(*parts)


@typed
def selftest(*, device: str = "auto") -> Selftest:
    """Check this machine's devices and dtypes against float64 on the CPU.

    Small models with drawn weights take a PGD step, an update, an attack of every family, a synthesis step of every
    canvas, GradCAM, smoothing, SDS and a gradient through a reversible sampler; docs/gpu.md explains the rows. `auto`
    checks the CPU and every accelerator, a device's name the CPU and that device.

    The exit code is 1 where a difference exceeds its bound or a check fails. `--json FILE` writes what a bug report
    needs.
    """
    places = accelerators() if device == "auto" else [pick_device(device)]
    places = [torch.device("cpu"), *(place for place in places if place.type != "cpu")]
    notes = [f"no accelerator: {no_cuda()}"] if len(places) == 1 and not accelerators() else []
    rows = run_checks([one for at in places for one in settings_of(at)])
    return Selftest(versions(), found_on(places), notes, rows, largest_resident())


LIBRARIES: Final = ("timm", "open_clip_torch", "diffusers", "torchattacks")


def versions() -> dict[str, str | None]:
    """Of the package, of what it computes with, and of the driver; None of what is not here."""
    cudnn = torch.backends.cudnn.version() if torch.version.cuda else None
    return {
        "robustclip": robustclip.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        **{name: installed(name) for name in LIBRARIES},
        "CUDA": torch.version.cuda,
        "cuDNN": None if cudnn is None else str(cudnn),
        "driver": collect_env.get_nvidia_driver_version(collect_env.run) if shutil.which("nvidia-smi") else None,
    }


def installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def found_on(places: Sequence[torch.device]) -> dict[str, dict[str, Any]]:
    """What each device is, its compute capability, free memory and the dtypes that it computes in."""
    kinds = devices()
    facts = {}
    for place in places:
        free = free_memory(place)
        name = f"cuda:{place.index or 0}" if place.type == "cuda" else str(place)
        facts[name] = {"is": kinds[name], "free_gb": None if free is None else free / 1e9, "dtypes": dtypes_of(place)}
        if place.type == "cuda":
            facts[name]["capability"] = ".".join(map(str, torch.cuda.get_device_capability(place)))
    return facts


def run_checks(settings: Sequence[Setting], checks: Sequence[Check] = CHECKS) -> list[Row]:
    """Every check in every setting. What goes wrong is a row's result, never an exception."""
    with one_thread():
        return list(_rows(settings, checks))


@contextmanager
def one_thread() -> Iterator[None]:
    """Context manager: one thread of the CPU, for on models this small several mostly wait for each other."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


def _rows(settings: Sequence[Setting], checks: Sequence[Check]) -> Iterator[Row]:
    pairs = [(check, one) for check in checks for one in settings if check.runs_in(one)]
    truths: dict[str, Tensor | Fault] = {}
    for check, setting in watched(pairs, f"selftest: {counted(len(pairs), 'check')}", "selftest"):
        if check.name not in truths:
            truths[check.name] = attempted(check, TRUTH)
        yield compared(check, setting, truths[check.name])


def compared(check: Check, setting: Setting, truth: Tensor | Fault) -> Row:
    """One row. Without a truth the check is not run, and the row has the truth's fault."""
    row = partial(Row, check.name, str(setting.device), setting.name, check.bound(setting.roundoff))
    if not isinstance(truth, Tensor):
        return row(*truth)
    on_cuda = setting.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(setting.device)
    began = time.perf_counter()
    found = attempted(check, setting)
    seconds = time.perf_counter() - began
    memory = torch.cuda.max_memory_allocated(setting.device) if on_cuda else None
    if not isinstance(found, Tensor):
        return row(*found, seconds=seconds, memory=memory)
    bound = check.bound(setting.roundoff)
    difference = float((found - truth).norm() / truth.norm())
    if not math.isfinite(difference):
        count = int((~found.isfinite()).sum())
        result: Result = "overflow" if setting.dtype == torch.float16 else "not finite"
        return row(result, f"{count:,} of {counted(found.numel(), 'number')} are not finite", None, seconds, memory)
    if difference > bound:
        message = f"off by {difference:.1e} of the truth's norm, and the bound is {bound:.1e}"
        return row("exceeded", message, difference, seconds, memory)
    return row("within", "", difference, seconds, memory)


def attempted(check: Check, setting: Setting) -> Tensor | Fault:
    """The numbers of a check, (n,) float64 on the CPU, or why there are none."""
    try:
        if check.needs is not None:
            require(*check.needs, check.name)
    except UsageError as error:
        return "skipped", str(error)
    try:
        with setting.precision():
            return check.run(setting).detach().cpu().double().flatten()  # MPS has no float64
    except Exception as error:  # of whatever kind: it is what the row tells
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
        return fault_of(error, setting)


def fault_of(error: Exception, setting: Setting) -> Fault:
    """What kind of failure an exception is, and its message in a line."""
    message = f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST]}"
    if is_out_of_memory(error):
        return "out of memory", message
    if isinstance(error, Coded) and error.code == "not_finite":
        return "overflow" if setting.dtype == torch.float16 else "not finite", str(error)
    return "failed", message


def _table(device: str, rows: Sequence[Row]) -> Table:
    """A line a check and a column a setting; below them the seconds and the peak memory of each column."""
    settings = list(dict.fromkeys(row.setting for row in rows))
    columns = (f"{device}: difference / bound", *settings, "seconds")
    table = Table(*columns, box=None, pad_edge=False, header_style="dim")
    of = {(row.check, row.setting): row for row in rows}
    for check in dict.fromkeys(row.check for row in rows):
        cells = (_cell(of.get((check, one))) for one in settings)
        table.add_row(check, *cells, seconds_of(row for row in rows if row.check == check))
    by_setting = [[row for row in rows if row.setting == one] for one in settings]
    table.add_row("seconds", *map(seconds_of, by_setting), seconds_of(rows))
    peaks = [max((row.memory or 0 for row in column), default=0) for column in by_setting]
    if any(peaks):
        table.add_row("peak memory", *(f"{peak / MB:.0f} MB" for peak in peaks))
    return table


def seconds_of(rows: Iterable[Row]) -> str:
    return f"{sum(row.seconds or 0 for row in rows):.1f}"


def _cell(row: Row | None) -> Text:
    if row is None or row.result == "skipped":
        return Text("-", style="dim")
    if row.difference is None:
        return Text(row.result, style="red")
    return Text(f"{row.difference:.1e} / {row.bound:.1e}", style="" if row.result == "within" else "red")
