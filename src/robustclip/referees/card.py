"""Model cards of referees: card.json and README.md, with hashes, provenance and claims."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, ConfigDict, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from robustclip.attacks.threat import ThreatModel
from robustclip.errors import UsageError
from robustclip.referees.preprocess import Preprocess
from robustclip.runs.files import is_file, read_json, write_json, write_text
from robustclip.runs.plain import CardName, FileName, Line, Plain, Sha256, check_plain, first_of

CARD_FILE = "card.json"
README_FILE = "README.md"


@dataclass(frozen=True)
class Claim:
    """One measured number: `value` in [`low`, `high`] (95% interval) from `n` samples, with its measurement settings.

    `data` is "dataset/split", `attack` the attack's spec ("l2:1.5@20") or None for clean images, `date` ISO 8601.
    `task` is `evaluate`'s, and `how` holds its other arguments ({"method": "gradcam"}); a claim without them
    cannot be measured again.
    """

    name: Line
    value: float
    low: float
    high: float
    n: PositiveInt
    seed: int
    data: Line
    attack: Line | None
    date: Line
    task: Line | None = None
    how: Annotated[dict[str, Line | int | None], AfterValidator(check_plain)] = field(default_factory=dict)


def _preprocess(config: dict[str, Any]) -> dict[str, Any]:
    Preprocess.from_config(config)
    return config


def _named(tower: dict[str, str]) -> dict[str, str]:
    if set(tower) != {"name", "sha256"}:
        raise UsageError(f"a text tower has a name and a sha256, not {sorted(tower)}")
    return tower


@dataclass
class Card:
    """Model card of a referee.

    `family` selects the loader ("open_clip", "transformers", "toy"); `architecture` is an open_clip `model_cfg`,
    `preprocess` an open_clip `preprocess_cfg`; `weights` maps each weight file of the folder to its SHA-256;
    `text_tower` names a text tower that is not in the folder, with the hash of its weights; `threat` is the threat
    model of the image tower's training (None: not robust), `text_threat` that of the text tower's, "edits:1": edits of
    one character. `logit_scale` multiplies cosines; `logit_bias` is added.
    """

    name: CardName
    family: Line
    architecture: Plain
    preprocess: Annotated[Plain, AfterValidator(_preprocess)]
    logit_scale: PositiveFloat
    logit_bias: float | None = None
    text_tower: Annotated[dict[str, str], AfterValidator(check_plain), AfterValidator(_named)] | None = None
    weights: dict[FileName, Sha256] = field(default_factory=dict)
    threat: ThreatModel | None = None
    text_threat: Line | None = None
    provenance: Plain = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    def __repr__(self) -> str:
        robust = "not robust" if self.robust_to == "nothing" else self.robust_to
        return f"<Card of {self.name!r}, {self.family}, {robust}, {len(self.claims)} claims>"

    @property
    def robust_to(self) -> str:
        """The threat models of its training: of the images, of the texts, or "nothing"."""
        texts = None if self.text_threat is None else f"texts {self.text_threat}"
        return "; ".join(str(one) for one in (self.threat, texts) if one is not None) or "nothing"

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON values."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        if self.text_threat is None:
            del values["text_threat"]  # as in cards from before there were any
        values["threat"] = None if self.threat is None else self.threat.to_json()
        values["claims"] = [asdict(claim) for claim in self.claims]
        return values

    @classmethod
    def from_json(cls, values: Any, source: str = "the card") -> Card:
        """Read a card back; `source` names it in errors.

        Raises one UsageError for all keys that are missing or unknown, else for all values that are not what the field
        says: of another type, not finite, paths where names of files belong, texts that are not printable.
        """
        values = _checked(cls, values, source)
        if values.get("threat") is not None:
            values["threat"] = ThreatModel.from_json(values["threat"])
        claims = values.get("claims", [])
        values["claims"] = [Claim(**_checked(Claim, claim, f"a claim of {source}")) for claim in claims]
        return cls(**values)

    @classmethod
    def load(cls, folder: Path) -> Card:
        """Read `folder`/card.json. Raises UsageError when there is none or it is not a card."""
        path = Path(folder) / CARD_FILE
        if not is_file(path):
            raise UsageError(
                f"{str(folder)[:200]} is not a referee's folder: it has no {CARD_FILE}", "no_card", folder=str(folder)
            )
        try:
            values = read_json(path)
        except UsageError as error:
            raise UsageError(
                f"{error}: write the referee again, or restore the file", "not_json", path=str(path)
            ) from error
        return cls.from_json(values, str(path))

    def save(self, folder: Path, usage: str = "") -> None:
        """Write card.json and its readable form README.md into `folder`, each atomically; `usage` as in `markdown`."""
        write_json(Path(folder) / CARD_FILE, self.to_json())
        write_text(Path(folder) / README_FILE, self.markdown(usage))

    def sign(self, claims: list[Claim]) -> None:
        """Add measured claims; each replaces an older one of the same name, data, attack and seed, unless that was
        measured on more samples."""
        samples = {_identity(claim): claim.n for claim in self.claims}
        claims = [claim for claim in claims if claim.n >= samples.get(_identity(claim), 0)]
        new = {_identity(claim) for claim in claims}
        self.claims = [claim for claim in self.claims if _identity(claim) not in new] + claims

    def markdown(self, usage: str = "") -> str:
        """The card as Markdown; `usage` is Python code that loads the folder (default: load_referee)."""
        usage = usage or (
            f'import robustclip\n\nreferee = robustclip.load_referee("{self.name}")  # or the path of this folder'
        )
        threat = self.robust_to.replace("nothing", "none (not trained against an attack)")
        size = "x".join(map(str, self.preprocess["size"]))
        bias = "" if self.logit_bias is None else f", bias {self.logit_bias:.6g}"
        config = json.dumps({"preprocess_cfg": self.preprocess, "model_cfg": self.architecture}, indent=2)
        return f"""# {self.name}

