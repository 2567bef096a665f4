"""Generated passages whose last word the rest gives away, in the manner of LAMBADA.

    Ann has a cap, Tom a pie and Eve a harp. Somebody plays the harp, somebody eats the pie and somebody wears the cap

The verb says of which kind the word is, and the passage has one of that kind. Models of a few thousand parameters learn
that in part. Splits share no passage, and no passage of one is one of another with its people exchanged.
"""

from __future__ import annotations

import functools
import random

from hhh_jax.data.records import Document, Prompt
from hhh_jax.data.shards import fraction

NAME = "passages"
SIZES = {"train": 6000, "validation": 600, "test": 600}
OBJECTS = 3  # of a passage, each of another kind
KINDS = {
    "eats": "apple bread carrot cheese egg pear pie soup",
    "wears": "belt boot cap coat hat ring scarf shirt",
    "feeds": "bird cat cow dog goat hen horse pig",
    "reads": "book card letter map menu note paper poem",
    "drives": "bus cab car cart jeep taxi train truck",
    "plays": "banjo cello drum flute guitar harp horn piano",
}
PEOPLE = ("Ann", "Bob", "Eve", "Ida", "Kim", "Leo", "Sam", "Tom")


@functools.cache
def problems(split: str) -> tuple[Prompt, ...]:
    """The passages of a split without their last word (and the space before it), which is `meta`'s target."""
    rng = random.Random(NAME)
    found: dict[str, list[Prompt]] = {name: [] for name in SIZES}
    seen = set()
    while any(len(found[name]) < size for name, size in SIZES.items()):
        verbs = rng.sample(sorted(KINDS), OBJECTS)
        words = [rng.choice(KINDS[verb].split()) for verb in verbs]
        *_, asked = order = rng.sample(range(OBJECTS), OBJECTS)
        key = " ".join([*sorted(words), verbs[asked]])
        place = fraction(key)
        name = "test" if place < 0.1 else "validation" if place < 0.2 else "train"
        if key in seen or len(found[name]) >= SIZES[name]:
            continue
        seen.add(key)
        people = rng.sample(PEOPLE, OBJECTS)
        owned = [f"{person} a {word}" for person, word in zip(people, words, strict=True)]
        done = [f"omebody {verbs[i]} the {words[i]}" for i in order]
        text = f"{people[0]} has a {words[0]}, {owned[1]} and {owned[2]}. S{done[0]}, s{done[1]} and s{done[2]}"
        text, _, target = text.rpartition(" ")
        found[name].append(Prompt(f"{NAME}:{key}", text, key, {"target": target}))
    return tuple(found[split])


def documents(split: str) -> list[Document]:
    """Whole passages, for language models."""
    return [Document(p.id, f"{p.text} {p.meta['target']}", p.group) for p in problems(split)]
