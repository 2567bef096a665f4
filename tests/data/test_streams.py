import bz2
import gzip
import hashlib
import lzma
import random
import struct
import sys

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hhh_jax.data import streams
from hhh_jax.data.source import Block
from hhh_jax.errors import UserError

PACK = {
    "txt": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
}
PACKED = [name for name in PACK if name != "txt"]


def some_lines(n: int) -> bytes:
    generator = random.Random(0)
    return b"".join(b"%d %s\n" % (i, generator.randbytes(generator.randrange(40)).hex().encode()) for i in range(n))


def blocks_of(path, size=1000):
    return list(streams.line_blocks([str(path)], size))


@pytest.mark.parametrize("name", PACK)
def test_blocks_do_not_depend_on_the_compression(name, tmp_path):
    text = some_lines(500)
    path = tmp_path / "any_name"
    path.write_bytes(PACK[name](text[:9000]) + PACK[name](text[9000:]))  # two members, streams or frames
    blocks = blocks_of(path)
    assert b"".join(block.data for block in blocks) == text
    lines = text.split(b"\n")
    for block in blocks:
        assert block.data.endswith(b"\n") and len(block.data) < 2000
        assert block.place == f"{path}:{block.first}"
        assert block.data.startswith(lines[block.first - 1] + b"\n")
    plain = tmp_path / "plain"
    plain.write_bytes(text)
    assert [(b.first, b.data) for b in blocks_of(plain)] == [(b.first, b.data) for b in blocks]


@given(st.lists(st.binary(max_size=12)), st.integers(1, 40))
def test_lines_come_back_with_their_numbers(tmp_path_factory, parts, size):
    text = b"x" + b"\n".join(parts)
    path = tmp_path_factory.mktemp("lines") / "file"
    path.write_bytes(text)
    found = [line for block in blocks_of(path, size) for line in streams.lines(block)]
    whole = text.removesuffix(b"\n").split(b"\n")
    assert found == [(f"{path}:{number}", line.rstrip(b"\r")) for number, line in enumerate(whole, start=1)]


def test_the_journal_has_the_stored_bytes(tmp_path):
    path, other = tmp_path / "a.gz", tmp_path / "b"
    path.write_bytes(gzip.compress(b"one\ntwo\n"))
    other.write_bytes(b"three")
    with streams.journal() as journal:
        assert len(list(streams.line_blocks([str(path), str(other)]))) == 2
    assert list(journal.inputs.values()) == [
        {"name": str(file), "bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in (path, other)
    ]
    assert journal.raw_bytes == path.stat().st_size + 5


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("damage", ["truncated", "garbage behind", "flipped"])
def test_damaged_compression(name, damage, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_FEED", 1024)  # as if the file were long
    text = some_lines(2000)
    packed = PACK[name](text)
    if damage == "flipped" and name == "zst":  # the frame needs a checksum to be caught
        packed = zstandard.ZstdCompressor(write_checksum=True).compress(text)
    middle = len(packed) // 2
    packed = {
        "truncated": packed[:-3],
        "garbage behind": packed + b"and more",
        "flipped": packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :],
    }[damage]
    path = tmp_path / "file"
    path.write_bytes(packed)
    with pytest.raises(UserError, match=rf"{path}, about byte \d+ of what is stored: broken compression: .*drop"):
        blocks_of(path)
    with streams.journal("drop") as journal:
        read = b"".join(block.data for block in blocks_of(path))
    assert text.startswith(read) or damage == "flipped"
    assert not read or read.endswith(b"\n")  # the torn line is left out
    assert read == text or damage != "garbage behind"
    assert [(drop.reason, drop.bad) for drop in journal.drops] == [("broken compression", True)]
    assert journal.inputs[str(path)]["sha256"] == hashlib.sha256(packed).hexdigest()
    assert journal.inputs[str(path)]["damage"] == f"broken compression: {journal.drops[0].detail}"
    assert ("ends too early" in journal.drops[0].detail) == (damage == "truncated")


@pytest.mark.parametrize("name", PACKED)
def test_damage_tells_how_much_is_lost(name, tmp_path):
    text, rest = some_lines(500), random.Random(1).randbytes(200_000)
    first, second = (PACK[name](part) for part in (text, rest))
    path = tmp_path / "file"
    path.write_bytes(first + b"oops" + second)  # as if the second member's first bytes were overwritten
    with streams.journal("drop") as journal:
        assert b"".join(block.data for block in blocks_of(path)) == text
    lost = f"up to {len(second) + 4:,} of the {path.stat().st_size:,} stored bytes were not read"
    assert journal.drops[0].detail.endswith(lost)
    assert journal.inputs[str(path)]["bytes"] == path.stat().st_size
    assert journal.inputs[str(path)]["damage"].endswith(lost)


@pytest.mark.parametrize("name", PACKED)
def test_bombs_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "BOMB_BYTES", 2**20)
    path = tmp_path / "bomb"
    path.write_bytes(PACK[name](bytes(2**26)))
    with streams.journal("drop"), pytest.raises(UserError, match=r"bytes make more than \d+ MiB: a decompression bomb"):
        blocks_of(path, 2**20)


