"""From a run's folder to a referee's folder that plain open_clip loads too."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from robustclip.errors import UsageError
from robustclip.referees import registry
from robustclip.referees.base import TwoTower
from robustclip.referees.card import CARD_FILE, Card
from robustclip.referees.folder import load_referee_folder, save_full, save_referee
from robustclip.robustification.finish import REFEREE
from robustclip.runs import RECORD, Run


def export(
    run: Annotated[Path | TwoTower, "a run's folder, or a referee's folder or name"],
    *,
    name: Annotated[str, "what the referee will be called"],
    to: Annotated[Path | None, "the folder to write; else one in the registry"] = None,
    half: Annotated[bool, "round weights to float16"] = False,
    register: Annotated[bool, "let load_referee find it by name, not by its folder only"] = True,
) -> Path:
    """Write what a run trained as a referee's folder, register it under `name`, and return the folder.

        robustclip.load_referee(NAME)                                    # or the folder
        open_clip.create_model_and_transforms("local-dir:FOLDER")        # plain open_clip, offline
        open_clip.get_tokenizer("local-dir:FOLDER")

    The folder holds both towers, open_clip's config, tokenizer files where the tokenizer is not open_clip's own, and
    the card. Embeddings after load_referee are bit-equal in float32 to those before.

    A text tower of transformers (the sentence encoder) is one that open_clip finds by hub id or path only: the config
    in the folder names the folder's own absolute path, where config.json describes the encoder, and its weights come
    from the folder's safetensors. So plain open_clip needs no network, and the folder must not be moved; export it
    again (`export(FOLDER, name=..., to=...)`) to put it elsewhere. load_referee does not mind a move.

    A CLIPModel of transformers is written as transformers loads it, not open_clip.

    Raises UsageError for a name that is unsafe or taken, a folder that exists, and a run that has no referee yet.
    """
    if to is None and not register:
        raise UsageError("an export that is not registered needs a folder: give --to DIR, or leave out --no-register")
    registry.check_name(name) if register else registry.check_safe(name)
    target = registry.home() / name if to is None else Path(to)
    if target.exists():
        raise UsageError(f"{target} exists: give another folder with --to, or remove it (rm -r {target})")
    referee = _given(run)
    card = _card(referee.card, name, half=half)

    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        if card.family == "open_clip":
            save_full(referee, partial, half=half, card=card, final=target)
        else:
            save_referee(referee, partial, half=half, card=card)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if to is not None and register:
        registry.add(target, name=name)
    return target


def _given(run: Path | TwoTower) -> TwoTower:
    """The referee to export. Raises UsageError where there is none."""
    if isinstance(run, TwoTower):
        return run
    named = registry.find(str(run))
    folder = named.existing_folder() if named else Path(run)
    if (folder / CARD_FILE).is_file():
        return load_referee_folder(folder)
    if not folder.is_dir():
        raise UsageError(f"there is no run {folder}: give the folder that robustclip robustify wrote")
    if not (folder / REFEREE / CARD_FILE).is_file():
        status = f" (the run is {Run.open(folder).status})" if (folder / RECORD).is_file() else ""
        raise UsageError(
            f"{folder} holds no trained referee{status}: it is written at {folder / REFEREE} when a run ends; "
            "let the run finish or resume it"
        )
    return load_referee_folder(folder / REFEREE)


def _card(card: Card, name: str, *, half: bool) -> Card:
    """The card under its new name; claims of float32 weights do not pass to rounded ones."""
    provenance = {**card.provenance, "exported": datetime.now(UTC).date().isoformat()}
    return replace(card, name=name, provenance=provenance, claims=[] if half else list(card.claims))
