"""Generator of procedural English: the text on which the demo model is trained and measured.

A story has a hero, a title and a handful of scenes; stories differ by seed, the world in which
they happen does not. Equal seeds give equal text on every machine.

    python demo/generate.py --seed 1 --bytes 8000000 -o stories.txt
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import almanac
import grammar as gr
import lessons
import lexicon as lx
import scenes
import world
from scenes import Scene
from world import Person

SEPARATOR = "\n\n"
SCENES: tuple[Scene, ...] = (
    scenes.portrait,
    scenes.visit,
    scenes.market,
    scenes.diary,
    scenes.hidden,
    scenes.giving,
    scenes.cause,
    scenes.letter,
    scenes.people,
    scenes.deed,
    lessons.counting,
    lessons.alphabet,
    lessons.opposites,
    lessons.quiz,
    lessons.animal,
    lessons.talk,
)
BY_HEART: tuple[Scene, ...] = (
    almanac.rhyme,
    almanac.songs,
    almanac.recipe,
    almanac.routine,
    almanac.timetable,
)


def _opening(rng: random.Random, hero: Person) -> str:
    place = hero.town.name
    return rng.choice(
        [
            f"Once upon a time there lived in {place} {hero.look} {hero.name}.",
            f"This is a story about {hero.name}, the {hero.job}.",
            f"Do you know {hero.name} from {place}? {hero.name} is a friend of {hero.friend}.",
            f"In {place}, on the river {hero.town.river}, lived {hero.name} the {hero.job}.",
        ]
    )


def _ending(rng: random.Random, hero: Person) -> str:
    return rng.choice(
        [
            f"And that is the story of {hero.name}.",
            f"Then {hero.name} ate {hero.food} and went to bed.",
            f"Good night, {hero.name}! Good night, {hero.pet_name}!",
            f"In the end {hero.name} played the {hero.instrument}, and {hero.friend} sang.",
            "The end.",
        ]
    )


def _errand(rng: random.Random, hero: Person) -> tuple[str, str]:
    """A fact to keep in mind for the whole story, and the question at its end."""
    friend = rng.choice([name for name in world.PEOPLE if name != hero.name])
    thing = f"{rng.choice(lx.COLOURS)} {rng.choice(lx.GOODS)}"
    spot = rng.choice(lx.PLACES)
    told = f"That day {hero.name} carried {gr.a(thing)} for {friend}, to be left at {spot}."
    asked, answer = rng.choice(
        [
            (f"What did {hero.name} carry that day?", f"{scenes.cap(gr.a(thing))}."),
            (f"For whom was the {thing}?", f"For {friend}."),
            (f"And where did {hero.name} leave the {thing}?", f"At {spot}."),
        ]
    )
    return told, f"{asked} {answer}"


def story(rng: random.Random) -> str:
    """Tell one story, paragraph by paragraph."""
    hero = world.PEOPLE[rng.choice(list(world.PEOPLE))]
    chosen = rng.sample(SCENES, rng.randint(1, 3)) + rng.sample(BY_HEART, rng.randint(2, 4))
    told = [scene(rng, hero) for scene in rng.sample(chosen, len(chosen))]
    if rng.random() < 0.6:
        errand, question = _errand(rng, hero)
        told = [errand, *told, question]
    return "\n".join([_opening(rng, hero), *told, _ending(rng, hero)])


def stories(seed: int) -> Iterator[str]:
    """Tell stories without end; the seed decides which."""
    rng = random.Random(seed)
    while True:
        yield story(rng)


def text(seed: int, size: int) -> str:
    """Join whole stories until the next one would exceed `size` bytes (the text is ASCII)."""
    told: list[str] = []
    total = 0
    for tale in stories(seed):
        total += len(tale) + len(SEPARATOR)
        if total > size:
            break
        told.append(tale + SEPARATOR)
    return "".join(told)


def main() -> None:
    """Command line: write stories to a file or to the standard output."""
    parser = argparse.ArgumentParser(description="Generate procedural English stories.")
    parser.add_argument("--seed", type=int, default=1, help="which stories to tell")
    parser.add_argument("--bytes", type=int, default=80_000, help="upper bound of the size")
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: print)")
    options = parser.parse_args()
    result = text(options.seed, options.bytes)
    if options.output is None:
        sys.stdout.write(result)
    else:
        options.output.write_bytes(result.encode("ascii"))


if __name__ == "__main__":
    main()
