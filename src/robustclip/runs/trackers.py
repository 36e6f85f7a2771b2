"""Experiment trackers (Weights & Biases, trackio, MLflow, ...) beside a run's own files, through accelerate.

    ROBUSTCLIP_TRACKERS=wandb,trackio robustclip robustify clipag-vit-b32 ...

Off without the variable. A tracker is configured by its own variables (WANDB_PROJECT, MLFLOW_TRACKING_URI).
TensorBoard's curves are always written, by robustclip.runs.records.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from robustclip.errors import RunError, UsageError

if TYPE_CHECKING:
    import numpy as np

VARIABLE: Final = "ROBUSTCLIP_TRACKERS"
PROJECT: Final = "robustclip"

_log = logging.getLogger("robustclip")


def requested() -> list[str]:
    """Names of the trackers to open. Raises UsageError for an unknown one and for one whose package is missing."""
    names = list(dict.fromkeys(name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()))
    if not names:
        return []
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    known = [name for name in map(str, LOGGER_TYPE_TO_CLASS) if name != str(LoggerType.TENSORBOARD)]
    built_in = [str(one) for one in LoggerType]
    installed = [str(one) for one in get_available_trackers()]
    for name in names:
        if name not in known:
            raise UsageError(
                f"{VARIABLE}={name}: there are {', '.join(known)}; TensorBoard's curves are always written"
            )
        if name in built_in and name not in installed:
            raise UsageError(f"{VARIABLE}={name}: the tracker's package is not installed: pip install {name}")
    return names


class Trackers:
    """The trackers of a run. A tracker that fails to start raises RunError; one that fails later is dropped with a
    warning, and training continues."""

    def __init__(self, names: list[str], folder: Path, arguments: Mapping[str, Any]) -> None:
        self._opened: list[Any] = []
        if not names:
            return
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # trackers ask it for the main process
        for name in names:
            kind = LOGGER_TYPE_TO_CLASS[name]
            try:
                tracker = kind(PROJECT, **({"logging_dir": str(folder)} if kind.requires_logging_directory else {}))
                tracker.start()
                tracker.store_init_configuration({"run": str(folder), **arguments})
            except Exception as error:
                self.finish()
                raise RunError(f"the tracker {name} does not start ({error}): leave it out of {VARIABLE}") from error
            self._opened.append(tracker)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add numbers to each tracker's curves."""
        self._each(lambda one: one.log(dict(numbers), step=step))

    def log_image(self, step: int, name: str, image: np.ndarray[Any, Any]) -> None:
        """Add a picture (H,W,3), uint8, to each tracker that takes pictures."""
        self._each(lambda one: one.log_images({name: image[None]}, step=step) if hasattr(one, "log_images") else None)

    def finish(self) -> None:
        self._each(lambda one: one.finish())

    def _each(self, call: Callable[[Any], None]) -> None:
        for one in [*self._opened]:
            try:
                call(one)
            except Exception as error:  # a service that is gone must not end days of training
                _log.warning(f"the tracker {one.name} failed ({error}) and gets nothing more")
                self._opened.remove(one)
