import gzip
import json
import re
from collections import Counter

import pytest

from hhh_jax.data import prepare, streams
from hhh_jax.data.source import Drop, Row
from hhh_jax.data.sources import text
from hhh_jax.errors import UserError

OPTIONS = dict(text.SOURCE.options)


def read(paths, bad_rows="drop", **options):
    """({id: (text, group, split)}, drops) of some inputs."""
    paths = [str(path) for path in ([paths] if not isinstance(paths, list) else paths)]
    options = {**OPTIONS, **options}
    with streams.journal(bad_rows) as journal:
        found = [item for block in text.SOURCE.blocks(paths, options) for item in text.SOURCE.read(block, options)]
    made = {}
    for row in found:
        if isinstance(row, Row):
            (item,) = text.SOURCE.join(row.key, [row], options)
            assert row.key == item.record.id
            assert row.place.endswith(item.record.id)
            made[item.record.id] = item.record.text, item.record.group, item.split
    return made, [item for item in found if isinstance(item, Drop)] + journal.drops


def json_lines(path, *rows):
    raw = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    elif path.suffix == ".zst":
        import zstandard

        raw = zstandard.compress(raw)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    return path


PILE = {"text": "A page.\n\nIts end.", "meta": {"pile_set_name": "Pile-CC"}}
C4 = {"text": "A recipe", "timestamp": "2019-04-25T12:57:54Z", "url": "https://a.org/b"}
FINEWEB = {"text": "News", "id": "<urn:uuid:1>", "dump": "CC-MAIN-2013-20", "url": "http://c.org", "score": 0.9}


@pytest.mark.parametrize("name", ["00.jsonl.zst", "c4.00000-of-01024.json.gz", "a.jsonl", "a.ndjson"])
def test_json_lines_as_they_are_published(name, tmp_path):
    path = json_lines(tmp_path / name, PILE, C4, FINEWEB, {"text": "arXiv", "metadata": {"id": 1706}})
    made, drops = read(path)
    assert made == {
        f"{name}:1": (PILE["text"], f"{name}:1", None),
        f"{name}:2": ("A recipe", "https://a.org/b", None),
        f"{name}:3": ("News", "http://c.org", None),
        f"{name}:4": ("arXiv", "1706", None),
    }
    assert not drops


