"""Scenes: the short episodes from which the demo stories are put together.

Every scene takes the random source and the hero of the story and returns a paragraph. Scenes mix
lasting facts of the world with facts made up on the spot; the latter are asked for again at the
end of the scene, so that a reader (or a model) has to remember them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import grammar as gr
import lexicon as lx
import world
from grammar import number
from world import Person

Scene = Callable[[random.Random, Person], str]


def friend_of(person: Person) -> Person:
    """The lasting friend of a character."""
    return world.PEOPLE[person.friend]


def cap(text: str) -> str:
    """Start a sentence."""
    return text[0].upper() + text[1:]


def portrait(rng: random.Random, p: Person) -> str:
    """Lasting facts about a character."""
    facts = [
        f"{p.name} was the {p.job} of {p.town.name}.",
        f"{cap(p.his)} favourite colour was {p.colour}.",
        f"There was nothing {p.he} liked more to eat than {p.food}.",
        f"{cap(p.he)} played the {p.instrument}, though not always in tune.",
        f"{cap(p.he)} was afraid of {p.fear}.",
        f"{cap(p.he)} had a {p.pet} called {p.pet_name}.",
        f"{cap(p.his)} birthday was in {p.month}.",
        f"{cap(p.he)} was {number(p.age)} years old.",
        f"{cap(p.his)} best friend was {p.friend}.",
        f"Everybody said that {p.he} was {p.look}.",
    ]
    chosen = rng.sample(facts[1:], rng.randint(2, 5))
    return " ".join([facts[0], *chosen])


def visit(rng: random.Random, p: Person) -> str:
    """A walk to another town, with the lasting facts about it."""
    town = p.town if rng.random() < 0.4 else world.TOWNS[rng.choice(lx.TOWNS)]
    goods = town.famous_for
    facts = [
        f"{town.name} lies on the river {town.river}.",
        f"The market of {town.name} is held on {town.market_day}.",
        f"The people of {town.name} are known for their {goods}.",
        f"From afar {p.he} could see the {town.landmark} of {town.name}.",
        f"The road to the east leads from {town.name} to {town.east}.",
    ]
    way = rng.choice(["on foot", "by cart", "by boat", f"with {p.friend}", f"with {p.pet_name}"])
    return f"One day {p.name} went to {town.name} {way}. " + " ".join(
        rng.sample(facts, rng.randint(2, 4))
    )


def market(rng: random.Random, p: Person) -> str:
    """Buying things at their lasting prices, with sums."""
    first, second = (world.GOODS[name] for name in rng.sample(lx.GOODS, 2))
    many = rng.randint(2, 5)
    cost = first.price * many
    lines = [
        f"At the market {gr.a(first.name)} cost {number(first.price)} "
        f"{'penny' if first.price == 1 else 'pennies'}.",
        f"{p.name} bought {first.count(many)} and paid {number(cost)} pennies, "
        f"for {many} times {first.price} is {cost}.",
    ]
    total = first.price + second.price
    if rng.random() < 0.7:
        lines.append(
            f'"{cap(gr.a(first.name))} and {gr.a(second.name)}, please," said {p.friend}. '
            f'"That is {first.price} + {second.price} = {total} pennies," said the seller.'
        )
    purse = total + rng.randint(1, 20)
    if rng.random() < 0.5:
        lines.append(
            f"{p.friend} had {number(purse)} pennies in {friend_of(p).his} purse, "
            f"and {number(purse - total)} of them were left."
            if len(lines) == 3
            else f"The best {gr.plural(second.name)} are made of {second.material} "
            f"by the {second.maker} of {second.origin}."
        )
    return " ".join(lines)


def diary(rng: random.Random, p: Person) -> str:
    """Days of the week in order, and a question about one of them."""
    start, length = rng.randrange(7), rng.randint(3, 5)
    days = [lx.DAYS[(start + i) % 7] for i in range(length)]
    deeds = rng.sample(lx.ACTIONS, length)
    told = [
        f"On {d} {p.he} {gr.past(v)} {thing}." for d, (v, thing) in zip(days, deeds, strict=True)
    ]
    told[0] = told[0].replace(f" {p.he} ", f" {p.name} ", 1)
    asked = rng.randrange(length)
    verb, thing = deeds[asked]
    return (
        " ".join(told) + f' "What did you do on {days[asked]}?" asked {p.friend}. '
        f'"On {days[asked]} I {gr.past(verb)} {thing}," said {p.name}.'
    )


def hidden(rng: random.Random, p: Person) -> str:
    """Coloured things put somewhere, and looked for later."""
    things = rng.sample(lx.GOODS, rng.randint(2, 3))
    colours, spots = rng.sample(lx.COLOURS, len(things)), rng.sample(lx.SPOTS, len(things))
    told = [
        f"{'She' if p.girl else 'He'} put the {c} {t} {s}."
        for c, t, s in zip(colours, things, spots, strict=True)
    ]
    told[0] = f"{p.name} put the {colours[0]} {things[0]} {spots[0]}."
    i = rng.randrange(len(things))
    between = rng.choice(
        [
            f"Then {p.he} went to {rng.choice(lx.PLACES)} and forgot all about it.",
            f"After that {p.he} slept for {number(rng.randint(2, 12))} hours.",
            f"In the evening {p.friend} came home.",
        ]
    )
    where = f'"Where is the {things[i]}?" asked {p.friend}. "It is {spots[i]}," said {p.name}.'
    colour = (
        f'"What colour is the {things[i]} {spots[i]}?" asked {p.friend}. '
        f'"It is {colours[i]}," said {p.name}.'
    )
    return " ".join([*told, between, rng.choice([where, colour])])


def giving(rng: random.Random, p: Person) -> str:
    """A thing that changes hands, and the question who has it now."""
    thing = f"{rng.choice(lx.SIZES)} {rng.choice(lx.GOODS)}"
    chain = [p.name, *rng.sample([n for n in world.PEOPLE if n != p.name], rng.randint(2, 3))]
    other, mine = rng.sample(lx.GOODS, 2)
    told = [f"{p.name} found {gr.a(thing)} near {rng.choice(lx.PLACES)}."]
    for giver, taker in pairwise(chain):
        told.append(f"{giver} {rng.choice(['gave', 'lent', 'sold'])} it to {taker}.")
    told.append(f"In return {p.name} got {gr.a(other)}, but {p.he} had hoped for {gr.a(mine)}.")
    told.append(f"So who has the {thing} now? {chain[-1]} has it, and {p.name} has the {other}.")
    return " ".join(told)


def cause(rng: random.Random, p: Person) -> str:
    """Cause and effect, told forwards or backwards."""
    why, effect = rng.choice(lx.CAUSES)
    mood = rng.choice(lx.MOODS)
    return rng.choice(
        [
            f"Because {why}, {effect}. {p.name} was {mood} about it.",
            f"{cap(why)}, so {effect}, and {p.name} felt {mood}.",
            f'"Why was it that {effect}?" asked {p.name}. "Because {why}," said {p.friend}.',
            f"If it had not been that {why}, {p.name} would not have been so {mood}.",
        ]
    )


def letter(rng: random.Random, p: Person) -> str:
    """A letter in the present and the future tense."""
    f, (verb, thing), (verb2, thing2) = friend_of(p), *rng.sample(lx.ACTIONS, 2)
    lines = [
        f"It is {rng.choice(lx.WEATHER)} here in {p.town.name}.",
        f"{p.pet_name} the {p.pet} is {rng.choice(lx.MOODS)}.",
        f"I am {gr.gerund(verb)} {thing} today.",
        f"Tomorrow I will {verb2} {thing2}.",
        f"When you come, there will be {f.food} for you and {p.food} for me.",
        f"Do they still sell {f.town.famous_for} in {f.town.name}?",
    ]
    chosen = [line for line in lines if rng.random() < 0.6] or lines[:1]
    return f'{p.name} wrote: "Dear {f.name}! {" ".join(chosen)} Your friend, {p.name}."'


def people(rng: random.Random, p: Person) -> str:
    """Relative clauses about several characters."""
    told = []
    for name in rng.sample(list(world.PEOPLE), rng.randint(2, 3)):
        q = world.PEOPLE[name]
        verb, thing = rng.choice(lx.ACTIONS)
        clause = rng.choice(
            [
                f"who lives in {q.town.name}",
                f"whose {q.pet} is called {q.pet_name}",
                f"who plays the {q.instrument}",
                f"who is afraid of {q.fear}",
                f"whose birthday is in {q.month}",
                f"who likes {q.food}",
                f"whose best friend is {q.friend}",
            ]
        )
        deed = rng.choice(
            [
                f"{gr.past(verb)} {thing} {rng.choice(lx.ADVERBS)}",
                f"was {gr.gerund(verb)} {thing}",
                f"wanted to {verb} {thing}",
                f"did not {verb} {thing}",
                f"always {gr.present(verb)} {thing} on {rng.choice(lx.DAYS)}s",
            ]
        )
        told.append(f"{name}, {clause}, {deed}.")
    return " ".join(told)


def deed(rng: random.Random, p: Person) -> str:
    """Plain narration: what the hero did, and how it went."""
    (verb, thing), (verb2, thing2) = rng.sample(lx.ACTIONS, 2)
    f, mood = friend_of(p), rng.choice(lx.MOODS)
    return rng.choice(
        [
            f"It was a {rng.choice(lx.WEATHER)} morning. {p.name} {gr.past(verb)} {thing} "
            f"{rng.choice(lx.ADVERBS)} while {f.name} {gr.past(verb2)} {thing2}.",
            f'"Shall we {verb} {thing}?" asked {f.name}. "No," said {p.name}, "first I must '
            f'{verb2} {thing2}." So they {gr.past(verb2)} {thing2}, and {f.name} was {mood}.',
            f"Nobody in {p.town.name} could {verb} {thing} as well as {p.name}. "
            f"Every day {p.he} {gr.past(verb)} {thing}, and it made {p.him} {mood}.",
            f"{p.name} had never {gr.past('try')} to {verb} {thing} before. {f.name}, the "
            f"{f.job}, showed {p.him} how, and soon both were {gr.gerund(verb)} {thing}.",
        ]
    )
