"""Input, opened and cut: decompression, hashes, and blocks that end where rows end.

Sources use `line_blocks` (a row a line), `file_blocks` (whole small files) or, where rows are cut otherwise,
`open_input`; `lines` walks the lines of a block. What is read and what is left out on the way is entered in the
current `Journal`, so that every input's hash and every lost row reach the data card.
"""

from __future__ import annotations

import bz2
import contextlib
import contextvars
import errno
import hashlib
import io
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hhh_jax.data.source import Block, Drop
from hhh_jax.errors import UserError

BLOCK_BYTES = 16 * 2**20
MAX_LINE = 64 * 2**20  # bytes; also the most of a file that is taken whole
BOMB_BYTES, BOMB_RATIO = 64 * 2**20, 500  # the most repetitive text that people publish stays below 200
STDIN = "-"
_CHUNK = 2**20
_FEED = 2**16  # of compressed bytes
_ZSTD_FEED = 2048  # its decoder can't be told to stop; 4 bytes can make 128 KiB
_ARCHIVES = {b"7z\xbc\xaf\x27\x1c": "7z x -so", b"PK\x03\x04": "unzip -p", b"Rar!": "unrar p -inul"}
_DAMAGE = "broken compression"


@dataclass
class Journal:
    """What is read, and what is left out before any worker sees it.

    Attributes:
      bad_rows: ``error`` makes damage that loses rows a UserError, ``drop`` counts it and goes on.
      inputs: ``{name, bytes, sha256}`` of every input, as stored (compressed), in the order in which they were done;
        ``damage`` says why one could not be read to its end, and how much of it was not.
      drops: rows left out.
      raw_bytes: read so far, of all inputs.
    """

    bad_rows: str = "error"
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    drops: list[Drop] = field(default_factory=list)
    raw_bytes: int = 0

    def drop(self, reason: str, place: str, detail: str = "") -> None:
        """Counts a damaged row as left out; a UserError where `bad_rows` is ``error``."""
        if self.bad_rows == "error":
            raise UserError(f"{place}: {reason}{': ' if detail else ''}{detail}; --bad_rows=drop leaves such rows out")
        self.drops.append(Drop(reason, place, detail, bad=True))

    def enter(self, name: str, **facts: Any) -> None:
        """Adds to what is known of an input."""
        self.inputs.setdefault(name, {"name": name}).update(facts)

    def end_early(self, name: str, reason: str, place: str, detail: str) -> None:
        """Counts one damaged row as left out where an input can't be read on, and enters that it was not."""
        self.drop(reason, place, detail)
        self.enter(name, damage=f"{reason}: {detail}")


_JOURNAL: contextvars.ContextVar[Journal | None] = contextvars.ContextVar("journal", default=None)


@contextlib.contextmanager
def journal(bad_rows: str = "error") -> Iterator[Journal]:
    """Makes a new journal the current one, for what is read inside."""
    new = Journal(bad_rows)
    token = _JOURNAL.set(new)
    try:
        yield new
    finally:
        _JOURNAL.reset(token)


def current_journal() -> Journal:
    """The journal that reading is entered in; outside of `journal` one that nobody sees."""
    return _JOURNAL.get() or Journal()


class Damage(Exception):
    """Compressed data that can't be read on; the message says why, `left` how many bytes at hand were not decoded."""

    def __init__(self, why: str, left: int = 0) -> None:
        super().__init__(why)
        self.left = left


