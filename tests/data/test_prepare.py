import contextlib
import gzip
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import zstandard

from hhh_jax.data import datasets, prepare, shards, sources
from hhh_jax.data.records import Document
from hhh_jax.data.source import Made
from hhh_jax.data.tokenizer import train_tokenizer
from hhh_jax.data.workers import choose_split
from hhh_jax.errors import UserError

HERE = Path(__file__).parent
THREADS, NOTES = "own_sources.threads", "own_sources.notes"


def thread_rows(n: int = 500) -> list[dict]:
    """Rows of threads in random order, some threads without question or with fewer than two answers."""
    generator = random.Random(0)
    rows = []
    for thread in range(n):
        if generator.random() < 0.9:
            rows.append({"thread": str(thread), "text": f"Question {thread}?"})
        for answer in range(generator.randrange(5)):
            words = " blah" * generator.randrange(30)
            rows.append({"thread": str(thread), "score": generator.random(), "text": f"Answer {answer}{words}"})
    generator.shuffle(rows)
    return rows


def expected_pairs(rows: list[dict]) -> set[tuple[str, str, str, str]]:
    """(id, context, good, bad) of all pairs, by brute force."""
    pairs = set()
    for thread in {row["thread"] for row in rows}:
        question = [row["text"] for row in rows if row["thread"] == thread and "score" not in row]
        answers = sorted((row["score"], row["text"]) for row in rows if row["thread"] == thread and "score" in row)
        if question and len(answers) > 1:
            pairs.add((f"thread {thread}", question[0], answers[-1][1], answers[0][1]))
    return pairs


def write_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def shard_bytes(folder: Path) -> dict[str, bytes]:
    """All that should not depend on how the folder came about."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(("card", "settings"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished folder of threads, with its input."""
    folder = tmp_path_factory.mktemp("finished")
    name = write_lines(folder / "threads.jsonl", thread_rows())
    card = prepare.prepare(THREADS, [name], folder / "out", workers=1)
    return folder / "out", name, card


