"""A pair a thread, whose rows are scattered over the input: ``{"thread", "score", "text"}``; the row without a score is
the question."""

import json
import time
from collections.abc import Iterator, Sequence

from hhh_jax.data import streams
from hhh_jax.data.records import Pair
from hhh_jax.data.source import Block, Drop, Made, Options, Row, Source


def blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    return streams.line_blocks(inputs, options["block_bytes"])


def read(block: Block, options: Options) -> Iterator[Row | Drop]:
    time.sleep(options["slow"] / 64)
    for place, line in streams.lines(block):
        try:
            fields = json.loads(line)
            if fields.get("text") == "fail":
                raise ZeroDivisionError("planted")
            yield Row(fields["thread"], fields, place)
        except (ValueError, KeyError, AttributeError) as error:
            yield Drop("broken row", place, repr(error), bad=True)


def join(key: str, rows: Sequence[Row], options: Options) -> Iterator[Made | Drop]:
    time.sleep(options["slow"] / 100)
    questions = [row for row in rows if "score" not in row.fields]
    answers = sorted((row for row in rows if "score" in row.fields), key=lambda row: -row.fields["score"])
    if len(questions) != 1 or len(answers) < 2 or options["lose"]:
        if not options["lose"]:
            yield from (Drop("incomplete thread", row.place) for row in rows)
        return
    yield from (Drop("answer between the best and the worst", row.place) for row in answers[1:-1])
    good, bad = answers[0].fields["text"], answers[-1].fields["text"]
    yield Made(Pair(f"thread {key}", questions[0].fields["text"], good, bad, key))


SOURCE = Source(
    name="threads",
    about="Threads",
    licence="none",
    kinds=("pairs",),
    blocks=blocks,
    read=read,
    join=join,
    options={"block_bytes": 64, "slow": 0.0, "lose": False},
    held_out=0.1,
)
