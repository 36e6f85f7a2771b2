"""Concepts of the emoji set: labels, keywords, families and captions, all pure functions of emojibase's records."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass

from robustclip.data.emoji import caption_forms

GROUPS = {
    0: "smileys-emotion",
    1: "people-body",
    3: "animals-nature",
    4: "food-drink",
    5: "travel-places",
    6: "activities",
    7: "objects",
    8: "symbols",
}  # emojibase's groups without 2 (skin tones and hair) and 9 (flags)

VOWEL_SOUNDS = ("SOS", "NG", "x-", "hour", "UP", "8", "11", "18")  # beginnings that take "an" against the rule
CONSONANT_SOUNDS = ("uni", "use", "euro", "one", "ewe")  # beginnings that take "a" against the rule
SINGULAR_S = ("ss", "us", "os", "moai")
DEFINITE = frozenset({"Statue of Liberty", "Tokyo tower", "milky way", "kaaba"})
NO_THINGS = """
    star-struck, dizzy, dashing away, ZZZ, cooking, camping, wood, canned food, pouring liquid, foggy, high voltage,
    night with stars, construction, radioactive, om, multiply, plus, minus, divide, wireless, no entry, no littering,
    no one under eighteen, registered, copyright, dna, mount fuji, children crossing, passport control, baggage claim,
    rolling on the floor laughing, Santa Claus, Mrs. Claus, Mx Claus, Taurus, Gemini, Cancer, Leo, Virgo, Libra,
    Scorpio, Sagittarius, Capricorn, Aquarius, Ophiuchus, breast-feeding, shaved ice, litter in bin sign, luggage,
    left luggage, money with wings, information, warning, prohibited
"""
MATERIALS = """
    bacon, bread, rice, popcorn, salt, ice, butter, oden, sake, mate, spaghetti, sushi, dango, garlic, broccoli,
    softball, tennis, bowling, hockey, lacrosse, pong, badminton, fog, fire, jeans, thread, yarn, soap, locked,
    unlocked, water, smoking
"""
BARE_LABELS = frozenset(label.strip() for label in NO_THINGS.split(","))  # labels that are no countable things
BARE_NOUNS = frozenset(noun.strip() for noun in MATERIALS.split(","))  # last words that English leaves bare
QUALIFIERS = re.compile(
    r" (?:with|without|of|on|in|over|behind|from|between|facing|holding|at|pointing|showing|lifting|getting|playing)\b"
)  # what comes behind these words is not the thing itself


@dataclass(frozen=True)
class Concept:
    """One thing that is drawn: `id` is the Unicode hexcode, `label` plain English, `keywords` from the Unicode data."""

    id: str
    label: str
    unicode_label: str
    group: str
    keywords: tuple[str, ...]


def concepts_of(records: list[dict]) -> list[Concept]:
    """Concepts in Unicode order, without skin tones and hair, flags, keycaps and regional indicators."""
    kept = [r for r in records if r.get("group") in GROUPS and not r["label"].startswith("keycap")]
    return [
        Concept(
            id=record["hexcode"],
            label=plain_label(record["label"]),
            unicode_label=record["label"],
            group=GROUPS[record["group"]],
            keywords=_keywords(record["label"], record.get("tags", [])),
        )
        for record in sorted(kept, key=lambda r: r["order"])
    ]


def _keywords(label: str, tags: list[str]) -> tuple[str, ...]:
    """Keywords that add a word to the label, in the order of the Unicode data."""
    words = set(re.findall(r"\w+", label.lower()))
    return tuple(tag for tag in dict.fromkeys(tags) if not set(re.findall(r"\w+", tag.lower())) <= words)


def plain_label(label: str) -> str:
    """The Unicode label as one would say it: 'family: man, boy' becomes 'family of a man and a boy'."""
    label = label.replace("’", "'").replace("“", '"').replace("”", '"')
    head, _, tail = label.partition(": ")
    if not tail:
        return label
    people = [with_article(part) for part in tail.split(", ")]
    listed = " and ".join([", ".join(people[:-1]), people[-1]]) if len(people) > 1 else tail
    if head == "couple with heart":
        return f"couple with heart, {listed}"
    if tail == "facing right":
        return f"{head} facing right"
    if tail == "bald":
        return f"bald {head}"
    return f"{head} {({'family': 'of', 'kiss': 'between'}).get(head, 'with')} {listed}"


def slug(text: str) -> str:
    """ASCII words in lower case joined by hyphens, as icon sets name their files."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.replace("'", "")).strip("-")


