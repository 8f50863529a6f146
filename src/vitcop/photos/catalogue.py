"""What can lie in a scene: nouns, each of a kind, and how they are spoken of."""

KINDS = {
    "animal": (
        "bear", "bee", "bison", "butterfly", "camel", "cat", "cow", "crab", "deer", "dog", "dolphin", "duck",
        "elephant", "fish", "flamingo", "fox", "frog", "giraffe", "goat", "gorilla", "hedgehog", "horse",
        "kangaroo", "koala", "lion", "lobster", "mouse", "octopus", "owl", "parrot", "peacock", "penguin",
        "pig", "rabbit", "rooster", "sheep", "spider", "tiger", "turkey", "turtle", "whale", "zebra",
    ),
    "fruit": (
        "apple", "avocado", "banana", "cherries", "grapes", "kiwi", "lemon", "mango", "orange", "pear",
        "pineapple", "strawberry", "watermelon",
    ),
    "vegetable": (
        "broccoli", "carrot", "corn", "eggplant", "garlic", "lettuce", "mushroom", "onion", "pepper",
        "potato", "pumpkin", "tomato",
    ),
    "vehicle": (
        "balloon", "bicycle", "bus", "car", "helicopter", "plane", "rocket", "ship", "tractor", "train",
        "tricycle", "truck",
    ),
    "instrument": ("accordion", "drum", "guitar", "trumpet", "violin"),
    "tool": ("brush", "hammer", "ladder", "saw", "scissors", "shovel", "wrench"),
    "clothing": ("boot", "cap", "glove", "hat", "jacket", "jeans", "scarf", "shirt", "sock"),
    "thing": (
        "ball", "bell", "bulb", "camera", "candle", "chair", "clock", "earth", "flower", "key", "mailbox",
        "moon", "mug", "pizza", "rose", "skull", "teapot", "toilet", "tree", "trophy",
    ),
}  # fmt: skip
NOUNS = {noun: kind for kind, nouns in KINDS.items() for noun in nouns}
ASKED_KINDS = tuple(kind for kind in KINDS if kind != "thing")
"""Kinds that a question may name."""

SEVERAL = ("cherries", "glove", "grapes", "sock")
"""Nouns of which one cut-out shows more than one, so that nobody asks how many there are."""
SORTS = {"flower": ("rose",), "hat": ("cap",)}
"""What some would say of other nouns as well, so that nobody asks whether it is there where these are."""

_PLURALS = {
    "broccoli": "broccoli", "corn": "corn", "deer": "deer", "fish": "fish", "garlic": "garlic", "grapes": "grapes",
    "jeans": "jeans", "lettuce": "lettuce", "scissors": "scissors", "sheep": "sheep", "cherries": "cherries",
    "mango": "mangoes", "mouse": "mice", "potato": "potatoes", "scarf": "scarves", "tomato": "tomatoes",
}  # fmt: skip


def plural(noun: str) -> str:
    """The plural of a noun of the catalogue."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "sh", "ch")) else "s")


def is_there(noun: str) -> str:
    """What asks for it."""
    if noun in ("cherries", "grapes", "jeans", "scissors"):
        return f"are there {noun}"
    if noun in ("broccoli", "corn", "garlic", "lettuce"):
        return f"is there {noun}"
    return f"is there {'an' if noun[0] in 'aeiou' else 'a'} {noun}"