class Process:
    """`python -m hhh_jax.data.prepare`, in a session of its own."""

    def __init__(self, output: Path, *flags: str, stdin: int | None = None, file_limit: int | None = None) -> None:
        def limit() -> None:
            if file_limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        path = os.pathsep.join([str(HERE.parent.parent), str(HERE)])
        self.partial = output.with_name(output.name + ".partial")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hhh_jax.data.prepare", f"--output={output}", *flags],
            env={**os.environ, "PYTHONPATH": path},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=limit,
        )
        self.pid = self._process.pid

    def count(self, folder: str) -> int:
        """How many files and folders are finished in a folder of OUTPUT.partial."""
        with contextlib.suppress(FileNotFoundError):
            return sum(path.suffix != ".tmp" for path in (self.partial / folder).iterdir())
        return 0

    def wait_for(self, folder: str, n: int) -> bool:
        """Waits until a folder has n files; False if the process ends first."""
        while self.count(folder) < n:
            if self._process.poll() is not None:
                return False
            time.sleep(0.002)
        return True

    def living(self) -> list[int]:
        """Its own and its workers' ids."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, group = path.read_text().rpartition(")")[2].split()[:3]
                if int(group) == self.pid and state not in "ZX":
                    found.append(int(path.parent.name))
        return found

    def end(self, number: int | None = None) -> tuple[int, str]:
        """Exit status and output, after sending a signal if one is given."""
        if number is not None:
            os.kill(self.pid, number)
        output, _ = self._process.communicate(timeout=100)
        return self._process.returncode, output


def test_records_are_those_of_the_input(finished):
    output, name, card = finished
    rows = thread_rows()
    splits = {split: datasets.load_pairs(str(output), split).records for split in ("train", "validation", "test")}
    pairs = [(r.id, r.context, r.good, r.bad) for records in splits.values() for r in records]
    assert len(pairs) == len(set(pairs)) and set(pairs) == expected_pairs(rows)
    assert {split: len(records) for split, records in splits.items()} == card["records"]
    assert min(len(records) for records in splits.values()) > 5  # about 10% of 200
    assert card["read"] == len(rows) == card["kept"] + sum(card["dropped"].values())
    assert card["kept"] == 2 * len(pairs) + len(pairs)
    example = card["dropped_examples"]["incomplete thread"][0]
    line = int(example["place"].removeprefix(f"{name}:"))
    assert rows[line - 1]["thread"] not in {pair[0].removeprefix("thread ") for pair in pairs}
    assert json.loads((output / "card.json").read_text()) == card
    assert not output.with_name("out.partial").exists()


def test_workers_do_not_matter(finished, tmp_path, monkeypatch):
    output, name, _ = finished
    prepare.prepare(THREADS, [name], tmp_path / "out", workers=3)
    assert shard_bytes(tmp_path / "out") == shard_bytes(output)


@pytest.mark.slow
def test_several_units_and_another_seed(finished, tmp_path, monkeypatch):
    _, name, card = finished
    monkeypatch.setattr(shards, "UNIT_BYTES", 10_000)
    for workers, folder, seed in ((1, "a", 0), (3, "b", 0), (2, "c", 1)):
        prepare.prepare(THREADS, [name], tmp_path / folder, workers=workers, seed=seed)
    a, b, c = (shard_bytes(tmp_path / folder) for folder in "abc")
    assert a == b != c
    assert sum("train" in name for name in a) > 3
    for split, n in card["records"].items():
        records = [{r.id: r for r in datasets.load_pairs(str(tmp_path / f), split).records} for f in "ac"]
        assert records[0] == records[1] and len(records[0]) == n  # another order, the same splits


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(finished, tmp_path):
    output, name, card = finished
    flags = (f"--source={THREADS}", f"--input={name}", "--option=slow=0.01", "--workers=2")
    generator = random.Random(time.time_ns())
    moments = [("rows", n) for n in sorted(generator.sample(range(1, 20), 2))]
    moments += [("rows", 20), ("units", 1), ("final", 1), ("final", 5)]
    kills = 0
    for folder, n in moments:
        process = Process(tmp_path / "out", *flags)
        reached = process.wait_for(folder, n)
        time.sleep(generator.random() / 50)
        status, _ = process.end(signal.SIGKILL) if reached else process.end()
        kills += status == -signal.SIGKILL
        deadline = time.monotonic() + 20
        while process.living():  # workers don't outlive it
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert kills > 3
    status, text = Process(tmp_path / "out", *flags).end()
    assert status == 0, text
    assert shard_bytes(tmp_path / "out") == shard_bytes(output)
    assert not process.partial.exists()
    again = json.loads((tmp_path / "out" / "card.json").read_text())
    assert {key: again[key] for key in ("read", "kept", "dropped", "inputs", "records", "dropped_examples")} == {
        key: card[key] for key in ("read", "kept", "dropped", "inputs", "records", "dropped_examples")
    }


@pytest.mark.slow
def test_a_killed_worker(finished, tmp_path):
    output, name, _ = finished
    flags = (f"--source={THREADS}", f"--input={name}", "--option=slow=0.02", "--workers=2")
    process = Process(tmp_path / "out", *flags)
    assert process.wait_for("rows", 3)
    workers = [pid for pid in process.living() if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    status, text = process.end()
    assert status == 2 and "error: a worker was killed: was there enough memory?" in text
    assert Process(tmp_path / "out", *flags).end()[0] == 0
    assert shard_bytes(tmp_path / "out") == shard_bytes(output)


def test_an_interrupt_and_a_second_process(finished, tmp_path):
    _, name, _ = finished
    flags = (f"--source={THREADS}", f"--input={name}", "--option=slow=0.1", "--workers=1")
    process = Process(tmp_path / "out", *flags)
    assert process.wait_for("rows", 2)
    status, text = Process(tmp_path / "out", *flags).end()
    assert status == 2 and "out.partial: another process is preparing this folder" in text
    status, text = process.end(signal.SIGINT)
    assert status == 130 and text.endswith("interrupted; the same command goes on\n") and "Traceback" not in text


def test_a_full_disk_leaves_finished_work(finished, tmp_path):
    output, name, _ = finished
    flags = (f"--source={THREADS}", f"--input={name}", "--workers=1")
    status, text = Process(tmp_path / "out", *flags, file_limit=60_000).end()  # blocks are smaller, shards larger
    assert status == 2 and re.search(r"cannot write .*: write\(\) failed: File too large", text)
    assert "Traceback" not in text
    partial = tmp_path / "out.partial"
    blocks = {path.name: path.stat().st_mtime_ns for path in (partial / "rows").iterdir()}
    assert len(blocks) > 10 and not list(partial.rglob("*.tmp"))
    (partial / "units" / "00000.99.tmp").mkdir()  # as a killed worker leaves it
    process = Process(tmp_path / "out", *flags, "--bad_rows=error")
    assert process.wait_for("units", 1)
    assert {path.name: path.stat().st_mtime_ns for path in (partial / "rows").iterdir()} == blocks
    assert process.end()[0] == 0
    assert shard_bytes(tmp_path / "out") == shard_bytes(output)


def test_standard_input(finished, tmp_path):
    """A gzipped pipe gives what the file gives, but for the places of drops."""
    output, name, card = finished
    with (tmp_path / "packed").open("wb") as file:
        file.write(gzip.compress(Path(name).read_bytes()))
    with subprocess.Popen(["cat", tmp_path / "packed"], stdout=subprocess.PIPE) as cat:
        status, text = Process(tmp_path / "out", f"--source={THREADS}", "--input=-", stdin=cat.stdout.fileno()).end()
    assert status == 0, text
    assert shard_bytes(tmp_path / "out") == shard_bytes(output)
    assert f"{tmp_path / 'out'}: pairs: train {card['records']['train']}, validation " in text
    assert f"dropped {card['dropped']['incomplete thread']}: incomplete thread" in text


def test_a_changed_input_is_refused(tmp_path):
    rows = thread_rows()
    name = write_lines(tmp_path / "in", rows)
    broken = Path(name).read_text() + "{broken\n"
    arguments = (THREADS, [name], tmp_path / "out")
    Path(name).write_text(broken)
    with pytest.raises(UserError, match=f"{name}:{len(rows) + 1}: broken row: .*--bad_rows=drop leaves"):
        prepare.prepare(*arguments, workers=1, bad_rows="error")
    blocks = sorted((tmp_path / "out.partial" / "rows").iterdir())
    assert len(blocks) > 10
    for changed in (broken.replace("thread", "threat", 1), broken[:5000]):
        Path(name).write_text(changed)
        with pytest.raises(UserError, match=r"in.*: the input has changed since .*out\.partial was begun; remove"):
            prepare.prepare(*arguments, workers=1)
    with pytest.raises(UserError, match=r"out\.partial: was begun with seed=0, not 1; remove"):
        prepare.prepare(*arguments, workers=1, seed=1)
    Path(name).write_text(broken)
    card = prepare.prepare(*arguments, workers=1)
    assert card["dropped"]["broken row"] == 1
    with pytest.raises(UserError, match=rf"made with --bad_rows=drop; {name}:{len(rows) + 1}: broken row"):
        prepare.prepare(*arguments, bad_rows="error")


def test_a_folder_that_is_there_already(finished, tmp_path, capsys):
    output, name, card = finished
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    assert prepare.prepare(THREADS, [name], output, workers=7) == card
    os.utime(name)  # touched: it is read again
    assert prepare.prepare(THREADS, [name], output) == card
    assert capsys.readouterr().err.count("is there already, made by the same settings from the same input") == 2
    with pytest.raises(UserError, match=r"out: is there already, made with seed=0, not 1; choose another --output"):
        prepare.prepare(THREADS, [name], output, seed=1)
    text = Path(name).read_text()
    try:
        Path(name).write_text(text.replace("blah", "bloh", 1))
        with pytest.raises(UserError, match="made from an input that has changed since; choose another"):
            prepare.prepare(THREADS, [name], output)
    finally:
        Path(name).write_text(text)
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is there already, and not a prepared folder"):
        prepare.prepare(THREADS, [name], tmp_path)


def test_a_link_that_points_elsewhere_is_read_again(tmp_path):
    (tmp_path / "link").mkdir()
    for folder in ("new", "old"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "in").write_text("".join(f"{folder} {i}\ttext\n" for i in range(40)))
        os.utime(tmp_path / folder / "in", (0, 0))
    link = tmp_path / "link" / "now"
    link.symlink_to(tmp_path / "new")
    arguments = (NOTES, [str(link / "in")], tmp_path / "out")
    card = prepare.prepare(*arguments, workers=1)
    modified = (tmp_path / "out" / "settings.json").stat().st_mtime_ns
    assert prepare.prepare(*arguments) == card
    link.unlink()
    link.symlink_to(tmp_path / "old")
    assert (tmp_path / "old" / "in").stat().st_ctime_ns < modified  # older than the folder
    with pytest.raises(UserError, match="made from an input that has changed since; choose another"):
        prepare.prepare(*arguments)


def test_another_tokenizer(tmp_path):
    (tmp_path / "in").write_text("".join(f"note {i}\ttext {i}\n" for i in range(40)))
    for name, size in (("a.json", 258), ("b.json", 260)):
        (tmp_path / name).write_text(train_tokenizer(["some text", "other text"], size).to_json())
    (tmp_path / "same.json").write_text((tmp_path / "a.json").read_text())
    a, b, same = (str(tmp_path / name) for name in ("a.json", "b.json", "same.json"))

    def made(output, tokenizer):
        return prepare.prepare(NOTES, [str(tmp_path / "in")], tmp_path / output, workers=1, tokenizer=tokenizer)

    card = made("given", a)
    assert made("given", a) == made("given", same) == card
    trained = made("trained", None)
    assert made("trained", None) == trained
    for output, tokenizer in (("given", b), ("given", None), ("trained", a)):
        with pytest.raises(UserError, match=f"{output}: is there already, made with tokenizer=.*, not .*; choose"):
            made(output, tokenizer)
    Path(a).write_text(Path(b).read_text())
    with pytest.raises(UserError, match=r"made with tokenizer='.*a\.json', not .* \(or its content has changed\)"):
        made("given", a)


def test_every_sort_of_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr("hhh_jax.data.streams.MAX_LINE", 300)
    lines = [f"note {i}\ttext {i}".encode() for i in range(200)]
    lines[20] = b"no tab"
    lines[30] = b"note\tinvalid \xff"
    lines[40] = b"long\t" + b"x" * 1000
    lines[50] = lines[51]  # seen before
    lines[60] = b"note 60\t\tinvalid \xed\xa0\x80"  # a surrogate in UTF-8
    packed = zstandard.compress(b"\n".join(lines) + b"\n") + zstandard.compress(b"lost with its frame\n" * 1000)
    (tmp_path / "in.zst").write_bytes(packed[:-4])
    options = {"block_bytes": "100"}
    card = prepare.prepare(NOTES, [str(tmp_path / "in.zst")], tmp_path / "out", workers=2, options=options)
    assert card["dropped"] == {
        "no tab": 1,
        "not UTF-8": 2,
        "line longer than 0 MiB": 1,
        "id seen before": 1,
        "broken compression": 1,
    }
    assert card["read"] == 201 and card["kept"] == 195
    where = {reason: [example["place"] for example in some] for reason, some in card["dropped_examples"].items()}
    name = tmp_path / "in.zst"
    assert where["not UTF-8"] == [f"{name}:31", f"{name}:61"]
    assert where["line longer than 0 MiB"] == [f"{name}:41"]
    assert where["broken compression"][0].startswith(f"{name}, about byte {len(packed) - 4} of what is stored")
    (entry,) = card["inputs"]
    assert entry["damage"].startswith("broken compression: the zstd data ends too early")
    assert f"{name} could not be read to its end: {entry['damage']}" in prepare.summary("out", card)
    os.utime(name)  # the same command reads the damaged input again
    assert prepare.prepare(NOTES, [str(name)], tmp_path / "out", options=options) == card
    with pytest.raises(UserError, match=r"made with --bad_rows=drop; .*in\.zst.* choose another --output"):
        prepare.prepare(NOTES, [str(name)], tmp_path / "out", options=options, bad_rows="error")


def test_what_is_not_utf8_outside_of_records(tmp_path):
    """Names and what is said of dropped rows: the run ends well, and finds its folder again."""
    path = tmp_path / os.fsdecode(b"in\xff")
    path.write_bytes(b"".join(b"note %d\ttext %d\n" % (i, i) for i in range(50)) + b"no tab \xff\n")
    status, text = Process(tmp_path / "out", f"--source={NOTES}", f"--input={path}", "--workers=1").end()
    assert status == 0, text
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    spelled = str(tmp_path / r"in\udcff")
    assert card["dropped_examples"] == {"no tab": [{"place": f"{spelled}:51", "detail": r"no tab \udcff"}]}
    assert card["kept"] == 50 and card["damage"].startswith(f"{spelled}:51: no tab: ")
    assert card["inputs"][0]["name"] == str(path)
    assert spelled in (tmp_path / "out" / "card.html").read_text()
    assert prepare.prepare(NOTES, [str(path)], tmp_path / "out") == card
    os.utime(path)  # touched: it is read again
    assert prepare.prepare(NOTES, [str(path)], tmp_path / "out") == card


def test_half_a_surrogate_pair(tmp_path):
    rows = [*thread_rows(40), {"thread": "x\ud800", "text": "a"}, {"thread": "1", "text": "a\udfff", "score": 0.5}]
    card = prepare.prepare(THREADS, [write_lines(tmp_path / "in", rows)], tmp_path / "out", workers=1)
    assert card["dropped"]["half a surrogate pair"] == 2
    assert card["dropped_examples"]["half a surrogate pair"][0]["place"] == f"{tmp_path / 'in'}:{len(rows) - 1}"


def test_a_number_of_more_than_64_bits(tmp_path):
    row = '<row Id="{}" PostTypeId="{}" ParentId="1" Title="t" Score="{}" Body="post {}"/>\n'
    posts = [(1, 1, 0, "a"), (2, 2, 0, "b"), (3, 2, 9, "c"), (2**64, 2, 9, "d")]
    (tmp_path / "Posts.xml").write_text("".join(row.format(*post) for post in posts))
    card = prepare.prepare("stackexchange", [str(tmp_path / "Posts.xml")], tmp_path / "out", workers=1)
    assert card["dropped"] == {"number of more than 64 bits": 1} and card["kept"] == 3


@pytest.mark.parametrize(
    "content, message", [(b"", "in: empty"), (b"no tab\n" * 3, r"no rows to use: 3 x no tab .*in:1")]
)
def test_nothing_to_use(content, message, tmp_path):
    (tmp_path / "in").write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare.prepare(NOTES, [str(tmp_path / "in")], tmp_path / "out", workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]  # mended, it can be prepared at once


def test_a_source_that_fails_or_loses_rows(tmp_path):
    rows = thread_rows(40)
    name = write_lines(tmp_path / "in", [*rows, {"thread": "1", "text": "fail"}])
    with pytest.raises(RuntimeError, match=rf"{name}:\d+: the source own_sources.threads failed: ZeroDivisionError"):
        prepare.prepare(THREADS, [name], tmp_path / "out", workers=1)
    name = write_lines(tmp_path / "other", rows)
    with pytest.raises(RuntimeError, match=rf"{name}:\d+: the source .* failed: .*\d rows gave 0 records and 0 drops"):
        prepare.prepare(THREADS, [name], tmp_path / "out2", workers=1, options={"lose": True})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"source": "stackexchang"}, "no source named 'stackexchang'; did you mean 'stackexchange'"),
        ({"source": "own_sources.nothing"}, "No module named 'own_sources.nothing'"),
        ({"source": "os.path"}, "--source=os.path: the module has no SOURCE"),
        ({"kind": "pairs"}, "--kind=pairs: own_sources.notes makes documents"),
        ({"options": {"block_byte": "1"}}, "--option=block_byte=1: .* no such option; did you mean 'block_bytes'"),
        ({"options": {"block_bytes": "x"}}, "--option=block_bytes=x: must be a whole number"),
        ({"source": THREADS, "options": {"slow": "x"}}, "--option=slow=x: must be a number"),
        ({"source": THREADS, "options": {"lose": "1"}}, "--option=lose=1: must be true or false"),
        ({"held_out": 0.5}, "--held_out=0.5: must be a share"),
        ({"partitions": 0}, "--partitions=0: must be at least 1"),
        ({"workers": -1}, "--workers=-1: must be positive"),
        ({"bad_rows": "keep"}, "--bad_rows=keep: must be one of drop, error"),
        ({"tokenizer": "nowhere.json"}, "--tokenizer=nowhere.json: no such file"),
        ({"output": os.fsdecode(b"out\xff")}, "--output=.*: must be UTF-8"),
        ({"inputs": []}, "--input: give a path"),
        ({"inputs": ["a", ""]}, "--input: give a path"),
        ({"inputs": ["a", "b", "a"]}, "--input: a is given 2 times"),
        ({"inputs": ["nowhere"]}, "nowhere: can't be opened: No such file or directory"),
        ({"inputs": ["long" * 100]}, "long: can't be opened: No such file or directory"),
    ],
)
def test_wrong_settings(arguments, message, tmp_path):
    arguments = {
        "source": NOTES,
        "inputs": [str(tmp_path / "in")],
        "output": tmp_path / "out",
        "workers": 1,
    } | arguments
    (tmp_path / "in").write_text("a\tb\n")
    with pytest.raises(UserError, match=message):
        prepare.prepare(**arguments)
    assert not (tmp_path / "out").exists()


def test_errors_are_one_line(tmp_path):
    status, text = Process(tmp_path / "out", "--source=notez", "--input=x", "--option=a").end()
    assert (status, text) == (2, "error: --option=a: give it as --option=NAME=VALUE\n")
    status, text = Process(tmp_path / "out", "--source=notez", "--input=x,y").end()
    assert status == 2 and text.startswith("error: no source named 'notez'") and text.count("\n") == 1
    names = ",".join(f"{i:0100}" for i in range(100))  # no file has so long a name
    status, text = Process(tmp_path / "out", f"--source={NOTES}", f"--input={names}").end()
    assert (status, text) == (2, f"error: {0:0100}: can't be opened: No such file or directory\n")


def test_splits():
    def share(published, split=None):
        made = [Made(Document(str(i), "", f"group {i}"), split) for i in range(5000)]
        return Counter(choose_split(item, published, 0.1) for item in made)

    for published, split in (((), None), (("train", "test"), None)):
        assert share(published, split).keys() == {"train", "validation", "test"}
        assert all(400 < share(published, split)[name] < 600 for name in ("validation", "test"))
    assert 400 < share(("train", "test"), "train")["validation"] < 600
    assert share(("train", "test"), "train").keys() == {"train", "validation"}
    assert share(("train", "test"), "test") == {"test": 5000}
    assert share(("train", "validation"), "train") == {"train": 5000}
    assert share(("test",), "test_hard") == {"test_hard": 5000}
    with pytest.raises(ValueError, match="no name for a split"):
        share((), "Test-Hard")


def test_the_registry_finds_every_source():
    for name in sources.MODULES:
        assert sources.load(name).name == name