def with_article(label: str) -> str:
    """The label behind 'a', 'an' or 'the', or bare where English takes no article (plurals, materials, states)."""
    if label in DEFINITE:
        return f"the {label}"
    noun = QUALIFIERS.split(label)[0].split()[-1].lower().strip(",")
    plural = noun.endswith("s") and not noun.endswith(SINGULAR_S)
    several = label.split()[0] in ("people", "men", "women", "busts", "two")
    if label in BARE_LABELS or plural or several or noun in BARE_NOUNS or noun.endswith(("o'clock", "-thirty")):
        return label
    vowel = label[0].lower() in "aeiou" and not label.startswith(CONSONANT_SOUNDS)
    vowel |= label.startswith(VOWEL_SOUNDS)
    return f"{'an' if vowel else 'a'} {label}"


def captions_of(concept: Concept) -> list[str]:
    """Several forms of caption for one concept; the first is the plain label."""
    return caption_forms(concept.label, with_article(concept.label), concept.keywords)


FAMILIES: tuple[tuple[str, str], ...] = (
    (r"^(\w+ o.clock|\w+-thirty)$", "clock face"),
    (r"^family\b", "family"),
    (r"^kiss( |$|:)", "kiss"),
    (r"^couple with heart", "couple with heart"),
    (r"holding hands$", "holding hands"),
    (r"moon$", "moon"),
    (r"moon face$", "moon face"),
    (r"^globe showing", "globe"),
    (r"^Japanese \S", "lettered sign"),
    (r"\bbutton\b|^(BACK|END|ON!|SOON|TOP) arrow|^input ", "lettered sign"),
    (
        r"^(Aries|Taurus|Gemini|Cancer|Leo|Virgo|Libra|Scorpio|Sagittarius|Capricorn|Aquarius|Pisces|Ophiuchus)$",
        "zodiac",
    ),
    (r"\barrows?\b", "arrow"),
    (r"^index pointing|^backhand index", "pointing hand"),
    (r"-facing fist$|^(left|right)wards (pushing )?hand$", "sideways hand"),
    (r"^magnifying glass", "magnifying glass"),
    (r"\b(circle|square|diamond)$", "plain shape"),
    (r"^red triangle pointed", "plain shape"),
    (r"(banknote)$", "banknote"),
    (r"^(blue|green|orange|closed) book$", "book"),
    (r"mailbox with", "mailbox"),
    (r"^speaker (low|medium|high)", "speaker"),
    (r"^(1st|2nd|3rd) place medal$", "medal"),
    (r"\bheart$", "heart"),
    (r"^Japanese post office$|^post office$", "post office"),
    (r"suit$", "card suit"),
    (r"^(tear-off )?calendar$", "calendar"),
)


def family(unicode_label: str) -> str:
    """Key of concepts whose drawings are near-identical or differ by a letter, a hand of the clock or a gender.

    Gendered variants share the family of the neutral form, also when they face right.
    """
    for pattern, name in FAMILIES:
        if re.search(pattern, unicode_label):
            return name
    bare = unicode_label.removesuffix(" facing right")
    bare = re.sub(r"^(?:person|people|man|men|woman|women|boy|girl|child|old \w+|older person)\b:?\s*", "", bare)
    bare = re.sub(r"^deaf .*", "deaf", bare)
    bare = {
        "prince": "royal",
        "princess": "royal",
        "Santa Claus": "Claus",
        "Mrs. Claus": "Claus",
        "Mx Claus": "Claus",
        "merman": "merperson",
        "mermaid": "merperson",
        "person": "",
        "superhero": "hero",
    }.get(bare, bare)
    return bare or "person"


def keyed(purpose: str, *parts: str) -> str:
    """A fixed pseudo-random key (hex) of these words: sorting by it draws without a random generator."""
    return hashlib.sha256("/".join(("robustclip-emoji", purpose, *parts)).encode()).hexdigest()
