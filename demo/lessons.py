"""Schoolroom scenes: counting, ordering, opposites, animals, and questions about the world.

Like the scenes in `scenes.py`, each takes the random source and the hero and returns a paragraph.
"""

from __future__ import annotations

import random

import grammar as gr
import lexicon as lx
import world
from grammar import number
from scenes import cap, friend_of
from world import Person


def counting(rng: random.Random, p: Person) -> str:
    """Counting up, down or in steps."""
    kind, start = rng.randrange(4), rng.randint(1, 60)
    thing = gr.plural(rng.choice(lx.GOODS + lx.ANIMALS))
    length = rng.randint(5, 9)
    if kind == 0:
        row = ", ".join(number(start + i) for i in range(length))
        return f'"{cap(row)}," counted {p.name}. There were {number(start + length - 1)} {thing}.'
    if kind == 1:
        row = ", ".join(number(i) for i in range(length, 0, -1))
        return f'"{cap(row)}, go!" shouted {p.name}, and the {thing} began to roll.'
    if kind == 2:
        step = rng.choice([2, 3, 5, 10])
        first = step * rng.randint(1, 3)
        row = ", ".join(str(first + step * i) for i in range(length))
        return f"{p.name} counted the {thing} in steps of {number(step)}: {row}."
    left, right = rng.randint(2, 30), rng.randint(2, 30)
    high, low = max(left, right), min(left, right)
    return (
        f"{p.name} had {number(left)} {thing} and {p.friend} gave {p.him} {number(right)} more, "
        f'so now {p.he} had {number(left + right)}. "{left} + {right} = {left + right}," wrote '
        f'{p.name} on the slate, and below it: "{high} - {low} = {high - low}."'
    )


def alphabet(rng: random.Random, p: Person) -> str:
    """Words put in alphabetical order."""
    things = rng.sample(lx.ANIMALS if rng.random() < 0.5 else lx.GOODS, rng.randint(4, 6))
    place = rng.choice(lx.PLACES)
    names = sorted(rng.sample(list(world.PEOPLE), rng.randint(4, 6)))
    if rng.random() < 0.4:
        return f"The guests came in the order of the alphabet: {gr.listing(names)}."
    return (
        f"In {place} {p.name} saw {gr.listing([gr.a(t) for t in things])}. In the order of the "
        f"alphabet they were: {', '.join(sorted(things))}."
    )


def opposites(rng: random.Random, p: Person) -> str:
    """A game of opposites."""
    rows = [pair if rng.random() < 0.5 else pair[::-1] for pair in rng.sample(lx.OPPOSITES, 3)]
    said = [f'"{cap(x)}," said {p.name}. "{cap(y)}," answered {p.friend}.' for x, y in rows[:2]]
    thing = rng.choice(lx.GOODS)
    return " ".join(said) + f" The {thing} was not {rows[2][0]}; it was {rows[2][1]}."


def _cases(rng: random.Random) -> tuple[str, str]:
    town = world.TOWNS[rng.choice(lx.TOWNS)]
    good = world.GOODS[rng.choice(lx.GOODS)]
    q = world.PEOPLE[rng.choice(list(world.PEOPLE))]
    beast = world.ANIMALS[rng.choice(lx.ANIMALS)]
    price = "penny" if good.price == 1 else "pennies"
    day, month = rng.randrange(7), rng.randrange(12)
    return rng.choice(
        [
            (f"Which river runs through {town.name}?", f"The {town.river}."),
            (f"When is the market in {town.name}?", f"On {town.market_day}."),
            (f"What do they make in {town.name}?", f"{cap(town.famous_for)}."),
            (f"Which town lies to the east of {town.name}?", f"{town.east}."),
            (f"How much is {gr.a(good.name)}?", f"{cap(number(good.price))} {price}."),
            (f"What is {gr.a(good.name)} made of?", f"Of {good.material}."),
            (f"Where do the best {gr.plural(good.name)} come from?", f"From {good.origin}."),
            (f"What does {q.name} like to eat?", f"{cap(q.food)}."),
            (f"What is {q.name} afraid of?", f"Of {q.fear}."),
            (f"What does {q.name} play?", f"The {q.instrument}."),
            (f"Where does {q.name} live?", f"In {q.town.name}."),
            (f"What is the {q.pet} of {q.name} called?", f"{q.pet_name}."),
            (f"Which colour does {q.name} like best?", f"{cap(q.colour)}."),
            (f"How old is {q.name}?", f"{cap(number(q.age))}."),
            (f"Where does the {beast.name} sleep?", f"In the {beast.home}."),
            (f"What does the {beast.name} eat?", f"{cap(beast.meal)}."),
            (f"Which day comes after {lx.DAYS[day]}?", f"{lx.DAYS[(day + 1) % 7]}."),
            (f"Which month comes before {lx.MONTHS[month]}?", f"{lx.MONTHS[month - 1]}."),
        ]
    )


def quiz(rng: random.Random, p: Person) -> str:
    """Questions about lasting facts, with the right answers."""
    told = []
    for asker, other in ((p.name, p.friend), (p.friend, p.name), (p.name, p.friend)):
        question, answer = _cases(rng)
        told.append(f'"{question}" asked {asker}. "{answer[:-1]}," said {other}.')
    return " ".join(told[: rng.randint(2, 3)])


def animal(rng: random.Random, p: Person) -> str:
    """What an animal does, one and many."""
    beast = world.ANIMALS[rng.choice(lx.ANIMALS)]
    many = gr.plural(beast.name)
    facts = [
        f"A {beast.home} is where the {beast.name} sleeps.".replace("A old", "An old"),
        f"{cap(many)} eat {beast.meal}.",
        f"When {gr.a(beast.name)} is cross, it will {beast.sound}.",
        f"No {beast.name} trusts {gr.a(beast.foe)}.",
    ]
    few = rng.randint(2, 9)
    told = rng.sample(facts, rng.randint(2, 3))
    seen = f"{p.name} saw {number(few)} {many} near {rng.choice(lx.PLACES)}."
    gone = rng.randint(1, few - 1)
    verb = "was" if few - gone == 1 else "were"
    left = f"{cap(number(gone))} ran away, and {number(few - gone)} {verb} left."
    return " ".join([seen, *told, left])


def talk(rng: random.Random, p: Person) -> str:
    """Two friends comparing what they like and own."""
    f = friend_of(p)
    return rng.choice(
        [
            f'"I like {p.food} best," said {p.name}. "And I like {f.food}," said {f.name}.',
            f'"My {p.pet} is called {p.pet_name}," said {p.name}. '
            f'"Mine is {gr.a(f.pet)}, and its name is {f.pet_name}," said {f.name}.',
            f'"I am {number(p.age)}," said {p.name}. "I am {number(f.age)}," said {f.name}. So '
            f"{(p if p.age >= f.age else f).name} was the older of the two."
            if p.age != f.age
            else f"{p.name} and {f.name} were of the same age.",
            f"{p.name} played the {p.instrument} and {f.name} played the {f.instrument}, until "
            f"the {rng.choice(lx.JOBS)} begged them to stop.",
            f'"Never mind {p.fear}," said {f.name}. "I am afraid of {f.fear} myself."',
        ]
    )
