"""Which pictures show which nouns, and which of them training never sees.

Photographs are the stamps of Debian's ``tuxpaint-stamps-default`` (GPL-2: read where they are installed, never copied).
Drawings come from npm packages: ``@lobehub/fluent-emoji-3d`` (Microsoft's Fluent Emoji, MIT), which are rendered in
three dimensions, and which the package ships for its suite of questions; ``emoji-datasource-google`` (Noto Emoji,
Apache-2.0); and those of ``@iconify-json``: ``noto-v1`` (Apache-2.0), ``fluent-emoji`` and ``fluent-emoji-flat`` (MIT),
``emojione`` (CC BY 4.0), ``openmoji`` (CC BY-SA 4.0), and ``twemoji`` (CC BY 4.0), which is held out. An entry is
``noun: stamps | emoji``; a stamp with a star is held out.
"""

STAMPS = """
bear: bear european-bear* | bear
bee: bee | bee
bison: bison | bison
butterfly: | butterfly
camel: dromedary camel* | dromedary_camel camel
cat: | cat2 cat
cow: cow bull cow_white* | cow2
crab: | crab
deer: deer doe wapiti* | deer
dog: dog dingo* | dog2 dog
dolphin: dolphin | dolphin
duck: duck gander drake* | duck
elephant: elephant | elephant
fish: clownfish butterflyfish moonwrasse stripedfish* | tropical_fish fish
flamingo: pink_flamingo | flamingo
fox: fox | fox_face
frog: frog frog-1* | frog
giraffe: giraffe | giraffe_face
goat: goat mountaingoat* | goat
gorilla: gorilla chimp* | gorilla
hedgehog: hedgehog | hedgehog
horse: horse donkey* | racehorse horse
kangaroo: kangaroo | kangaroo
koala: koala | koala
lion: lion-2 lion* | lion_face
lobster: lobster | lobster
mouse: mouse rat* | mouse2
octopus: | octopus
owl: owl | owl
parrot: adelaide-rosella rainbow-lorikeet* | parrot
peacock: peacock | peacock
penguin: penguin magellanic_penguin little-penguin* | penguin
pig: pig pig_golden pig_golden2* | pig2 pig
rabbit: rabbit rabbit-2 rabbit_little* | rabbit2 rabbit
rooster: rooster hen chicken_profile* | rooster
sheep: sheep ram sheep_lamb* | sheep
spider: spider | spider
tiger: tiger tiger_sumatran* | tiger2 tiger
turkey: turkey | turkey
turtle: | turtle
whale: whale | whale whale2
zebra: zebra | zebra_face
apple: apple_red apple_green apple_fuji apple_granny_smith apple_sierra_beauty* | apple green_apple
avocado: avocado | avocado
banana: banana | banana
cherries: Cherry_Stella | cherries
grapes: grapes | grapes
kiwi: kiwi | kiwifruit
lemon: lemon | lemon
mango: mango | mango
orange: orange orange_seville mandarine* | tangerine
pear: pear | pear
pineapple: pineapple | pineapple
strawberry: strawberry Strawberry2* | strawberry
watermelon: | watermelon
broccoli: broccoli | broccoli
carrot: carrot | carrot
corn: corn | corn
eggplant: food/vegetables/eggplant plants/eggplant* | eggplant
garlic: garlic garlics* | garlic
lettuce: lettuce redlettuce* | leafy_green
mushroom: cep cep-1 food/vegetables/mushroom cep-2* | mushroom
onion: onion | onion
pepper: yellowpepper pepper* | bell_pepper
potato: potato yam* | potato
pumpkin: pumpkin_small pattypan_squash | jack_o_lantern
tomato: tomato | tomato
balloon: balloon360 |
bicycle: | bike
bus: green_korean_bus | bus
car: beetle sportscar2 sedan* | car blue_car
helicopter: | helicopter
plane: 747 f22_raptor* | airplane
rocket: | rocket
ship: chineseJunk walnutBoat* | boat
tractor: wheel_tractor | tractor
train: | steam_locomotive train
tricycle: pink_tricycle |
truck: truck dumper garbagetruck firetruck* | truck
accordion: | accordion
drum: drum_tomtom_floor drumkit* | drum_with_drumsticks
guitar: guitar2 guitar_classical guitar_electric_bass guitar_electric* | guitar
trumpet: trumpet | trumpet
violin: violin cello* | violin
brush: paintbrush_large | lower_left_paintbrush
hammer: hammer mallet_metal* | hammer
ladder: | ladder
saw: saw | carpentry_saw
scissors: scissors_small_open scissors_small_closed* | scissors
shovel: spade | shovel
wrench: wrench wrench_plumbers wrench_adjustable* | wrench
boot: | boot
cap: t_baseballcap | billed_cap
glove: t_glove | gloves
hat: blue_fedora green_fedora tophat feathered_hat sombrero* | tophat womans_hat
jacket: t_jacket | coat
jeans: t_pants | jeans
scarf: t_scarf | scarf
shirt: t_tshirt t_shirt t_poloshirt* | shirt
sock: t_sock | socks
ball: soccer basketball tennis_ball football* | soccer basketball
bell: | bell
bulb: Lightbulb | bulb
camera: camera_35mm | camera
candle: candle holiday_candle* | candle
chair: | chair
clock: | alarm_clock mantelpiece_clock
earth: 3_earth | earth_africa earth_americas
flower: flower1 flower2 flower3 flower4 flower5 flower6 daffodil flower7* flower8* | blossom hibiscus
key: key | key old_key
mailbox: usps_mailbox uk_post_box* | mailbox
moon: moon_full moon_3qt* | full_moon
mug: mug | coffee
pizza: pizza | pizza
rose: rose | rose
skull: skull |
teapot: teapot | teapot
toilet: toilet | toilet
tree: holm_oak tree336 birch liberia-palm* | deciduous_tree
trophy: trophy_cup | trophy
"""


class Entry:
    """The pictures of one noun, by name."""

    def __init__(self, line: str) -> None:
        self.noun, _, names = line.partition(":")
        stamps, _, emoji = names.partition("|")
        self.stamps = [name for name in stamps.split() if not name.endswith("*")]
        self.held_out = [name[:-1] for name in stamps.split() if name.endswith("*")]
        self.emoji = emoji.split()


ENTRIES = {entry.noun: entry for entry in map(Entry, STAMPS.strip().splitlines())}
