"""A document a line: ``NAME<tab>TEXT``."""

from collections.abc import Iterator, Sequence

from hhh_jax.data import streams
from hhh_jax.data.records import Document
from hhh_jax.data.source import Block, Drop, Options, Row, Source, as_row, one_by_one


def blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    return streams.line_blocks(inputs, options["block_bytes"])


def read(block: Block, options: Options) -> Iterator[Row | Drop]:
    for place, line in streams.lines(block):
        name, tab, text = line.partition(b"\t")
        if not tab:
            yield Drop("no tab", place, line[:20].decode(errors="surrogateescape"), bad=True)
            continue
        try:
            yield as_row(Document(name.decode(), text.decode(), name.decode()), None, place)
        except UnicodeDecodeError as error:
            yield Drop("not UTF-8", place, f"byte {error.start + 1}", bad=True)


SOURCE = Source(
    name="notes",
    about="Notes",
    licence="none",
    kinds=("documents",),
    blocks=blocks,
    read=read,
    join=one_by_one,
    options={"block_bytes": 4096},
    held_out=0.1,
)
