"""The demo world: arbitrary facts that never change from one story to the next.

They are drawn once from a fixed seed, whatever the seed of the stories. A model can only predict
them by storing them in its weights, which is what makes damage to the weights measurable.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import grammar as gr
import lexicon as lx


@dataclass(frozen=True)
class Town:
    """A town and what it is known for."""

    name: str
    river: str
    market_day: str
    famous_for: str
    landmark: str
    east: str


@dataclass(frozen=True)
class Person:
    """A recurring character with lasting attributes."""

    name: str
    girl: bool
    town: Town
    job: str
    food: str
    colour: str
    instrument: str
    fear: str
    pet: str
    pet_name: str
    month: str
    look: str
    friend: str
    age: int

    @property
    def he(self) -> str:
        """Subject pronoun."""
        return "she" if self.girl else "he"

    @property
    def his(self) -> str:
        """Possessive determiner."""
        return "her" if self.girl else "his"

    @property
    def him(self) -> str:
        """Object pronoun."""
        return "her" if self.girl else "him"


@dataclass(frozen=True)
class Good:
    """A thing to be bought, with its fixed price in pennies."""

    name: str
    price: int
    material: str
    maker: str
    origin: str

    def count(self, number: int) -> str:
        """The noun after a spelled number."""
        return f"{gr.number(number)} {self.name if number == 1 else gr.plural(self.name)}"


@dataclass(frozen=True)
class Animal:
    """A wild or farm animal and its habits."""

    name: str
    sound: str
    home: str
    meal: str
    foe: str


def _make() -> tuple[dict[str, Town], dict[str, Person], dict[str, Good], dict[str, Animal]]:
    rng = random.Random(20240229)
    pick = rng.choice
    rivers = rng.sample(lx.RIVERS, len(lx.RIVERS))
    towns: dict[str, Town] = {}
    ring = rng.sample(lx.TOWNS, len(lx.TOWNS))
    for index, name in enumerate(ring):
        towns[name] = Town(
            name=name,
            river=rivers[index],
            market_day=pick(lx.DAYS),
            famous_for=gr.plural(pick(lx.GOODS)),
            landmark=f"{pick(lx.COLOURS)} {pick(['tower', 'bridge', 'mill', 'church', 'inn'])}",
            east=ring[(index + 1) % len(ring)],
        )
    names = lx.GIRLS + lx.BOYS
    circle = rng.sample(names, len(names))
    people: dict[str, Person] = {}
    for index, name in enumerate(circle):
        people[name] = Person(
            name=name,
            girl=name in lx.GIRLS,
            town=towns[pick(lx.TOWNS)],
            job=pick(lx.JOBS),
            food=pick(lx.FOODS),
            colour=pick(lx.COLOURS),
            instrument=pick(lx.INSTRUMENTS),
            fear=pick(lx.FEARS),
            pet=pick(lx.PETS),
            pet_name=pick(lx.PET_NAMES),
            month=pick(lx.MONTHS),
            look=pick(lx.LOOKS),
            friend=circle[(index + 1) % len(circle)],
            age=rng.randint(7, 80),
        )
    goods = {
        name: Good(name, rng.randint(1, 20), pick(lx.MATERIALS), pick(lx.JOBS), pick(lx.TOWNS))
        for name in lx.GOODS
    }
    animals = {
        name: Animal(name, pick(lx.SOUNDS), pick(lx.HOMES), pick(lx.MEALS), pick(lx.ANIMALS))
        for name in lx.ANIMALS
    }
    return towns, people, goods, animals


TOWNS, PEOPLE, GOODS, ANIMALS = _make()