def test_fields_by_name(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", {"doc": {"body": "x"}, "site": {"number": 7}, "url": "u"})
    assert read(path, field="doc.body", group="site.number")[0] == {"a.jsonl:1": ("x", "7", None)}


def test_bad_rows_are_counted_with_their_place(tmp_path):
    rows = [b'{"text": "caf\xe9"}', b'{"text": "cut', b"[1]", {"no": "text"}, {"text": 5}, {"text": " \n"}, b"",
            {"text": "\ud800"}, {"text": "x", "url": ["a"]}, {"text": "last"}]  # fmt: skip
    path = json_lines(tmp_path / "a.jsonl", *rows)
    made, drops = read(path)
    assert list(made) == ["a.jsonl:10"]
    assert [(drop.place.rpartition(":")[2], drop.reason, drop.bad) for drop in drops] == [
        ("1", "not UTF-8", True), ("2", "broken JSON", True), ("3", "not a JSON object", True),
        ("4", "no field text", True), ("5", "text is not text", True), ("6", "empty text", False),
        ("8", "text has half a surrogate pair", True), ("9", "url is not text", True),
    ]  # fmt: skip


def parquet(path, columns, **kwargs):
    pyarrow = pytest.importorskip("pyarrow", reason="needs the data extra")
    from pyarrow import parquet as pq

    path.parent.mkdir(exist_ok=True)
    pq.write_table(pyarrow.table(columns), path, **kwargs)
    return path


def test_parquet(tmp_path, monkeypatch):
    n = 2500
    monkeypatch.setattr(streams, "BLOCK_BYTES", 50_000)
    columns = {"text": [f"Document {i} é" for i in range(n)], "id": list(range(n)), "date": [None] * n}
    path = parquet(tmp_path / "000_00000.parquet", columns, row_group_size=600, compression="zstd")
    with streams.journal() as journal:
        sizes = [len(block.data) for block in text.SOURCE.blocks([str(path)], OPTIONS)]
    assert len(sizes) >= 3 and all(50_000 < size < 51_000 for size in sizes[:-1])
    assert journal.inputs[str(path)]["bytes"] == path.stat().st_size
    made, drops = read(path)
    assert list(made) == [f"000_00000.parquet:{i + 1}" for i in range(n)]
    assert made["000_00000.parquet:2500"] == ("Document 2499 é", "2499", None)
    assert not drops


def test_parquet_is_read_in_small_pieces_and_the_needed_columns_only(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "BLOCK_BYTES", 10_000)
    columns = {
        "text": ["x" * 3000] * 100,
        "image": [b"y" * 100_000] * 100,
        "meta": [{"url": f"u{i}"} for i in range(100)],
    }
    path = parquet(tmp_path / "a.parquet", columns)
    blocks = list(text.SOURCE.blocks([str(path)], OPTIONS))
    assert max(len(block.data) for block in blocks) < 13_200 and len(blocks) == 25
    assert json.loads(blocks[-1].data.splitlines()[-1]) == {"text": "x" * 3000, "meta": {"url": "u99"}}
    assert [block.first for block in blocks] == list(range(1, 100, 4))


def test_broken_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs the data extra")
    torn = pyarrow.StringArray.from_buffers(3, pyarrow.array([0, 1, 2, 3], pyarrow.int32()).buffers()[1],
                                            pyarrow.py_buffer(b"a\xffc"))  # fmt: skip
    path = parquet(tmp_path / "a.parquet", {"text": torn})
    made, drops = read(path)
    assert [text for text, _, _ in made.values()] == ["a", "c"]
    assert [(drop.reason, drop.place) for drop in drops] == [("not UTF-8", f"{path}:2")]
    path.write_bytes(path.read_bytes()[:-20])
    (drop,) = read(path)[1]
    assert drop.reason == "broken parquet" and drop.detail.endswith("; none of its rows were read")
    with pytest.raises(UserError, match=r"a\.parquet:1 or one of the next: broken parquet"):
        read(path, bad_rows="error")


def test_parquet_that_is_broken_in_the_middle_says_how_many_rows_are_lost(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"text": [f"Document {i}" for i in range(160)]}, row_group_size=16)
    from pyarrow import parquet as pq

    column = pq.ParquetFile(path).metadata.row_group(4).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    with streams.journal("drop") as journal:
        lines = b"".join(block.data for block in text.SOURCE.blocks([str(path)], OPTIONS)).splitlines()
    assert [json.loads(line)["text"] for line in lines] == [f"Document {i}" for i in range(64)]
    assert journal.inputs[str(path)]["damage"].startswith("broken parquet: ")
    assert journal.inputs[str(path)]["damage"].endswith("; 96 of 160 rows were not read")
    assert [drop.place for drop in journal.drops] == [f"{path}:65 or one of the next"]


WIKITEXT = " \n = Bob <unk> = \n \n He acts . \n \n = = Career = = \n \n He acted . \n \n = Du Fu = \n \n Poet . \n"


def test_a_text_is_cut_as_asked(tmp_path):
    path = tmp_path / "test.txt"
    path.write_text("\ufeff" + WIKITEXT)
    articles = [text for text, _, _ in read(path, document="^ = [^=].* = $")[0].values()]
    assert [re.findall(" ([A-Z]\\w+)", article)[0] for article in articles] == ["Bob", "Du"]
    assert articles[0].startswith("= Bob <unk> =") and articles[0].endswith("He acted .")
    (whole,) = read(path)[0].values()
    assert whole == (WIKITEXT.strip(), "test.txt", "test")
    lines = read(path, document="line")[0]
    assert [text for text, _, _ in lines.values()] == [line.strip() for line in WIKITEXT.split("\n") if line.strip()]
    assert next(iter(lines)) == "test.txt:2"
    paragraphs = read(path, document="paragraph", group="file")[0]
    assert [text for text, _, _ in paragraphs.values()] == [t.strip() for t in WIKITEXT.split("\n \n") if t.strip()]
    assert [place.rpartition(":")[2] for place in paragraphs] == ["2", "4", "6", "8", "10", "12"]
    assert {group for _, group, _ in paragraphs.values()} == {"test.txt"}


