r"""Parse prompts: weighted texts and pictures, negative weights repel.

    a green turtle                             one text
    a green turtle | sharp:0.5 | blurry:-0.3   three, with their weights
    a green turtle | image:leaf.png:0.5        a text and a picture
    a green turtle:1:0.8                       a text without gradient below a distance of 0.8 (VQGAN-CLIP's `stop`)
    mind the gap: now | 16\:9                  literal colons: before a space, or escaped by a backslash

The grammar is the same on the command line and in Python; captions in files are literal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from robustclip.data.images import load_image
from robustclip.errors import UsageError
from robustclip.referees.base import Referee, TwoTower

LONGEST: Final = 10_000
"""Maximum characters of a prompt, far beyond any text tower's context."""
LARGEST_WEIGHT: Final = 100.0
SHOWN: Final = 100
"""Characters of a text quoted in messages."""

_BETWEEN = re.compile(r"(?:^|(?<=\s))\|(?=\s|$)")
_COLON = re.compile(r"(?<!\\)(?:\\\\)*(:)")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_IMAGE = re.compile(r"image:(?!\s)")


@dataclass(frozen=True)
class Part:
    """A text, or the path of a picture, with its weight: |weight| in (0, 100], negative to repel.

    `stop` is the distance, times the weight's sign, below which it has no gradient; -inf: none. Surrounding white space
    is removed. Raises UsageError for an empty content, a zero byte, a text that is not Unicode, a weight
    beyond its range, and a stop that is not a number.
    """

    content: str
    weight: float = 1.0
    kind: Literal["text", "image"] = "text"
    stop: float = -math.inf

    def __post_init__(self) -> None:
        object.__setattr__(self, "content", self.content.strip())
        if not self.content:
            raise UsageError("a part of the prompt is empty: say what to paint, e.g. 'a green turtle'", "empty_prompt")
        if len(self.content) > LONGEST:
            message = f"the prompt has {len(self.content)} characters: at most {LONGEST} are read"
            raise UsageError(message, "too_long", length=len(self.content), most=LONGEST)
        if re.search("[\0\ud800-\udfff]", self.content):
            raise UsageError(
                f"{_quoted(self.content)} holds a zero byte or invalid Unicode", "not_utf8", given=self.content
            )
        if not math.isfinite(self.weight) or not 0 < abs(self.weight) <= LARGEST_WEIGHT:
            raise UsageError(
                f"{_quoted(self.content)} has the weight {self.weight:g}: a weight is a number from -100 to 100, not 0",
                "out_of_range",
                argument="weight",
                given=self.weight,
            )
        if not self.stop < math.inf:
            message = f"{_quoted(self.content)} has the stop {self.stop:g}: a stop is a distance, as in 'a cat:1:0.8'"
            raise UsageError(message, "out_of_range", argument="stop", given=self.stop)

    def __str__(self) -> str:
        r"""As `Prompt.parse` reads it: `\` and `|` after a backslash, `:` too unless a space follows."""
        text = re.sub(r"\\|\||:(?!\s)", r"\\\g<0>", self.content)
        name = f"image:{text}" if self.kind == "image" else text
        stops = self.stop > -math.inf
        if self.weight == 1 and not stops:
            return name
        numbers = [self.weight, self.stop] if stops else [self.weight]
        written = [repr(float(number)).removesuffix(".0") for number in numbers]
        return ":".join([f"{name}{' ' if name[-1].isdecimal() else ''}", *written])

    @property
    def title(self) -> str:
        """Readable form: the text in one line, or the picture's file name."""
        text = " ".join(self.content.split())
        return text if self.kind == "text" else re.split(r"[/\\]", text)[-1] or text


