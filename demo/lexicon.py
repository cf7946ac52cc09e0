"""Words of the demo world.

Only raw material lives here. What is true of the world (who lives where, what things cost) is
decided in `world.py`, what is told about it in `scenes.py` and `lessons.py`.
"""

from __future__ import annotations


def words(text: str) -> list[str]:
    """Split a block of words; an underscore stands for a space within one entry."""
    return [word.replace("_", " ") for word in text.split()]


def pairs(text: str) -> list[tuple[str, str]]:
    """Split lines of the form `left / right`."""
    rows = [line.partition("/") for line in text.strip().splitlines()]
    return [(left.strip(), right.strip()) for left, _, right in rows]


GIRLS = words(
    "Ada Beth Clara Dora Edith Flora Greta Hilda Iris Jenny Kitty Lucy Mabel Nora Olive Polly "
    "Rosa Sally Tilda Violet Wilma Yvonne Zara Agnes"
)
BOYS = words(
    "Alfred Ben Caspar Daniel Edgar Felix George Hugo Ivan Jack Karl Leo Martin Ned Oscar Peter "
    "Robin Simon Tom Victor Walter Yorick Barnaby Toby"
)
TOWNS = words(
    "Applewick Bramblecombe Cobbleton Dunmarsh Elmstead Fernhollow Goosegate Hazelmouth Inkwell "
    "Juniper_Cross Kettleby Larkrise Mossford Netherbrook Oatfield Pebblestow Quillhaven Rookery "
    "Saltmere Thornby Underhill Violet_Bay Whistledown Yarrowdale"
)
RIVERS = words(
    "Alder Brindle Clover Dabble Ember Finch Gleam Heron Isk Jolly Kestrel Lull Murmur Nettle "
    "Otter Purl Quick Ripple Silver Tumble Umber Vesper Willow Yonder"
)
JOBS = words(
    "baker blacksmith carpenter doctor farmer fisher gardener tailor teacher potter miller "
    "sailor clockmaker beekeeper shepherd postman painter cobbler librarian cook juggler weaver "
    "lamplighter printer"
)
FOODS = words(
    "apple_pie pancakes onion_soup honey_cake roast_potatoes porridge plum_jam fried_fish "
    "mushroom_stew cheese_toast lentil_soup ginger_biscuits rice_pudding pea_soup carrot_salad "
    "walnut_bread cherry_tart dumplings noodles baked_beans"
)
COLOURS = words(
    "red blue green yellow purple orange white black brown grey pink silver golden turquoise"
)
INSTRUMENTS = words(
    "fiddle flute drum trumpet piano harp guitar accordion whistle cello banjo tambourine"
)
FEARS = words(
    "thunder spiders the_dark deep_water geese high_ladders loud_bells ghosts wasps empty_houses "
    "bulls snakes"
)
PET_NAMES = words(
    "Biscuit Button Captain Dumpling Fidget Ginger Jumper Marble Mitten Nibbles Patch Pepper "
    "Pickle Pudding Scamp Shadow Smudge Snowdrop Socks Sprout Teapot Thistle Tinker Waffle"
)
MONTHS = words(
    "January February March April May June July August September October November December"
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MATERIALS = words("wood iron brass clay glass wool leather straw paper copper silk stone tin")
GOODS = words(
    "apple basket bell blanket book boot bottle bowl box broom brush bucket button candle cap "
    "chair clock cloak coin comb cup cushion doll drum egg feather glove hammer hat jar jug kettle "
    "key kite knife lamp ladder lemon loaf map mirror mug nail needle onion orange pan pear pen "
    "pillow pipe plate purse ribbon ring rope sack saddle scarf shirt shoe shovel spoon stool "
    "table teapot ticket torch towel umbrella vase whistle"
)
ANIMALS = words(
    "badger bat bear bee cat cow crab crow deer dog donkey duck eagle fox frog goat goose hare hen "
    "hedgehog horse lamb lizard mole mouse otter owl ox pig pony rabbit rat robin seal sheep snail "
    "spider squirrel swan toad turtle wolf"
)
PETS = words("cat dog rabbit mouse goat hen duck pony turtle parrot hedgehog lizard")
SOUNDS = words(
    "grunt squeak growl buzz purr moo click caw bellow bark bray quack scream yelp croak bleat "
    "honk hum cluck snuffle neigh hiss whistle hoot snort chirp rustle sing howl sigh"
)
HOMES = words(
    "burrow cave den hive barn pond nest hollow_tree hedge stable sty cellar riverbank meadow "
    "chimney ditch wood_pile reed_bed haystack old_wall"
)
MEALS = words(
    "berries grass worms seeds fish nuts leaves flies honey roots beetles acorns moss snails corn "
    "clover mushrooms crumbs cabbage oats"
)
PLACES = words(
    "the_attic the_barn the_bridge the_cellar the_church the_garden the_harbour the_inn "
    "the_kitchen the_library the_market the_meadow the_mill the_orchard the_school the_shed "
    "the_stable the_station the_tower the_well the_bakery the_forest the_lighthouse the_churchyard"
)
SPOTS = words(
    "under_the_bed behind_the_door on_the_shelf in_the_drawer beside_the_stove on_the_windowsill "
    "inside_the_trunk under_the_stairs behind_the_curtain on_top_of_the_cupboard below_the_bench "
    "in_the_wheelbarrow next_to_the_oak_tree at_the_bottom_of_the_well"
)
MOODS = words(
    "happy sad proud tired angry curious nervous cheerful sleepy lonely calm brave hungry jealous "
    "grateful worried excited puzzled"
)
LOOKS = words("tall short thin round old young strong gentle quiet clever stubborn polite shy bold")
ADVERBS = words(
    "slowly quickly quietly carefully loudly gladly patiently happily softly at_once in_a_hurry "
    "without_a_word with_great_care as_usual all_alone with_a_smile"
)
SIZES = words("big small heavy light old new broken shiny dusty pretty plain strange")
WEATHER = words("rainy windy sunny foggy snowy stormy frosty cloudy warm cold")

OPPOSITES = pairs("""
hot / cold
wet / dry
big / small
full / empty
early / late
open / shut
loud / quiet
heavy / light
old / young
rich / poor
fast / slow
sweet / sour
hard / soft
clean / dirty
rough / smooth
deep / shallow
near / far
tall / short
thick / thin
wide / narrow
bright / dim
brave / timid
awake / asleep
lost / found
strong / weak
happy / sad
sharp / blunt
straight / crooked
""")

ACTIONS = pairs("""
mend / the fence
paint / the gate
bake / a loaf of bread
wash / the windows
feed / the hens
climb / the hill
carry / water from the well
sweep / the yard
write / a long letter
read / a book about ships
catch / a fish
plant / a row of beans
pick / a basket of plums
chop / the firewood
sell / eggs at the market
draw / a picture of the sea
sing / an old song
build / a wall of snow
dig / a deep hole
fly / a paper kite
ring / the church bell
sew / a button on a coat
drive / the cart to town
make / a pot of soup
find / a coin in the grass
buy / a pound of flour
milk / the cow
polish / the spoons
visit / an aunt
count / the sheep
learn / a poem by heart
hang / the washing on the line
light / the lamps
grow / a giant pumpkin
cross / the river by boat
teach / the parrot to talk
""")

CAUSES = pairs("""
the rain fell all night / the lane was full of mud
the wind was strong / the hat flew over the roof
the milk stood in the sun / it turned sour
nobody shut the gate / the goats ate the cabbages
the fire went out / the room grew cold
the rope was old / it snapped in the middle
the clock had stopped / everyone came late to supper
the ice was thin / no one dared to skate
the bucket had a hole / the water ran away
the baker overslept / there was no bread for breakfast
the snow was deep / the school stayed closed
the candle burned down / they had to talk in the dark
the cat jumped on the table / the vase fell and broke
the sun shone for a month / the stream dried up
the soup was too hot / nobody could eat it
the key was lost / they climbed in through the window
the bees were angry / everybody ran indoors
the bridge was broken / the cart had to turn back
the night was clear / they could see every star
the dog barked / the thief ran away
the paint was wet / every sleeve turned blue
the boat was heavy / it sat low in the water
the lamp had no oil / it would not burn
the apples were ripe / they dropped into the grass
""")
