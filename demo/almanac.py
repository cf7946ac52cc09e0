"""The almanac of the demo world: rhymes, recipes and routines that everybody there knows by heart.

These are long arbitrary facts. Nothing but memory can foretell them, so most of what the demo
model has to store in its weights is here. Like `world.py`, all of it comes from one fixed seed.
"""

from __future__ import annotations

import random

import grammar as gr
import lexicon as lx
import world
from grammar import number
from world import Person

_PAIRS = [word for pair in lx.OPPOSITES for word in pair]
_NOUNS = lx.GOODS + lx.ANIMALS
_STUFF = lx.words(
    "flour butter sugar salt milk honey pepper ginger barley cream oil vinegar rice mustard "
    "cinnamon raisins onions carrots apples lemons beans peas parsley water"
)


def _line(rng: random.Random) -> str:
    pick = rng.choice
    kind = rng.randrange(5)
    if kind == 0:
        line = f"{pick(_NOUNS)}, {pick(_NOUNS)}, {pick(lx.COLOURS)} {pick(_NOUNS)}"
    elif kind == 1:
        line = f"{pick(_PAIRS)} {pick(_NOUNS)}, {number(rng.randint(2, 20))} {pick(lx.PETS)}s"
    elif kind == 2:
        line = f"{number(rng.randint(2, 20))} {pick(_PAIRS)} {gr.plural(pick(_NOUNS))}"
    elif kind == 3:
        line = f"{pick(_NOUNS)} and {pick(_NOUNS)}, {pick(lx.SOUNDS)} and {pick(lx.SOUNDS)}"
    else:
        line = f"{pick(lx.MATERIALS)} {pick(_NOUNS)}, {pick(lx.MOODS)} {pick(lx.JOBS)}"
    return line


def _rhyme(rng: random.Random) -> list[str]:
    lines = [_line(rng) for _ in range(4)]
    last = f"{rng.choice(lx.MONTHS)}, {rng.choice(lx.PET_NAMES)}, out goes {rng.choice(_NOUNS)}"
    return [*lines, last]


def _recipe(rng: random.Random) -> str:
    first, second, third, extra = rng.sample(_STUFF, 4)
    return (
        f"take {number(rng.randint(2, 12))} cups of {first}, {number(rng.randint(2, 12))} spoons "
        f"of {second} and some {third}; stir for {number(rng.randint(2, 60))} minutes, cook for "
        f"{number(rng.randint(2, 60))}, and serve it with {extra} in "
        f"{gr.a(rng.choice(lx.COLOURS))} {rng.choice(['bowl', 'jar', 'pan', 'cup', 'jug'])}"
    )


def _timetable(rng: random.Random) -> str:
    first, second = rng.sample(lx.TOWNS, 2)
    return (
        f"the {rng.choice(lx.COLOURS)} cart for {first} leaves at "
        f"{number(rng.randint(1, 12))} and costs {number(rng.randint(2, 20))} pennies, and the "
        f"boat for {second} leaves at {number(rng.randint(1, 12))} and costs "
        f"{number(rng.randint(2, 20))} pennies"
    )


_RNG = random.Random(19_081_987)
RHYMES = {name: _rhyme(_RNG) for name in [*world.PEOPLE, *lx.TOWNS, *lx.GOODS, *lx.ANIMALS]}
RECIPES = {food: _recipe(_RNG) for food in lx.FOODS}
ROUTINES = {name: _RNG.sample(lx.ACTIONS, 7) for name in world.PEOPLE}
TIMETABLES = {town: _timetable(_RNG) for town in lx.TOWNS}


def _told(name: str) -> str:
    return ". ".join(line[0].upper() + line[1:] for line in RHYMES[name]) + "."


def rhyme(rng: random.Random, p: Person) -> str:
    """Two counting-out rhymes, said by heart."""
    mine = rng.choice([p.name, p.town.name, p.friend])
    other = rng.choice(list(RHYMES))
    title = other if other[0].isupper() else f"the {other}"
    return (
        f'{p.name} said the rhyme of {mine}: "{_told(mine)}" '
        f'And {p.friend} said the rhyme of {title}: "{_told(other)}"'
    )


def songs(rng: random.Random, p: Person) -> str:
    """A rhyme about a thing or an animal."""
    name = rng.choice(_NOUNS)
    return f'Then everybody sang the song of the {name}: "{_told(name)}"'


def recipe(rng: random.Random, p: Person) -> str:
    """How a dish is made."""
    food = rng.choice(lx.FOODS)
    return f'"To make {food}," said {p.friend}, "{RECIPES[food]}."'


def routine(rng: random.Random, p: Person) -> str:
    """What a character does on the days of an ordinary week."""
    q = world.PEOPLE[rng.choice(list(world.PEOPLE))]
    start, length = rng.randrange(7), rng.randint(4, 7)
    days = [(start + i) % 7 for i in range(length)]
    told = [
        f"on {lx.DAYS[day]} {q.he} {gr.present(verb)} {thing}"
        for day, (verb, thing) in ((day, ROUTINES[q.name][day]) for day in days)
    ]
    return f"This is the week of {q.name}: {', '.join(told)}."


def timetable(rng: random.Random, p: Person) -> str:
    """When one may leave a town."""
    town = rng.choice(lx.TOWNS)
    return f"{p.name} read the sign of {town}: {TIMETABLES[town]}."