def test_padding_is_no_damage(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(b"a\n") + bytes(1000) + gzip.compress(b"b\n") + bytes(70_000))
    assert [block.data for block in blocks_of(path)] == [b"a\nb\n"]


def test_zstd_frames_of_every_sort(tmp_path):
    """A skippable frame, and one that needs a window of 2 GiB, as the Pushshift dumps are made with."""
    skippable = struct.pack("<II", 0x184D2A53, 5) + b"index"
    window = bytes([(31 - 10) << 3])
    block = (4 << 3 | 1).to_bytes(3, "little") + b"abc\n"  # the last block, raw
    path = tmp_path / "file"
    path.write_bytes(skippable + struct.pack("<I", 0xFD2FB528) + b"\0" + window + block + skippable)
    assert [block.data for block in blocks_of(path)] == [b"abc\n"]


def test_overlong_lines_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_LINE", 50)
    path = tmp_path / "file"
    path.write_bytes(b"a\n" + b"x" * 50 + b"\n" + b"y" * 51 + b"\nb\n" + b"z" * 500 + b"\nc\n" + b"w" * 200)
    for size in (1, 7, 20, 40):
        with streams.journal("drop") as journal:
            found = [line for block in blocks_of(path, size) for line in streams.lines(block)]
        assert found == [(f"{path}:{n}", line) for n, line in ((1, b"a"), (2, b"x" * 50), (4, b"b"), (6, b"c"))]
        assert [drop.place for drop in journal.drops] == [f"{path}:{n}" for n in (3, 5, 7)]
        assert {drop.reason for drop in journal.drops} == {"line longer than 0 MiB"}
    with pytest.raises(UserError, match=f"{path}:3: line longer than"):
        blocks_of(path, 7)


def test_byte_order_marks(tmp_path):
    path = tmp_path / "file"
    path.write_text("é\n", encoding="utf-8-sig")
    assert [block.data for block in blocks_of(path)] == ["é\n".encode()]
    path.write_text("é\n", encoding="utf-16")
    with pytest.raises(UserError, match=f"{path}: UTF-16; convert it: iconv"):
        blocks_of(path)


def test_empty_input(tmp_path):
    path = tmp_path / "file"
    for content in (b"", gzip.compress(b""), zstandard.compress(b"")):
        path.write_bytes(content)
        assert blocks_of(path) == []


@pytest.mark.parametrize(
    "magic, tool",
    [(b"7z\xbc\xaf\x27\x1c", "7z x -so"), (b"PK\x03\x04", "unzip -p"), (b"Rar!\x1a\x07", "unrar")],
)
def test_archives_name_their_tool(magic, tool, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(magic + b"more")
    with pytest.raises(UserError, match=f"{path}: an archive; unpack it: {tool}"):
        blocks_of(path)


def test_what_can_not_be_opened(tmp_path):
    with pytest.raises(UserError, match=r"missing: can't be opened: No such file"):
        blocks_of(tmp_path / "missing")
    with pytest.raises(UserError, match="Is a directory; give its files"):
        blocks_of(tmp_path)


def test_a_missing_second_input_is_seen_before_the_first_is_read(tmp_path):
    (tmp_path / "first").write_bytes(b"a\n")
    with pytest.raises(UserError, match="missing: can't be opened: No such file"):
        next(streams.line_blocks([str(tmp_path / "first"), str(tmp_path / "missing")]))


def test_standard_input(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(gzip.compress(b"a\nb\n"))
    with (tmp_path / "file").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert list(streams.line_blocks(["-"])) == [Block("-:1", "-", b"a\nb\n", 1)]


def test_files_as_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_LINE", 20)
    contents = {"two.py": b"2", "large.py": b"x" * 21, "packed.py": gzip.compress(b"3"), "empty.py": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with streams.journal("drop") as journal:
        found = [(b.name, b.data) for b in streams.file_blocks([str(tmp_path / name) for name in contents])]
    assert found == [
        (str(tmp_path / name), data) for name, data in (("two.py", b"2"), ("packed.py", b"3"), ("empty.py", b""))
    ]
    assert [drop.place for drop in journal.drops] == [str(tmp_path / "large.py")]
    with pytest.raises(UserError, match="Is a directory; give its files"):
        list(streams.file_blocks([str(tmp_path)]))


def test_inputs_that_others_read(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    with streams.journal() as journal:
        streams.note_file(str(tmp_path / "file"))
        streams.note_input("hub:name", 7, "f00")
    assert list(journal.inputs.values()) == [
        {"name": str(tmp_path / "file"), "bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()},
        {"name": "hub:name", "bytes": 7, "sha256": "f00"},
    ]
