"""Named things of general icon collections: which icons are kept, and under which label."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from .concepts import Concept, slug
from .styles import IconSet

WORDS = 3  # of the longest name that is kept
FORMS = re.compile(r"^(?:\d+|one|two|three|four|five|flat|duo|fill|alt|altar)$")
"""Last words that number or name a variant of the same drawing."""
RENAMED = {
    "mouse": "computer mouse",
    "log": "wooden log",
    "labtop": "laptop",
    "dumbell": "dumbbell",
    "bigben": "big ben",
    "horizontal-flip": None,
    "vertical-flip": None,
    "football": None,  # of two games
    "chips": None,  # of two materials
    "star-wars": None,
    "spongebob": None,
    "wall-e": None,
    "r2d2": None,
    "pokeball": None,
    "captain-shield": None,
    "steve-jobs": None,
}
"""Icons whose name is that of another thing, is misspelt, or names no thing (None)."""
WORDS_OF_NO_THINGS = """
    abstract account accounts action actions activity add adjust adjustment adobe advance ai airbnb airdrop airplay
    airpods align alignment alipay allowances alphabetical alt amazon analytics android api app apple application
    approve ar archive arrow arrows artboard aspect asterisk at attribute audio auto automatic away back backward
    baidu base beaufort behance bitcoin block blocks bluetooth border bottom box boxes breast browser bubble bullet
    bullish business button bytedance cancel cannabis caps card category cell center change channel character chart
    chat check chrome circle clear click close closed code coding collapse color column columns command comment
    comments commit composition conditions condom config connect connection content contrast control controls copy
    copyright corner cpu create crm crop cross css csv currency cursor customer cut daemon dark dash data database
    date day debian decision decrease deep deeplink default delete desktop detail devil diagonal diagram dial
    direction directory disability disable disabled discord discount display distribute distribution divide document
    dot dots double down download drag drawer dribbble dropbox drugs duplicate earpods easy edit editor effect eight
    ellipsis email emoji empty enable end enter entering equal error ethereum even event exchange exclamation exclude
    exit expand expansion export expression extend extreme face facebook fail false favorite favourite feedback figma
    file files filter find first five flip flow focus folder font form format forward four frame free freeze full
    function gameboy general generic gesture git github gitlab go google gopro gpu graph graphics grid group groups
    handle hanging hd hdmi header height help hexagon hidden hide hierarchy high history horizontal horizontally hover
    html http i icon id ii iii illustrator imac image import in inbox increase indent index indicator info information
    inner input insert inside instagram interface internal intersect invalid invert invisible ios ipad iphone issue
    item iv iwatch jd join js json judgement jump justify kindle kirby lab label language last layer layers layout
    left left2 less letter level like limit line lines link linkedin linux list load loading local login logo logout
    low lucifer mac mail mario martyr mastercard maximize mediaeditor medium menu message messages messenger meta
    middle minimize minus misc missed mitsubishi mode modify module monetization more move multi multiple mute naked
    nav navigation netflix network neutral new next night nine nintendo no node none nook noose not notification
    notifications object off office ok on one online open operation optimization option order orientation out outer
    outgoing oval overcast overflow overtime pacman page paginate paragraph parallel partly password paste pause
    paypal pdf percent percentage performance perspective photoshop pinterest placeholder play playback playstation
    plus png point pointer position power ppt preview previous print priority privacy process product profile
    programming project protection proxy push qr quality quarter query question queue quick quit ranking ratio read
    receive record rectangle reddit redo reduce refresh refund register reject reload remind remove repeat replace
    reply report request reset resize resolution responsive restore return reverse review rewind right rotate rotation
    round row rows rule save scale scan schedule score screen script search section select selected selection send
    sensuousness sent seo separate seppuku sequence server service services setting settings setup seven severed sex
    shape shapes share shift shipment show shrink signal single six size sketch skip skype slack slide smiley snapchat
    sort sorting sound source spacing speed sperm split spotify square ssd stack stackoverflow staff standard start
    state static statistics status steam step stop stream strength stumbleupon style submit subtract success suicide
    support swap swipe switch symbol sync synchronize system tab tag tags taobao target tarot task team telegram
    template ten terminal tesla tetris text theme threat three tick tiktok time timeline tinder title tmall todo
    toggle top total touch track transfer transform transporter triangle true tumblr turn twitch twitter two type uber
    unarchive undo unfold unfollow unlink unlock up update upload url usage usb user users uv validation variant
    vector version vertical vertically very vi video view viewpoint vimeo visa visible visual vlc volkswagen volume vr
    web website wechat weibo whatsapp width wii wikipedia window windows wrap write xbox xls xml youtube zero zip zoom
"""
NO_THINGS = frozenset(WORDS_OF_NO_THINGS.split())
"""Words of interfaces, brands, signs and numbers, and of drugs and cruelty: no name that has one is kept."""


def thing_names(icons: IconSet, concepts: Iterable[Concept]) -> Iterator[tuple[str, str]]:
    """(icon, label) of every icon of a set that shows a named thing; one icon a label, the first in the alphabet.

    A label that a concept of the emoji set has too is spelt as there.
    """
    known = {slug(concept.label): concept.label for concept in concepts}
    known |= {slug(concept.unicode_label): concept.label for concept in concepts}
    found: set[str] = set()
    for name in sorted(icons.icons):
        words = name.split("-")
        while len(words) > 1 and FORMS.match(words[-1]):
            words.pop()
        stem = "-".join(words)
        renamed = RENAMED.get(stem, stem)
        if renamed is None or name in found:
            continue
        label = known.get(slug(renamed)) or _plain(renamed)
        if label is not None and label not in found:
            found.add(label)
            yield name, label


def _plain(name: str) -> str | None:
    words = re.split(r"[- ]", name)
    plain = all(re.fullmatch(r"[a-z]{3,}", word) and word not in NO_THINGS for word in words)
    return " ".join(words) if plain and len(words) <= WORDS else None


def known_nouns(labels: Iterable[str], nouns: frozenset[str]) -> set[str]:
    """The labels of one word, and those of two whose last word is one of `nouns`: of game-icons, whose other names are
    mostly spells and actions."""
    return {label for label in labels if len(words := label.split()) == 1 or (len(words) == 2 and words[-1] in nouns)}
