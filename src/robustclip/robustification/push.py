"""Push an exported folder to the Hugging Face hub; the only importer of huggingface_hub.

Tested with the real client against a local server of the hub's HTTP API: creating the repository, checking the card,
uploads by Git LFS, and the commit. Untested: Xet storage (used if hf-xet is installed), multi-part uploads above 5 GB,
and how the hub shows the card.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from robustclip.errors import RunError, UsageError
from robustclip.referees.card import README_FILE, Card
from robustclip.referees.folder import CONFIG

TAGS = ("clip", "adversarial-robustness", "robustclip")


def fault(repo: str) -> UsageError | None:
    """Reason why `repo` cannot be pushed to, with the remedy, without contacting the hub."""
    try:
        validate_repo_id(repo)
        organisation, _, name = repo.partition("/")
    except HFValidationError:
        organisation, name = "", ""
    if not organisation or not name:
        return UsageError(
            f"--push takes ORG/NAME, e.g. your-name/clipag-vit-b32, not {repo!r}", "not_a_repository", given=repo
        )
    if constants.HF_HUB_OFFLINE:
        return UsageError(
            "--push needs the hub, and HF_HUB_OFFLINE is set: unset it, or leave out --push", "hub_offline"
        )
    if get_token() is None:
        return UsageError(
            "--push needs a token of the Hugging Face hub, and there is none: hf auth login, or set HF_TOKEN (a token "
            "with write access: https://huggingface.co/settings/tokens). Without --push nothing leaves this machine",
            "no_token",
        )
    return None


def push(folder: Path, repo: str, *, card: Card, usage: str, library: str, task: str) -> str:
    """Upload an exported folder as one commit, creating the repository if missing; returns its URL.

    README.md is the card with the hub's front matter. Raises RunError if the hub refuses or is unreachable; the folder
    is not changed, and the repository keeps its history.
    """
    api = HfApi()
    replaced = {README_FILE: _readme(card, usage, library, task), CONFIG: _config_for(folder, repo)}
    operations = [
        CommitOperationAdd(path.relative_to(folder).as_posix(), replaced.get(path.name) or path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    try:
        address = api.create_repo(repo, exist_ok=True)
        api.create_commit(repo, operations, commit_message=f"{card.name}, exported by robustclip")
    except Exception as error:  # the class of network errors depends on the client's version
        raise RunError(
            f"{folder} is written, but could not be pushed to {repo} ({_reason(error)}). Repeat the command with "
            f"another --to once that is fixed, or: hf upload {repo} {folder}",
            "not_pushed",
            repo=repo,
            folder=str(folder),
        ) from error
    return str(address)


def _reason(error: BaseException) -> str:
    """First line of an error, and of its cause."""
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"{first} {_reason(error.__cause__)}" if error.__cause__ else first


def _readme(card: Card, usage: str, library: str, task: str) -> bytes:
    """The card with the hub's front matter."""
    tags = "".join(f"\n- {tag}" for tag in TAGS)
    return f"""---
library_name: {library}
pipeline_tag: {task}
license: unknown
tags:{tags}
---

{card.markdown(usage)}
## License

Not stated: it follows from the weights that these started from and the data they were trained on (see Provenance).
""".encode()


def _config_for(folder: Path, repo: str) -> bytes | None:
    """open_clip's config with the path of a text tower in the folder replaced by the repository."""
    path = folder / CONFIG
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = config.get("model_cfg", {}).get("text_cfg", {})
    if text.get("hf_model_name") != str(folder.resolve()):
        return None
    text["hf_model_name"] = repo
    return json.dumps(config, indent=2).encode()
