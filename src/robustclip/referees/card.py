"""What a referee's folder says of itself: JSON for programs, Markdown for people."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from robustclip.errors import UsageError
from robustclip.files import atomic_write, write_json
from robustclip.threat import ThreatModel

CARD_FILE = "card.json"
README_FILE = "README.md"


@dataclass(frozen=True)
class Claim:
    """One measured number: `value` in [`low`, `high`] (95% interval) from `n` samples, and how to measure it again.

    `data` is "dataset/split", `attack` the attack's spec ("l2:1.5@20") or None for clean images, `date` ISO 8601.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    seed: int
    data: str
    attack: str | None
    date: str


@dataclass
class Card:
    """A referee's own account of itself.

    `family` names who reads the folder ("open_clip", "transformers", "toy"); `architecture` is an open_clip
    `model_cfg`, `preprocess` an open_clip `preprocess_cfg`; `weights` maps each weight file of the folder to its
    SHA-256; `text_tower` names a text tower that is not in the folder, with the hash of its weights; `threat` is what
    the image tower was trained against (None: not robust). `logit_scale` multiplies cosines; `logit_bias` is added.
    """

    name: str
    family: str
    architecture: dict[str, Any]
    preprocess: dict[str, Any]
    logit_scale: float
    logit_bias: float | None = None
    text_tower: dict[str, str] | None = None
    weights: dict[str, str] = field(default_factory=dict)
    threat: ThreatModel | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON values."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["threat"] = None if self.threat is None else self.threat.to_json()
        values["claims"] = [asdict(claim) for claim in self.claims]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any], source: str = "the card") -> Card:
        """Read a card back; `source` names it in errors. Raises UsageError for keys that are missing or unknown."""
        _check_keys(cls, values, source)
        values = dict(values)
        if values.get("threat") is not None:
            values["threat"] = ThreatModel.from_json(values["threat"])
        claims = values.get("claims", [])
        for claim in claims:
            _check_keys(Claim, claim, f"a claim of {source}")
        values["claims"] = [Claim(**claim) for claim in claims]
        return cls(**values)

    @classmethod
    def load(cls, folder: Path) -> Card:
        """Read `folder`/card.json. Raises UsageError when there is none or it is not a card."""
        path = Path(folder) / CARD_FILE
        if not path.is_file():
            raise UsageError(f"{folder} is not a referee's folder: it has no {CARD_FILE}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{path} is not JSON ({error}): write the referee again, or restore the file") from error
        if not isinstance(values, dict):
            raise UsageError(f"{path} is not a card: it holds {type(values).__name__}, a card is a JSON object")
        return cls.from_json(values, str(path))

    def save(self, folder: Path) -> None:
        """Write card.json and its readable form README.md into `folder`, each atomically."""
        write_json(Path(folder) / CARD_FILE, self.to_json())
        with atomic_write(Path(folder) / README_FILE, "w") as file:
            file.write(self.markdown())

    def sign(self, claims: list[Claim]) -> None:
        """Add measured claims; one of the same name, data, attack and seed replaces the older."""
        new = {_identity(claim) for claim in claims}
        self.claims = [claim for claim in self.claims if _identity(claim) not in new] + claims

    def markdown(self) -> str:
        """The card for people."""
        threat = "none (not trained against an attack)" if self.threat is None else str(self.threat)
        size = "x".join(map(str, self.preprocess["size"]))
        bias = "" if self.logit_bias is None else f", bias {self.logit_bias:.6g}"
        config = json.dumps({"preprocess_cfg": self.preprocess, "model_cfg": self.architecture}, indent=2)
        return f"""# {self.name}

- Threat model of its training: {threat}
- Image tower: {_tower(self.architecture)}, sees {size} pixels ({self.family})
- Text tower: {self.text_tower["name"] if self.text_tower else "in the weights of this folder"}
- Logit scale: {self.logit_scale:.6g}{bias}

```python
import robustclip

referee = robustclip.load_referee("{self.name}")  # or the path of this folder
```

## Claims

{_claims(self.claims)}

## Provenance

{_provenance(self.provenance)}

## Files

{_files(self)}

## Preprocessing and architecture

```json
{config}
```
"""


def _check_keys(kind: type, values: dict[str, Any], source: str) -> None:
    names = {item.name for item in fields(kind)}
    needed = {"name", "family", "architecture", "preprocess", "logit_scale"} if kind is Card else names
    missing, unknown = sorted(needed - set(values)), sorted(set(values) - names)
    if missing or unknown:
        faults = [f"{word}: {', '.join(keys)}" for word, keys in (("missing", missing), ("unknown", unknown)) if keys]
        raise UsageError(f"{source} does not read as a {kind.__name__} ({'; '.join(faults)})")


def _identity(claim: Claim) -> tuple[str, str, str | None, int]:
    return claim.name, claim.data, claim.attack, claim.seed


def _tower(architecture: dict[str, Any]) -> str:
    vision = architecture.get("vision_cfg", {})
    if "timm_model_name" in vision:
        return f"timm {vision['timm_model_name']}"
    if vision:
        return f"open_clip, width {vision.get('width', 768)}, {vision.get('layers', 12)} layers"
    return str(architecture.get("name", "not described"))


def _table(*rows: tuple[str, ...]) -> str:
    """Markdown; the first row is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _claims(claims: list[Claim]) -> str:
    if not claims:
        return "None measured yet."
    header = ("claim", "value", "95% interval", "n", "attack", "data", "seed", "date")
    rows = [
        (
            claim.name,
            f"{claim.value:.4g}",
            f"{claim.low:.4g} to {claim.high:.4g}",
            str(claim.n),
            claim.attack or "none",
            claim.data,
            str(claim.seed),
            claim.date,
        )
        for claim in claims
    ]
    return _table(header, *rows)


def _provenance(provenance: dict[str, Any]) -> str:
    lines = (
        f"- {key}: {value if isinstance(value, str) else f'`{json.dumps(value)}`'}" for key, value in provenance.items()
    )
    return "\n".join(lines) or "Not recorded."


def _files(card: Card) -> str:
    rows = [(name, f"`{digest}`") for name, digest in card.weights.items()]
    if card.text_tower:
        rows.append((f"text tower {card.text_tower['name']} (of its tensors)", f"`{card.text_tower['sha256']}`"))
    return _table(("file", "sha256"), *rows)
