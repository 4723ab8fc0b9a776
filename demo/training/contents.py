"""What generated phone screens say: titles, keys and values by kind of screen, and invented words."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of screen: what its title, keys and values are. `values` are arguments of `make_value`."""

    titles: tuple[str, ...]
    keys: tuple[str, ...]
    unseen_keys: tuple[str, ...]
    values: tuple[str, ...]
    styles: tuple[str, ...] = ("right", "right", "colon", "space")


KINDS = (
    Kind(
        ("Settings", "Network", "Sound", "Display", "Profile", "General", "Security", "Storage"),
        ("Wifi", "Sound", "Light", "Mode", "Theme", "Radio", "Alarm", "Timer", "Volume", "Screen", "Camera", "Network", "Data",
         "Hotspot", "Storage", "Backup", "Update", "Language", "Region", "Account", "Profile", "Energy", "Phone", "Model"),
        ("Battery", "Bluetooth", "Location", "Privacy", "Keyboard", "Brightness"),
        ("switch", "switch", "percent", "word", "number"), ("right",),
    ),
    Kind(
        ("Receipt", "Wallet", "Orders", "Market", "Cafe Luna", "Corner Shop", "Menu", "Green Garden"),
        ("Coffee", "Tea", "Water", "Bread", "Milk", "Cake", "Soup", "Salad", "Rice", "Pizza", "Juice", "Apple", "Lemon", "Tip",
         "Tax", "Total", "Sum", "Bill", "Cash", "Card", "Change", "Discount", "Delivery", "Shipping", "Fee", "Cost", "Price"),
        ("Cheese", "Tomato", "Sandwich", "Cookie", "Voucher", "Invoice", "Subtotal"),
        ("price", "price", "dollars", "percent"),
    ),
    Kind(
        ("Messages", "Team chat", "Family", "Work", "School", "Contacts"),
        ("Anna", "Ben", "Carl", "Dora", "Emil", "Fred", "Greta", "Hugo", "Ida", "Jack", "Karl", "Lena", "Mike", "Nora", "Olaf",
         "Paul", "Rosa", "Sam", "Tina", "Vera"),
        ("Gloria", "Martin", "Oscar", "Sophie", "Walter"),
        ("words",), ("chat",),
    ),
    Kind(
        ("Ticket", "Boarding pass", "Bus ticket", "Concert", "Cinema", "Night train", "Trip", "Grand Hotel", "City Museum"),
        ("Gate", "Seat", "Train", "Class", "Ticket", "Row", "Door", "Lane", "Exit", "Flight", "Boarding", "Arrival", "Platform",
         "Station", "Coach", "Berth", "Visa", "Locker", "Date", "Day", "Bus", "Name", "City", "Room", "Floor", "Code"),
        ("Terminal", "Carriage", "Passenger", "Duration", "Baggage", "Reference"),
        ("time", "date", "code", "number", "name", "dollars"),
    ),
    Kind(
        ("My list", "Options", "Notes", "Tasks", "Library", "Weather", "Health", "Fitness", "Calendar"),
        ("Size", "Mail", "Street", "Color", "Hotel", "Rate", "Weight", "Status", "Level", "Score", "Sender", "Topic", "Month",
         "Year", "Zone", "Plan", "Payment", "Order", "Table", "Balance", "Credit", "Rent", "Speed", "Distance", "Height",
         "Owner", "Driver", "Doctor", "Team", "Court", "Parking"),
        ("Address", "Country", "Meeting", "Homework", "Temperature", "Quantity"),
        ("number", "word", "date", "time", "percent", "words"),
    ),
)  # fmt: skip
TITLES = tuple(title for kind in KINDS for title in kind.titles)
TRAIN_KEYS = tuple(dict.fromkeys(key for kind in KINDS for key in kind.keys))
UNSEEN_KEYS = tuple(key for kind in KINDS for key in kind.unseen_keys)
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
WORDS = tuple(
    "red blue green black white small large medium fast slow warm cold early late open closed full empty high low "
    "north south east west yes soon later never always today Monday Friday Sunday May June July Paris Rome Oslo "
    "Berlin Madrid Tokyo London see you ok thanks call me bring the book lunch home great fine".split()
)
ONSETS = (*"bcdfghjklmnprstvwz", "bl", "br", "ch", "cl", "cr", "dr", "fl", "fr", "gl", "gr", "ph", "pl", "pr", "qu", "sc", "sh",
          "sl", "sp", "st", "str", "sw", "th", "tr", "wh")  # fmt: skip
VOWELS = (*"aeiou" * 3, "ai", "au", "ea", "ee", "ie", "io", "oa", "oo", "ou", "ui", "y")
CODAS = (*"bdgklmnprstx", "ck", "ct", "ft", "ld", "ll", "lt", "mp", "nd", "ng", "nk", "nt", "rd", "rk", "rn", "rt", "ss", "st",
         "tt")  # fmt: skip
ANY_VALUE = ("number", "time", "invented", "dollars", "price", "date", "code", "percent", "word")


def invented_word(rng: random.Random) -> str:
    """A word of 1 to 14 letters that does not exist: it has to be read, not guessed."""
    if rng.random() < 0.2:
        word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randrange(1, 12)))
    else:
        syllables = rng.choice((1, 1, 2, 2, 2, 3, 3, 4, 5))
        word = "".join(
            (rng.choice(ONSETS) if rng.random() < 0.85 else "") + rng.choice(VOWELS)
            + (rng.choice(CODAS) if rng.random() < 0.3 else "") for _ in range(syllables)
        ) + rng.choice(("", "", "s", "n", "r", "e", "tion", "ment", "ing", "er", "ity"))  # fmt: skip
    return word[:14].capitalize()


def make_value(rng: random.Random, kind: str) -> str:
    """A value of one kind; see `Kind.values`."""
    if kind == "number":
        return str(rng.randrange(10 ** rng.randrange(1, 5)))
    if kind == "time":
        return f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    if kind == "name":
        return rng.choice(KINDS[2].keys)
    if kind == "invented":
        return invented_word(rng)
    if kind == "dollars":
        return f"${rng.randrange(200)}"
    if kind == "price":
        return f"{rng.randrange(100)}.{rng.randrange(100):02d}"
    if kind == "date":
        return f"{rng.randrange(1, 32)} {rng.choice(MONTHS)}"
    if kind == "code":
        return "".join(rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ0123456789") for _ in range(rng.randrange(2, 5)))
    if kind == "percent":
        return f"{rng.randrange(101)}%"
    if kind == "switch":
        return rng.choice(("On", "Off"))
    return " ".join(rng.sample(WORDS, rng.randrange(1, 3) if kind == "words" else 1))


def mixed_kind(rng: random.Random, unseen: bool) -> Kind:
    """What no real screen shows: any title over any keys, invented words among them. It has to be read, not guessed."""
    titles = tuple(invented_word(rng) if rng.random() < 0.3 else rng.choice(TITLES) for _ in range(2))
    keys = list(rng.sample(UNSEEN_KEYS, 9)) if unseen else []
    while len(keys) < 9:
        key = rng.choice(TRAIN_KEYS) if rng.random() < 0.4 else invented_word(rng)
        if len(key) > 1 and key not in keys and key not in UNSEEN_KEYS:
            keys.append(key)
    style = rng.choice(("right", "right", "colon", "space", "chat"))
    values = ("words",) if style == "chat" else ANY_VALUE
    if style != "chat" and rng.random() < 0.4:
        values = (*values, *["switch"] * len(values))
    return Kind(titles, tuple(keys), tuple(keys), values, (style,))
