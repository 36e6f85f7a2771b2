"""Write the explanation report of the embedded control and robust referee, and docs/explaining.webp.

    python tools/publish_explanation.py   # about two minutes; needs Chromium (Debian: chromium)

The report stays in runs/explanation-docs; the picture is its first screen at desktop width, as a browser shows it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from PIL import Image

from robustclip.pages.explain import REPORT, explain
from robustclip.runs.files import atomic_write

PICTURE: Final = Path(__file__).parents[1] / "docs" / "explaining.webp"
OUT: Final = Path("runs/explanation-docs")
WIDTH, HEIGHT = 1280, 1750


def main() -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("no Chromium is installed: apt-get install chromium")
    if not (OUT / REPORT).is_file():
        referees = ["emoji-vanilla-long", "emoji-robust"]
        explain(referees=referees, images=["emoji/scenes", "emoji/unseen-styles"], limit=12, out=OUT)
    with TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        flags = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
        page = (OUT / REPORT).resolve().as_uri()
        command = [browser, *flags, f"--user-data-dir={folder}/profile", f"--screenshot={shot}", page]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with atomic_write(PICTURE) as file:
            Image.open(shot).convert("RGB").save(file, "WEBP", quality=82, method=6)


if __name__ == "__main__":
    main()