@dataclass(frozen=True)
class Prompt:
    """What one picture is to show: parts, of which one at least has a positive weight.

    `str` gives the canonical text, which `parse` reads back to an equal prompt. Raises UsageError where no part pulls.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not any(part.weight > 0 for part in self.parts):
            only = f"{_quoted(str(self))} only pushes away" if self.parts else "the prompt has no parts"
            raise UsageError(
                f"{only}: it needs a part of positive weight, e.g. 'a cat | badly drawn:-0.3'", "no_positive_weight"
            )

    @classmethod
    def parse(cls, text: str) -> Prompt:
        r"""Parts separated by ` | `, each `TEXT`, `TEXT:WEIGHT`, `TEXT:WEIGHT:STOP`, or `image:FILE` with the same.

        A part has a weight if no space follows its last colon; `\:`, `\|` and `\\` are the characters themselves.
        Raises UsageError for an empty or too long text and for a weight that is not a number.
        """
        return cls(_parts(text))

    @classmethod
    def literal(cls, caption: str) -> Prompt:
        """A caption without parsing. Raises UsageError as `Part`."""
        return cls((Part(caption),))

    def __str__(self) -> str:
        return " | ".join(map(str, self.parts))

    @property
    def title(self) -> str:
        """Readable form in one line: `a cat, sharp, not badly drawn`."""
        return ", ".join(part.title if part.weight > 0 else f"not {part.title}" for part in self.parts)

    @property
    def wanted(self) -> str:
        """The title without negative parts."""
        return ", ".join(part.title for part in self.parts if part.weight > 0)

    def check_images(self) -> None:
        """Read every picture among the parts. Raises UsageError as `load_image`."""
        for part in self.parts:
            if part.kind == "image":
                load_image(part.content)


def parse_all(texts: Sequence[str]) -> list[Prompt]:
    """The prompts of a call; a text of only negative weights ("badly drawn:-0.3") is added to every other one.

    Raises UsageError as `Prompt.parse`, and if all are negative.
    """
    if isinstance(texts, str):
        raise UsageError(f"prompts are a list of texts, and this is one text: write [{_quoted(texts)}]", "wrong_type")
    if not texts:
        raise UsageError("there is no prompt: say what to paint, e.g. 'a green turtle'", "no_prompts")
    found = [_parts(text) for text in texts]
    positive = [parts for parts in found if any(part.weight > 0 for part in parts)]
    negative = tuple(part for parts in found if parts not in positive for part in parts)
    if not positive:
        raise UsageError(
            f"{_quoted(' '.join(texts))} only pushes away: give a prompt to add it to, "
            "as in 'a cat:1.0' 'badly drawn:-0.3'",
            "no_positive_weight",
        )
    return [Prompt(parts + negative) for parts in positive]


def beyond_context(referee: Referee, texts: Sequence[str]) -> dict[str, int]:
    """The texts that are longer than the referee's context, which are cut at their end, with their tokens."""
    if not isinstance(referee, TwoTower) or (context := referee.text_tower.context) is None:
        return {}
    different = list(dict.fromkeys(texts))
    lengths = referee.text_tower.count_tokens(different)
    return {text: count for text, count in zip(different, lengths, strict=True) if count > context}


def check_context(referee: Referee, prompts: Sequence[Prompt]) -> None:
    """Raise UsageError for texts longer than the referee's context, with the longest."""
    texts = [part.content for prompt in prompts for part in prompt.parts if part.kind == "text"]
    if too_long := beyond_context(referee, texts):
        assert isinstance(referee, TwoTower)
        context = referee.text_tower.context
        text, count = max(too_long.items(), key=lambda found: found[1])
        others = f" (and {len(too_long) - 1} more are too long)" if len(too_long) > 1 else ""
        raise UsageError(
            f"the prompt {_quoted(text)} has {count} tokens, and {referee.card.name} reads {context} per text{others}: "
            "shorten it, or split it into parts, as in 'a cat | on a red mat'",
            "too_many_tokens",
            text=text,
            tokens=count,
            most=context,
            others=len(too_long) - 1,
        )


def _parts(text: str) -> tuple[Part, ...]:
    if not text.strip():
        raise UsageError("the prompt is empty: say what to paint, e.g. 'a green turtle'", "empty_prompt")
    if len(text) > LONGEST:
        message = f"the prompt has {len(text)} characters: at most {LONGEST} are read"
        raise UsageError(message, "too_long", length=len(text), most=LONGEST)
    return tuple(_part(part.strip()) for part in _BETWEEN.split(text))


def _part(text: str) -> Part:
    kind: Literal["text", "image"] = "image" if _IMAGE.match(text) else "text"
    if kind == "image":
        text = text.removeprefix("image:")
    if kind == "image" and not text:
        raise UsageError(
            "image: names no file: write e.g. 'image:leaf.png', or 'image:leaf.png:0.5' with a weight", "no_file"
        )
    colons = [found.start(1) for found in _COLON.finditer(text)]
    if not colons or text[colons[-1] + 1 : colons[-1] + 2].isspace():
        return Part(_unescaped(text), kind=kind)
    content, weight, stop = text[: colons[-1]], text[colons[-1] + 1 :], ""
    if len(colons) > 1 and _NUMBER.fullmatch(weight) and _NUMBER.fullmatch(text[colons[-2] + 1 : colons[-1]]):
        content, weight, stop = text[: colons[-2]], text[colons[-2] + 1 : colons[-1]], weight
    numbers = text[len(content) + 1 :]
    plain = f"{content}\\:{numbers.replace(':', ' :') if stop else numbers}"
    if _NUMBER.fullmatch(weight) is None:
        raise UsageError(
            f"{_quoted(text)}: the weight {_quoted(weight)} is not a number: write a weight as in 'a cat:0.5', "
            f"or a colon that is text with a backslash before it, {_quoted(plain)}",
            "not_a_weight",
            given=weight,
            plain=plain,
        )
    if content[-1:].isdecimal():
        raise UsageError(
            f"{_quoted(text)}: is {weight} a weight? If it is, put a space before the colon, "
            f"{_quoted(f'{content} :{numbers}')}; if it is text, a backslash, {_quoted(plain)}",
            "ambiguous_weight",
            given=weight,
            spaced=f"{content} :{numbers}",
            plain=plain,
        )
    return Part(_unescaped(content), float(weight), kind, float(stop or "-inf"))


def _unescaped(text: str) -> str:
    return re.sub(r"\\([\\|:])", r"\1", text)


def _quoted(text: str) -> str:
    """A text in quotes, truncated if long."""
    shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return f"'{shown}'" if shown.isprintable() else repr(shown)
