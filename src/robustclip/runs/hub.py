"""Read from the Hugging Face hub; a hub out of reach is an error at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from huggingface_hub import constants, get_session, snapshot_download

from robustclip.errors import Coded, RunError

TIMEOUT: Final = 5.0  # seconds for the hub's first answer


@contextmanager
def reading_hub(what: str, otherwise: str, *, ask: bool = True) -> Iterator[None]:
    """Read `what` from the hub's cache or the hub within the block; RunError `unreachable` where neither has it, whose
    message ends with `otherwise`, the way out besides copying the cache.

    The endpoint (HF_ENDPOINT, through the environment's proxies) is asked once. Where it does not answer, the block
    runs as with HF_HUB_OFFLINE=1: huggingface_hub would ask for each file six times, in half a minute. `ask` False: not
    asked, for what should be local.
    """
    before = constants.HF_HUB_OFFLINE
    unreachable_because = _no_answer() if ask and not before else None
    offline = before or unreachable_because is not None
    logged = logging.root.manager.disable
    constants.HF_HUB_OFFLINE = offline
    logging.disable(logging.CRITICAL if offline else logged)  # open_clip logs what it raises
    try:
        yield
    except Coded:
        raise
    except Exception as error:
        # No network, no such repository, not in the cache; or the client's own error, of a connection that breaks off.
        if not isinstance(error, OSError | RuntimeError | ValueError) and _library(error) != _library(get_session()):
            raise
        reason = unreachable_because or (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(
            f"could not fetch {what} ({reason}). Ways out: run once where there is a network, and copy the Hugging "
            f"Face cache (HF_HOME) over; or {otherwise}",
            "unreachable",
            what=what,
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before
        logging.disable(logged)


def data_set_folder(repository: str, files: Sequence[str], otherwise: str) -> Path:
    """The folder in the hub's cache of a data set repository's `files` (patterns), of which those missing are fetched;
    errors as `reading_hub`. Offline it holds what was fetched before, maybe not all."""
    with reading_hub(f"the data set {repository}", otherwise):
        return Path(snapshot_download(repository, repo_type="dataset", allow_patterns=list(files)))


def _library(thing: object) -> str:
    return type(thing).__module__.partition(".")[0]


def _no_answer() -> str | None:
    """Why the endpoint gives no answer; None if it gives one, of any status."""
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception as error:  # the class of network errors depends on the client's version
        return f"{constants.ENDPOINT} cannot be reached: {str(error).strip() or type(error).__name__}"
    return None
