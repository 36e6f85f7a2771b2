"""Run notebooks and store them with their outputs: python tools/run_notebooks.py [NAME ...]

Each runs in a temporary folder, without a network, in an IPython shell of its own process. What its cells print and
show is stored: texts, tables and pictures, at most 300 kB a notebook.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image

NOTEBOOKS: Final = Path(__file__).parents[1] / "notebooks"
LARGEST: Final = 300_000  # bytes of a stored notebook
SHOWN: Final = ("text/html", "image/png", "text/plain")


def run(path: Path) -> None:
    """Execute in this process, in the working folder, and write the notebook back."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    notebook = json.loads(path.read_text())
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        count += 1
        with capture_output() as captured:
            done = shell.run_cell("".join(cell["source"]), store_history=False, silent=False)
        done.raise_error()
        outputs: list[dict[str, Any]] = []
        printed = captured.stdout.partition("Out[0]:")[0]  # what follows is the value, which is kept beside it
        if printed:
            outputs.append({"name": "stdout", "output_type": "stream", "text": lines(printed)})
        if done.result is not None:
            outputs.append(
                {
                    "data": shown(shell, done.result),
                    "execution_count": count,
                    "metadata": {},
                    "output_type": "execute_result",
                }
            )
        cell |= {"execution_count": count, "outputs": outputs}
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    if len(text.encode()) > LARGEST:
        raise SystemExit(f"{path.name} would be {len(text.encode())} bytes, more than {LARGEST}")
    path.write_text(text)


def shown(shell: Any, value: object) -> dict[str, Any]:
    if isinstance(value, Image.Image):  # as PNG, gradients and paintings are too large to store
        file = BytesIO()
        value.convert("RGB").save(file, "JPEG", quality=80)
        return {"image/jpeg": base64.b64encode(file.getvalue()).decode(), "text/plain": [f"<picture {value.size}>"]}
    data, _ = shell.display_formatter.format(value, include=SHOWN)
    return {
        kind: base64.b64encode(found).decode() + "\n" if isinstance(found, bytes) else lines(found)
        for kind, found in data.items()
    }


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        run(Path(sys.argv[2]))
    else:
        offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
        for name in sys.argv[1:] or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")):
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, str(Path(__file__).resolve()), "--here", str(NOTEBOOKS / f"{name}.ipynb")]
                subprocess.run(command, cwd=folder, env=offline, check=True)
