"""Word lists that the generated conversations draw from."""

# ruff: noqa: SIM905

from __future__ import annotations

NAMES = """Ana Ben Cara David Ella Finn Greta Hugo Ida Jonas Kira Leo Mona Nils Olga Paul Rosa Sam Tara Uma
Viktor Wanda Yara Zoe Adam Bella Carl Dora Emil Flora Gina Hans Ines Jan Karin Lars Mia Nora Otto Petra Quentin
Rita Stefan Tina Ulrich Vera Walter Xenia Yusuf Amir Boris Clara Dina Erik Fatima Georg Hana Ivan""".split()
CITIES = """Oslo Paris Berlin Madrid Lisbon Rome Vienna Prague Dublin London Athens Cairo Tokyo Delhi Lima Quito
Bogota Boston Denver Austin Seattle Toronto Sydney Perth Zurich Geneva Warsaw Helsinki Stockholm Copenhagen
Brussels Amsterdam Hamburg Munich Milan Naples Porto Seville Lyon Nice Kyoto Osaka Seoul Beijing Shanghai
Hangzhou Manila Jakarta Nairobi Accra Lagos Tunis""".split()
COLOURS = "red blue green yellow black white brown grey orange purple pink silver golden violet".split()
OBJECTS = """lamp table chair window door garden bridge tower river boat train bottle basket mirror clock drum
guitar violin piano ladder hammer bucket blanket pillow carpet candle lantern compass map kettle spoon plate cup
bowl knife shelf cabinet drawer wallet coat hat glove boot scarf ring crown flag tent wagon cart wheel rope
anchor sail oar net box crate barrel sack purse letter book pencil brush canvas statue fountain gate fence wall
roof cellar attic stable barn mill oven stove desk sofa bench stool""".split()
ANIMALS = """whale seal otter heron eagle falcon sparrow robin badger fox wolf bear deer hare rabbit mouse
beaver turtle salmon trout dolphin walrus pelican gull crane swan goose duck raven owl lynx tiger lion zebra
camel donkey horse pony goat sheep""".split()
ADJECTIVES = """quiet old young small tall bright dark warm cold gentle brave clever lazy happy proud tired
hungry curious slow quick heavy light round narrow""".split()
PLACES = """harbour forest valley meadow market station library school castle village island beach mountain lake
field square museum theatre kitchen workshop""".split()
VERBS = "sleeps waits sings rests plays hides walks swims eats runs stands dreams".split()
CODE_WORDS = """amber cobalt crimson delta ember frost granite hazel indigo jasper karma lilac maple nectar onyx
pearl quartz raven saffron topaz umbra velvet willow xenon yellow zephyr acorn birch cedar daisy elm fern ginger
holly iris juniper kelp lotus mint nettle olive poppy rose sage thyme tulip violet walnut yarrow zinnia anchor
bishop castle dragon engine falcon galaxy hunter island jungle knight legend magnet needle orbit planet rocket
saddle temple vector wizard""".split()
FOODS = """apples pears plums bread cheese soup rice pasta honey grapes olives cherries carrots beans nuts
figs""".split()
JOBS = "baker teacher doctor pilot farmer sailor painter writer nurse cook driver gardener lawyer singer".split()
ITEMS = """shirt jacket bag watch phone camera bicycle umbrella notebook kettle vase rug helmet tent radio
printer""".split()
SYLLABLES = """ba be bi bo bu da de di do du fa fe fi fo ga ge go gu ka ke ki ko ku la le li lo lu ma me mi mo
mu na ne ni no nu pa pe pi po ra re ri ro ru sa se si so su ta te ti to tu va ve vi vo za ze zi zo""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
LANGUAGES = "French German Spanish Italian Dutch Polish Greek Turkish Swedish Danish".split()
CURRENCIES = "EUR USD GBP JPY CHF SEK".split()
