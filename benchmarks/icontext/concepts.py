"""The emoji concepts: their keys, texts and split.

A concept is an emoji without skin tone. It is the unit that is held out:
every picture of a held-out concept, in whatever art style, stays out of the
training splits. Concepts that differ only in gender, age, hair or direction
share a group, and a whole group falls on a single side of the split, so that
"woman surfing" cannot teach what "man surfing" tests.

Names and keywords come from CLDR and emojilib. Pictures are in `sources.py` and
`pictures.py`.
"""

import hashlib
import html
import re
import unicodedata
from typing import NamedTuple

SKIN_TONES = frozenset(f"1F3F{digit}" for digit in "BCDEF")
# Salt and percentages of the split. They never change: a model trained on any
# build is then held out from the same concepts in every other build.
SPLIT_SALT = "icontext-1"
TEST_PERCENT = 20
VALIDATION_PERCENT = 7

_JOINER = "200D"
_VARIATION_SELECTORS = ("FE0E", "FE0F")
_GENDERS = ("2640", "2642")
_TURNED = "27A1"
_PERSONS = frozenset(
    "1F466 1F467 1F468 1F469 1F474 1F475 1F9D1 1F9D2 1F9D3".split()
)
_HAIR = frozenset("1F9B0 1F9B1 1F9B2 1F9B3".split())
# Blond hair, beard, turban, headscarf, skullcap: portraits all the same.
_PORTRAITS = frozenset("1F471 1F9D4 1F473 1F9D5 1F472".split())
_CLOCK_FACES = frozenset(f"{code:X}" for code in range(0x1F550, 0x1F568))
_HOLDING_HANDS = ("1F46B", "1F46C", "1F46D")
# Kiss, couple with heart and family, each with or without its members.
_FAMILIES = ("1F48F", "1F491", "1F46A")
_MEMBERS = ("2764", "1F48B", "1F46A")
# Emoji of the same thing with separate code points by gender.
_SAME_THING = {
    "1F478": "1F934",  # princess, prince
    "1FAC5": "1F934",  # person with crown
    "1F936": "1F385",  # Mrs. Claus, Santa Claus
    "P-1F384": "1F385",  # Mx Claus
    "1F483": "1F57A",  # woman dancing, man dancing
    "1FAC3": "1F930",  # pregnant man, pregnant woman
    "1FAC4": "1F930",  # pregnant person
    "P-1F37C": "1F931",  # feeding a baby, breast-feeding
}
# Groups of look-alikes, which make poor zero-shot questions.
_ALWAYS_TRAIN = frozenset(
    ("keycap", "clock face", "holding hands", "family", "plain person")
)

_SIZE_WORDS = frozenset(
    "8 10 12 16 18 20 24 28 32 36 40 48 64 100 16px 20px 24px".split()
)
_STYLE_WORDS = frozenset(
    "filled fill outline outlined regular bold thin light duotone line linear "
    "broken twotone sharp rounded solid stroke baseline negative alt rtl ltr "
    "micro mini".split()
)


class Concept(NamedTuple):
    """An emoji without skin tone."""

    # Code points in hexadecimal, joined by "-", without variation selectors.
    key: str
    name: str  # of CLDR
    keywords: tuple[str, ...]  # of CLDR
    more_keywords: tuple[str, ...]  # of emojilib
    category: str  # Unicode's group, "Animals & Nature"

    @property
    def split(self):
        """ "train", "val" or "test"."""
        if self.category == "Flags":
            return "train"
        return split_of_group(group_of(self.key))


def key_of_text(text):
    """Concept key of an emoji written as characters."""
    return _join_codes(f"{ord(character):X}" for character in text)


def key_of_codes(codes):
    """Concept key of code points in hexadecimal joined by "-" or "_"."""
    return _join_codes(re.split("[-_]", codes.upper()))


def has_skin_tone(key):
    """Returns whether a concept key has a skin tone."""
    return not SKIN_TONES.isdisjoint(key.split("-"))


