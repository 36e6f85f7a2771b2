"""Write src/robustclip_emoji/SHA256SUMS (checked by `sha256sum -c`).

python tools/assets/write_manifest.py
"""

from __future__ import annotations

from pathlib import Path

from robustclip.runs.files import sha256, write_text

ROOT = Path(__file__).parents[2] / "src" / "robustclip_emoji"
UNLISTED = {"SHA256SUMS", "__init__.py", "pyproject.toml", "README.md", "NOTICE"}
"""Files that hold no data, by their path from ROOT."""


def manifest(root: Path) -> str:
    """One line a data file, `<sha256>  <path>`, sorted by path."""
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    listed = {name for name in found if name not in UNLISTED and "__pycache__" not in name}
    return "".join(f"{sha256(found[name])}  {name}\n" for name in sorted(listed))


if __name__ == "__main__":
    text = manifest(ROOT)
    write_text(ROOT / "SHA256SUMS", text)
