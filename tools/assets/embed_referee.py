"""Add a trained referee to the embedded ones: half-precision image tower, card, open_clip config.

    python tools/assets/embed_referee.py runs/emoji-1 emoji-robust

Claims are measured afterwards, on the file that is committed: `robustclip evaluate ... --sign`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from robustclip.data.embedded import path
from robustclip.referees.folder import load_referee_folder, save_referee
from robustclip.robustification.monitor import REFEREE


def main(run: Path, name: str, note: str | None) -> None:
    referee = load_referee_folder(run / REFEREE)
    provenance = dict(referee.card.provenance)
    if note:
        provenance["note"] = note
    card = replace(referee.card, name=name, provenance=provenance, claims=[])
    card = save_referee(referee, path("referees", name), half=True, card=card)
    print(f"{name}: {sum(f.stat().st_size for f in path('referees', name).iterdir()) / 1e6:.2f} MB, {card.weights}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--note", help="what a reader should know of the training and nothing else says")
    arguments = parser.parse_args()
    main(arguments.run, arguments.name, arguments.note)