def group_of(key):
    """Name of the group of concepts that is split as a whole."""
    ignored = {_JOINER, *_GENDERS} | SKIN_TONES
    codes = [code for code in key.split("-") if code not in ignored]
    if not codes:  # the bare signs of gender are emoji too
        return key
    if len(codes) > 1:  # "person walking facing right" ends in an arrow
        codes = [code for code in codes if code != _TURNED]
    codes = ["P" if code in _PERSONS else code for code in codes]
    group = "-".join(codes)
    head, *rest = codes
    if "20E3" in codes:
        return "keycap"
    if head in _CLOCK_FACES:
        return "clock face"
    if head in _HOLDING_HANDS or {"1F91D", "P"} <= set(codes):
        return "holding hands"
    if group in _FAMILIES or (rest and set(codes) <= {"P", *_MEMBERS}):
        return "family"
    if head in ("P", *_PORTRAITS) and (not rest or rest[0] in _HAIR):
        return "plain person"
    return _SAME_THING.get(group, group)


def split_of_group(group):
    """ "train", "val" or "test", from a hash of the group's name."""
    if group in _ALWAYS_TRAIN:
        return "train"
    digest = hashlib.sha256(f"{SPLIT_SALT}|{group}".encode()).hexdigest()
    percentile = int(digest, 16) % 100
    if percentile < TEST_PERCENT:
        return "test"
    if percentile < TEST_PERCENT + VALIDATION_PERCENT:
        return "val"
    return "train"


def emoji_captions(concept, *, num_keywords=8):
    """Texts of an emoji: name with keywords, bare name, name with the rest."""
    name = concept.name
    keywords = _new_words(concept.keywords, known=name.lower().split())
    first, rest = keywords[:num_keywords], keywords[num_keywords:]
    others = _new_words(
        (*rest, *concept.more_keywords),
        known=(*name.lower().split(), name.lower(), *first),
    )
    return tidy_captions(
        (
            _with_keywords(name, first),
            name,
            _with_keywords(name, others[:num_keywords]),
        )
    )


def icon_captions(name, tags=(), *, num_tags=8):
    """Texts of an icon: machine name, name with tags, name without style.

    "arrow-left-20-filled" with the tag "back" gives "arrow left 20 filled",
    "arrow left: back" and "arrow left".
    """
    raw = re.sub(r"[-_./]+", " ", name).strip()
    words = raw.split()
    while len(words) > 1 and words[-1] in _SIZE_WORDS | _STYLE_WORDS:
        words.pop()
    plain = " ".join(words)
    tags = _new_words(tags, known=())
    with_tags = (_with_keywords(plain, tags[:num_tags]),) if tags else ()
    return tidy_captions((raw, *with_tags, plain))


def tidy_captions(captions):
    """Returns distinct, non-empty captions, in order, each on a single line."""
    printable = (
        "".join(
            " " if unicodedata.category(character)[0] in "CZ" else character
            for character in html.unescape(caption)
            if character != "\ufffd"
        )
        for caption in captions
    )
    tidy = (" ".join(caption.split()) for caption in printable)
    return tuple(dict.fromkeys(caption for caption in tidy if caption))


def has_symbol(text):
    """Returns whether the text has a pictograph, such as an emoji."""
    return any(unicodedata.category(character) == "So" for character in text)


def slug(text):
    """Returns lower-case ASCII letters and digits; other runs become "-"."""
    ascii_text = (
        unicodedata.normalize("NFKD", text.replace("&", " and "))
        .encode("ascii", "ignore")
        .decode()
    )
    return re.sub("[^a-z0-9]+", "-", ascii_text.lower()).strip("-")


def _join_codes(codes):
    codes = (code.lstrip("0") or "0" for code in codes)
    return "-".join(code for code in codes if code not in _VARIATION_SELECTORS)


def _new_words(words, *, known):
    """Lower-case distinct words that are not `known`, in order."""
    known = set(known)
    tidy = (" ".join(word.lower().split()) for word in words)
    return [word for word in dict.fromkeys(tidy) if word and word not in known]


def _with_keywords(name, keywords):
    return f"{name}: {', '.join(keywords)}" if keywords else name
