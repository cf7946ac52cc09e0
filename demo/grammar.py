"""The English morphology that the generator needs: plurals, tenses, articles and numbers."""

from __future__ import annotations

from lexicon import words

_IRREGULAR_PAST = dict(
    pair.split(":")
    for pair in words(
        "write:wrote read:read catch:caught sell:sold draw:drew sing:sang build:built dig:dug "
        "fly:flew ring:rang drive:drove make:made find:found buy:bought hang:hung grow:grew "
        "teach:taught light:lit feed:fed sweep:swept sew:sewed"
    )
)
_IRREGULAR_PLURAL = dict(
    pair.split(":")
    for pair in words(
        "mouse:mice goose:geese ox:oxen sheep:sheep deer:deer wolf:wolves knife:knives loaf:loaves"
    )
)
_DOUBLED = {"dig", "chop"}
_UNITS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")


def plural(noun: str) -> str:
    """Plural of a countable noun."""
    if noun in _IRREGULAR_PLURAL:
        return _IRREGULAR_PLURAL[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def past(verb: str) -> str:
    """Simple past of a verb."""
    if verb in _IRREGULAR_PAST:
        return _IRREGULAR_PAST[verb]
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + (verb[-1] if verb in _DOUBLED else "") + "ed"


def present(verb: str) -> str:
    """Third person singular of a verb."""
    return plural(verb)


def gerund(verb: str) -> str:
    """The -ing form of a verb."""
    stem = verb[:-1] if verb.endswith("e") else verb
    return stem + (stem[-1] if verb in _DOUBLED else "") + "ing"


def a(noun: str) -> str:
    """Put the right indefinite article before a noun phrase."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def number(value: int) -> str:
    """Spell out a number from 0 to 100."""
    if value < 20:
        return _UNITS[value]
    if value == 100:
        return "a hundred"
    tens, units = divmod(value, 10)
    return _TENS[tens - 2] + (f"-{_UNITS[units]}" if units else "")


def listing(items: list[str]) -> str:
    """Join items as in running text: `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