- Threat model of its training: {threat}
- Image tower: {_tower(self.architecture)}, sees {size} pixels ({self.family})
- Text tower: {self.text_tower["name"] if self.text_tower else "in the weights of this folder"}
- Logit scale: {self.logit_scale:.6g}{bias}

```python
{usage}
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


STRICT = ConfigDict(strict=True, allow_inf_nan=False)  # no conversion of "100", no rounding
RAW = {"threat": dict[str, Any] | None, "claims": list[Any]}
"""Fields whose content is validated by their own classes."""


@cache
def _types(kind: type) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(kind, include_extras=True) | (RAW if kind is Card else {})
    return {name: TypeAdapter(hint, config=STRICT) for name, hint in hints.items()}


def _checked(kind: type, values: Any, source: str) -> dict[str, Any]:
    """Validate `values` as arguments of a Card or a Claim. Raises UsageError with all faults."""
    if not isinstance(values, dict):
        raise UsageError(
            f"{source} is not a {kind.__name__.lower()}: it holds {type(values).__name__}, a "
            f"{kind.__name__.lower()} is a JSON object",
            "not_an_object",
            given=type(values).__name__,
        )
    types = _types(kind)
    needed = (
        {"name", "family", "architecture", "preprocess", "logit_scale"}
        if kind is Card
        else set(types) - {"task", "how"}
    )
    missing, unknown = sorted(needed - set(values)), sorted(set(values) - set(types))
    if missing or unknown:
        faults = [f"{word}: {', '.join(keys)}" for word, keys in (("missing", missing), ("unknown", unknown)) if keys]
        message = f"{source} does not read as a {kind.__name__} ({'; '.join(faults)[:500]})"
        raise UsageError(message, "wrong_entries", missing=missing, unknown=unknown)
    faults = []
    for name, value in values.items():
        try:
            types[name].validate_python(value)
        except ValidationError as error:
            faults.append(f"{name}: {first_of(error)}")
    if faults:
        raise UsageError(f"{source} does not read as a {kind.__name__} ({'; '.join(faults)})", "invalid_entries")
    return dict(values)


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