@pytest.mark.parametrize(("document", "size"), [("paragraph", 30), ("paragraph", 7), ("^=", 20), ("^=", 100)])
def test_blocks_of_documents_do_not_depend_on_size(document, size, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"= {i}\nline {'x' * (i % 7)}\n\n  \r\nmore" for i in range(40)))
    whole = read(path, document=document)
    blocks = list(text.document_blocks(str(path), text._starts(document), size))
    assert len(blocks) > 5
    assert b"".join(block.data for block in blocks) == path.read_bytes()
    pieces = [piece for block in blocks for piece in text._texts(block, document)]
    assert [piece.decode().replace("\r\n", "\n") for _, piece in pieces] == [text for text, _, _ in whole[0].values()]
    assert [place.removeprefix(f"{tmp_path}/") for place, _ in pieces] == list(whole[0])
    assert len(pieces) == (80 if document == "paragraph" else 40)


@pytest.mark.parametrize("long", ["x" * 5000, "x\n" * 2500])
def test_an_overlong_document_is_left_out(long, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_LINE", 1000)
    path = tmp_path / "a.txt"
    path.write_text(f"first\n\n{long}\n\nthird\n\nfourth")
    with streams.journal("drop") as journal:
        blocks = list(text.document_blocks(str(path), text._starts("paragraph"), 100))
    found = [(place.rpartition(":")[2], piece) for block in blocks for place, piece in text._texts(block, "paragraph")]
    lines = long.count("\n") + 1
    assert found == [("1", b"first"), (str(lines + 4), b"third"), (str(lines + 6), b"fourth")]
    assert [drop.reason for drop in journal.drops] == ["document longer than 0 MiB"]


def test_books(tmp_path):
    (tmp_path / "A_Test.md").write_text("# Title: A Test\r\n\r\n## Part 1\n\nOne.\n\n## Part 2\n\nTwo.\n")
    (tmp_path / "Other.md").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_text("\n")
    made, drops = read(tmp_path)
    book = "A_Test.md"
    assert made == {book: ("# Title: A Test\n\n## Part 1\n\nOne.\n\n## Part 2\n\nTwo.", book, None)}
    assert [drop.reason for drop in drops] == ["not UTF-8", "empty text"]
    chapters = read(tmp_path, document="^## ", group="file")[0]
    assert [text for text, _, _ in chapters.values()] == ["# Title: A Test", "## Part 1\n\nOne.", "## Part 2\n\nTwo."]
    assert {group for _, group, _ in chapters.values()} == {book}


def test_rows_in_a_folder_go_before_texts(tmp_path):
    json_lines(tmp_path / "data" / "a.jsonl", {"text": "x"})
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "state.json").write_text('{"a":\n1}')
    assert list(read(tmp_path)[0]) == ["data/a.jsonl:1"]


SPLITS = {
    "c4-train.00000-of-01024.json.gz": "train",
    "c4-validation.00000-of-00008.json.gz": "validation",
    "val.jsonl.zst": "validation",
    "wiki.test.tokens": "test",
    "train-00000-of-00005.parquet": "train",
    "train/00.jsonl.zst": "train",
    "valid.txt": "validation",
    "000_00000.parquet": None,
    "A Test.txt": None,
    "contest.txt": None,
    "acid_test.md": None,
    "testing/a.txt": None,
}


@pytest.mark.parametrize("name", SPLITS)
def test_names_tell_splits(name):
    assert text.split_of(name) == SPLITS[name]


def test_published_splits_stay_and_a_missing_validation_is_cut(tmp_path):
    train = json_lines(tmp_path / "train.jsonl", *({"text": f"{i}"} for i in range(2000)))
    test = json_lines(tmp_path / "test.jsonl", {"text": "t"})
    validation = json_lines(tmp_path / "val.jsonl", {"text": "v"})
    made = read([train, validation, test])[0]
    assert Counter(split for _, _, split in made.values()) == {"train": 2000, "validation": 1, "test": 1}
    assert {split for _, _, split in read(train)[0].values()} == {None}
    assert {split for _, _, split in read([train, validation, test], names=False)[0].values()} == {None}
    card = prepare.prepare("text", [str(train), str(test)], tmp_path / "out", workers=1, held_out=0.1)
    assert card["records"]["test"] == 1
    assert 140 < card["records"]["validation"] < 260
    assert (card["read"], card["kept"]) == (2001, 2001)