class Input(io.RawIOBase):
    """A decompressed input; see `open_input`. For lines or small reads wrap it in `io.BufferedReader`.

    Damage to the compressed data is a UserError, or with ``bad_rows=drop`` counted once, for the row that it tears,
    and entered with the number of stored bytes that were not decoded; the data then ends, `broken` is True, and the
    reader leaves out what follows the last whole row.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.broken = False
        self._journal = current_journal()
        self._raw = _Raw(name, self._journal)
        try:
            self._chunks = self._checked(_decompressed(self._raw))
        except BaseException:
            self._raw.close()
            raise
        self._chunk = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._take(len(buffer))
        buffer[: len(part)] = part
        return len(part)

    def read_full(self, size: int) -> bytes:
        """`size` bytes, or what is left of the input."""
        parts = []
        while size and (part := self._take(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _take(self, size: int) -> memoryview:
        while not self._chunk and (chunk := next(self._chunks, None)) is not None:
            self._chunk = memoryview(chunk)
        part, self._chunk = self._chunk[:size], self._chunk[size:]
        return part

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()

    def _checked(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        done = 0
        try:
            for chunk in chunks:
                done += len(chunk)
                if done > BOMB_BYTES and done > BOMB_RATIO * self._raw.position:
                    raise UserError(
                        f"{self._raw.place()}: {self._raw.position} bytes make more than {done // 2**20} MiB: a "
                        "decompression bomb, not text; if you want it all the same, decompress it and give --input=-"
                    )
                yield chunk
        except Damage as error:
            self.broken = True
            place, done, detail = self._raw.place(), self._raw.position - error.left, str(error)
            if self._journal.bad_rows == "drop":
                while self._raw.read(_CHUNK):  # what is left, for its hash
                    pass
                if unread := self._raw.position - done:
                    detail += f"; up to {unread:,} of the {self._raw.position:,} stored bytes were not read"
            self._journal.end_early(self.name, _DAMAGE, place, detail)


def open_input(name: str) -> Input:
    """Opens a file, or standard input for ``-``, decompressing gzip, bzip2, zstd and xz by their first bytes.

    Raises UserError for what can't be opened and for archives that need another tool.
    """
    return Input(name)


def line_blocks(inputs: Sequence[str], size: int = BLOCK_BYTES) -> Iterator[Block]:
    """The inputs in order, in blocks of whole lines of about `size` bytes; `first` counts lines from 1.

    A line of more than MAX_LINE bytes is left out and counted. A byte-order mark is removed; the last line need not
    end. Blocks depend on the content only, not on how it is compressed or how a pipe delivers it.
    """
    _find_all(inputs)
    for name in inputs:
        with open_input(name) as stream:
            yield from _cut_lines(stream, size)


def _find_all(inputs: Sequence[str]) -> None:
    """Raises UserError if one is missing, before hours are spent on those in front of it."""
    for name in inputs:
        if name != STDIN and not os.path.exists(name):
            raise UserError(f"{name}: can't be opened: {os.strerror(errno.ENOENT)}")


def _cut_lines(stream: Input, size: int) -> Iterator[Block]:
    name, number, tail, overlong = stream.name, 1, b"", False
    data = stream.read_full(size)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{name}: UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {name} | ... --input=-")
    data = data.removeprefix(b"\xef\xbb\xbf")
    while data:
        first_end = data.find(b"\n") + 1
        if not overlong and len(tail) + (first_end or len(data)) > MAX_LINE + 1:
            current_journal().drop(f"line longer than {MAX_LINE // 2**20} MiB", f"{name}:{number}")
            tail, overlong = b"", True
        if overlong and first_end:  # the end of the line that is left out
            data, number, overlong = data[first_end:], number + 1, False
        if not overlong:
            end = data.rfind(b"\n") + 1
            if end:
                block = Block(f"{name}:{number}", name, tail + data[:end], number)
                yield block
                number, tail, data = number + block.data.count(b"\n"), b"", data[end:]
            tail += data
        data = stream.read_full(size)
    if tail and not stream.broken:
        yield Block(f"{name}:{number}", name, tail, number)


def lines(block: Block) -> Iterator[tuple[str, bytes]]:
    """(place, line without its end) of every line of a block of `line_blocks`."""
    for number, line in enumerate(io.BytesIO(block.data), block.first):
        yield f"{block.name}:{number}", line.rstrip(b"\r\n")


def file_blocks(inputs: Sequence[str]) -> Iterator[Block]:
    """Whole files as blocks, `name` and `place` their path; `hhh_jax.data.rows.paths` finds those of folders.

    A file of more than MAX_LINE bytes is left out and counted.
    """
    _find_all(inputs)
    for name in inputs:
        with open_input(name) as stream:
            data = stream.read_full(MAX_LINE + 1)
            if len(data) > MAX_LINE:
                current_journal().drop(f"file larger than {MAX_LINE // 2**20} MiB", name)
            elif not stream.broken:
                yield Block(name, name, data)


def note_file(path: str) -> None:
    """Enters a file that another library reads (parquet) in the journal; reads it once, for its hash."""
    with contextlib.closing(_Raw(path, current_journal())) as raw:
        while raw.read(_CHUNK):
            pass


def note_input(name: str, size: int, sha256: str) -> None:
    """Enters an input that is no file, as a dataset of a hub, in the journal."""
    current_journal().enter(name, bytes=size, sha256=sha256)


class _Raw:
    """The stored bytes of an input, counted and hashed; entered in the journal when closed."""

    def __init__(self, name: str, journal: Journal) -> None:
        self.name, self.position, self._journal, self._hash = name, 0, journal, hashlib.sha256()
        if name == STDIN and sys.stdin.isatty():
            raise UserError("--input=-: standard input is a terminal; pipe the data in, as 7z x -so FILE.7z | ...")
        try:
            self._descriptor = os.dup(sys.stdin.fileno()) if name == STDIN else os.open(name, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{name}: can't be opened: {error.strerror}") from None

    def read(self, size: int) -> bytes:
        try:
            data = os.read(self._descriptor, size)
        except OSError as error:
            hint = "; give its files" if isinstance(error, IsADirectoryError) else ""
            raise UserError(f"{self.place()}: can't be read: {error.strerror}{hint}") from None
        self._hash.update(data)
        self.position += len(data)
        self._journal.raw_bytes += len(data)
        return data

    def place(self) -> str:
        return f"{self.name}, about byte {self.position} of what is stored"

    def close(self) -> None:
        os.close(self._descriptor)
        self._journal.enter(self.name, bytes=self.position, sha256=self._hash.hexdigest())


def _decompressed(raw: _Raw) -> Iterator[bytes]:
    head = b""
    while len(head) < 6 and (more := raw.read(_FEED)):
        head += more
    for magic, tool in _ARCHIVES.items():
        if head.startswith(magic):
            raise UserError(f"{raw.name}: an archive; unpack it: {tool} {raw.name} | ... --input=-")
    for (magic, name), make in _DECODERS.items():
        if head.startswith(magic) or (name == "zstd" and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
            return _decode(raw, head, name, make)
    return _plain(raw, head)


def _plain(raw: _Raw, data: bytes) -> Iterator[bytes]:
    while data:
        yield data
        data = raw.read(_CHUNK)


def _decode(raw: _Raw, data: bytes, name: str, make: Callable[[], _Decoder]) -> Iterator[bytes]:
    """Decoded chunks of all members (streams, frames) of the data."""
    while data:
        decoder = make()
        while not decoder.eof:
            data = data or raw.read(_FEED)
            if not data:
                raise Damage(f"the {name} data ends too early; copy it again")
            try:
                yield from decoder.feed(data)
            except (zlib.error, OSError, lzma.LZMAError, EOFError, ValueError) as error:
                raise Damage(f"{name}: {error}", len(data)) from None
            data = decoder.rest
        if name in ("gzip", "xz"):  # may be padded
            while not (data := data.lstrip(b"\0")) and (data := raw.read(_FEED)):
                pass
        data = data or raw.read(_FEED)


class _Decoder(Protocol):
    """One member of compressed data. `feed` yields bounded chunks; after `eof` and after each feed, `rest` is what it
    has not taken."""

    eof: bool
    rest: bytes

    def feed(self, data: bytes) -> Iterator[bytes]: ...


class _Gzip:
    def __init__(self) -> None:
        self._decoder, self.eof, self.rest = zlib.decompressobj(wbits=31), False, b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data and not self.eof:
            yield self._decoder.decompress(data, _CHUNK)
            data, self.eof = self._decoder.unconsumed_tail, self._decoder.eof
        self.rest = self._decoder.unused_data


class _Bounded:
    """bzip2 and xz."""

    def __init__(self, decoder: bz2.BZ2Decompressor | lzma.LZMADecompressor) -> None:
        self._decoder, self.eof, self.rest = decoder, False, b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield self._decoder.decompress(data, _CHUNK)
        while not (self._decoder.eof or self._decoder.needs_input):
            yield self._decoder.decompress(b"", _CHUNK)
        self.eof, self.rest = self._decoder.eof, self._decoder.unused_data


class _Zstd:
    def __init__(self) -> None:
        import zstandard

        self._decoder = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
        self.eof, self.rest = False, b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_FEED):
            try:
                yield self._decoder.decompress(data[start : start + _ZSTD_FEED])
            except Exception as error:  # zstandard.ZstdError, a plain Exception
                raise ValueError(str(error)) from None
            if self._decoder.eof:
                self.eof, self.rest = True, self._decoder.unused_data + data[start + _ZSTD_FEED :]
                return


_DECODERS: dict[tuple[bytes, str], Callable[[], _Decoder]] = {
    (b"\x1f\x8b", "gzip"): _Gzip,
    (b"BZh", "bzip2"): lambda: _Bounded(bz2.BZ2Decompressor()),
    (b"\xfd7zXZ\x00", "xz"): lambda: _Bounded(lzma.LZMADecompressor()),
    (b"\x28\xb5\x2f\xfd", "zstd"): _Zstd,
}
