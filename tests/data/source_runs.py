"""A source's three functions in a row, without the engine: blocks, rows, records."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from hhh_jax.data.records import Record
from hhh_jax.data.source import Block, Drop, Made, Row, Source
from hhh_jax.data.streams import lines


@dataclasses.dataclass
class Run:
    """What came out: `read` rows went in, `records` use `kept` of them, `drops` are the others.

    `splits` has what each record's publisher says.
    """

    records: list[Record]
    drops: list[Drop]
    read: int
    splits: list[str | None]

    def of(self, split: str | None) -> list[Record]:
        return [record for record, named in zip(self.records, self.splits, strict=True) if named == split]

    @property
    def kept(self) -> int:
        return self.read - len(self.drops)

    @property
    def reasons(self) -> Counter[str]:
        return Counter(drop.reason for drop in self.drops)

    def places(self, reason: str) -> list[str]:
        return [drop.place for drop in self.drops if drop.reason == reason]


def settings(source: Source, **options) -> dict:
    """The source's options as the engine gives them."""
    assert set(options) <= set(source.options) | {"seed", "kind"}
    return dict(source.options) | {"seed": 0, "kind": source.kinds[0]} | options


def run(source: Source, inputs: Sequence[str], **options) -> Run:
    """Everything that the source makes of the inputs."""
    return run_blocks(source, source.blocks([str(name) for name in inputs], settings(source, **options)), **options)


def run_blocks(source: Source, blocks: Iterable[Block], **options) -> Run:
    chosen = settings(source, **options)
    drops, by_key, read = [], {}, 0
    for block in blocks:
        for row in source.read(block, chosen):
            read += 1
            if isinstance(row, Drop):
                drops.append(row)
            else:
                by_key.setdefault(row.key, []).append(Row(row.key, json.loads(json.dumps(row.fields)), row.place))
    records, splits = [], []
    for key in sorted(by_key):
        for made in source.join(key, by_key[key], chosen):
            if isinstance(made, Made):
                records.append(made.record)
                splits.append(made.split)
            else:
                drops.append(made)
    assert len({record.id for record in records}) == len(records)
    assert all(drop.place for drop in drops)
    return Run(records, drops, read, splits)


def line_by_line(block: Block) -> Iterator[Block]:
    """A block of lines, each a block of its own."""
    for number, (place, line) in enumerate(lines(block), block.first):
        yield dataclasses.replace(block, place=place, data=line + b"\n", first=number)