def test_near_duplicates_are_left_out(tmp_path):
    pytest.importorskip("rensa", reason="needs the data extra")
    one = " ".join(f"word{i}" for i in range(100))
    first = json_lines(tmp_path / "a.jsonl", {"text": one}, b"", {"text": "other words here"}, {"text": f"{one} end"})
    second = json_lines(tmp_path / "b.jsonl", b"{", {"text": one.upper() + "!"}, {"text": one[100:300]})
    made, drops = read([first, second], dedup=0.8)
    assert list(made) == ["a.jsonl:1", "a.jsonl:3", "b.jsonl:3"]
    assert [(drop.reason, drop.place, drop.detail) for drop in drops if not drop.bad] == [
        ("nearly repeats an earlier document", f"{first}:4", f"{first}:1"),
        ("nearly repeats an earlier document", f"{second}:2", f"{first}:1"),
    ]
    assert [drop.reason for drop in drops if drop.bad] == ["broken JSON"]


def test_near_duplicates_are_never_taken_from_a_held_out_split(tmp_path):
    pytest.importorskip("rensa", reason="needs the data extra")
    one, two = (" ".join(f"{word}{i}" for i in range(100)) for word in ("a", "b"))
    train = json_lines(tmp_path / "train.jsonl", *({"text": text} for text in (one, two, "own words", "own words")))
    valid = json_lines(tmp_path / "valid.jsonl", {"text": two}, {"text": f"{one} end"})
    test = json_lines(tmp_path / "test.jsonl", {"text": one}, {"text": one.upper()})
    made, drops = read([train, valid, test], dedup=0.8)
    assert list(made) == ["test.jsonl:1", "test.jsonl:2", "valid.jsonl:1", "valid.jsonl:2", "train.jsonl:3"]
    assert [(drop.place, drop.detail) for drop in drops] == [
        (f"{train}:1", f"{test}:1"), (f"{train}:2", f"{valid}:1"), (f"{train}:4", f"{train}:3"),
    ]  # fmt: skip
    unnamed, _ = read([train, valid, test], dedup=0.8, names=False)
    assert list(unnamed) == ["train.jsonl:1", "train.jsonl:2", "train.jsonl:3"]


def test_records_do_not_depend_on_where_the_input_lies(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder / "x").mkdir(parents=True)
        for name in ("x/a.txt", "b.txt"):
            (tmp_path / folder / name).write_text(f"text of {name}")
    here, there = (read(tmp_path / folder)[0] for folder in ("here", "there"))
    assert here == there == {"b.txt": ("text of b.txt", "b.txt", None), "x/a.txt": ("text of x/a.txt", "x/a.txt", None)}
    both = read([tmp_path / "here" / "b.txt", tmp_path / "there" / "b.txt", tmp_path / "here" / "x"])[0]
    assert list(both) == [f"{tmp_path}/here/b.txt", f"{tmp_path}/there/b.txt", "a.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"document": "chapter"}, "document=chapter: must be file, line, paragraph, or a regular"),
        ({"document": "^("}, "not a regular expression"),
        ({"format": "csv"}, "format=csv: must be"),
        ({"group": "url"}, "text has no fields"),
        ({"dedup": 2.0}, "dedup=2.0"),
    ],
)
def test_wrong_options(options, message, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match=re.escape(message)):
        read(tmp_path / "a.txt", **options)


def test_names_that_tell_nothing(tmp_path):
    (tmp_path / "corpus").write_text("a\nb")
    with pytest.raises(UserError, match="format=jsonl"):
        read(tmp_path / "corpus")
    assert len(read(tmp_path / "corpus", format="text", document="line")[0]) == 2
    with pytest.raises(UserError, match="reads the input twice"):
        read("-", format="jsonl", dedup=0.8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="none of its 0 files is text, JSON Lines or parquet"):
        read(tmp_path / "empty")


@pytest.mark.real_data("text/books", "text/wikitext-2/valid.txt", "text/wikitext-2/test.txt")
def test_published_texts(real_data):
    made, drops = read(real_data / "text/books")
    assert (len(made), drops) == (24, [])
    assert all(text.startswith("# Title: ") for text, _, _ in made.values())
    made, drops = read([real_data / "text/wikitext-2/valid.txt", real_data / "text/wikitext-2/test.txt"],
                       document="^ = [^=].* = $")  # fmt: skip
    assert not drops
    assert Counter(split for _, _, split in made.values()) == {"validation": 60, "test": 62}  # 60, and two sentences


@pytest.mark.real_data("lambada/lambada_test_plain_text.txt")
def test_published_lines(real_data):
    made, drops = read(real_data / "lambada/lambada_test_plain_text.txt", document="line")
    assert (len(made), drops) == (5153, [])
