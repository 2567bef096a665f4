"""The record: what is read back, what a kill leaves, what a full disk leaves, what a person sees."""

import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hhh_jax import record
from hhh_jax.errors import UserError
from hhh_jax.record import (
    Record,
    cut_metrics,
    is_time_field,
    jsonable,
    read_metrics,
    write_json_atomic,
    write_text_atomic,
)

STEPS = 8


def metrics_at(step: int) -> dict[str, Any]:
    """Every kind of value that a step may have, among them what is not finite."""
    return {
        "loss": np.float32([1 / step, math.nan if step == 3 else 0.1 * step]),
        "pairs_seen": jnp.int32(16 * step),
        "learning_rate": 1e-3 / step,
        "largest": math.inf if step == 5 else -math.inf if step == 6 else 0.0,
        "tokens_per_second": 1e5 + step,
        "step_seconds": 0.25,
    }


def run(workdir: Path, resume_step: int | None, last_step: int = STEPS) -> None:
    """A run from `resume_step` on that ends, or is killed, at `last_step`."""
    with Record(workdir, resume_step, STEPS, quiet=True) as run_record:
        for step in range((resume_step or 0) + 1, last_step + 1):
            run_record.log(step, metrics_at(step))


def without_time(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if not is_time_field(name)} for line in lines]


def read_events(workdir: Path) -> list[Any]:
    """All events of a folder, oldest file first; checks every length and checksum of the TFRecord framing."""
    from tensorboardX.proto.event_pb2 import Event

    def masked_crc32c(data: bytes) -> int:  # bit by bit, from the definition
        crc = 0xFFFFFFFF
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        crc ^= 0xFFFFFFFF
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    events = []
    for path in sorted(workdir.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            data = content[12 : 12 + length]
            assert struct.unpack("<I", content[8:12])[0] == masked_crc32c(content[:8])
            assert struct.unpack("<I", content[12 + length : 16 + length])[0] == masked_crc32c(data)
            events.append(Event.FromString(data))
            content = content[16 + length :]
    return events


def test_metrics_read_back_bit_for_bit(tmp_path):
    run(tmp_path, None)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        expected = metrics_at(line["step"])
        np.testing.assert_array_equal(np.float32(line["loss"]), expected["loss"])
        assert line["learning_rate"] == expected["learning_rate"]
        assert line["pairs_seen"] == 16 * line["step"] and isinstance(line["pairs_seen"], int)
        assert line["largest"] == expected["largest"]
        assert list(line)[:2] == ["step", "time"]
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text  # which other readers of JSON refuse


@given(st.floats())
def test_floats_survive_json(x):
    back = record._as_number(json.loads(json.dumps(jsonable(x), allow_nan=False)))
    assert struct.pack("<d", back) == struct.pack("<d", x) or (math.isnan(x) and math.isnan(back))


def test_jsonable():
    value = {
        "bf16": jnp.asarray([1.5, math.nan], jnp.bfloat16),
        "scalars": (np.float64(0.1), np.int64(3), np.bool_(True), jnp.float32(0.5)),
        "plain": [None, True, "x", {1: -math.inf}],
    }
    assert jsonable(value) == {
        "bf16": [1.5, "nan"],
        "scalars": [0.1, 3, True, 0.5],
        "plain": [None, True, "x", {"1": "-inf"}],
    }
    with pytest.raises(TypeError, match="object"):
        jsonable({"x": object()})


@pytest.mark.parametrize("resume_step", [None, 1, 4, STEPS])
def test_resumed_record_equals_an_uninterrupted_one(tmp_path, resume_step):
    run(tmp_path / "whole", None)
    run(tmp_path / "killed", None, last_step=STEPS)
    run(tmp_path / "killed", resume_step)
    whole, killed = tmp_path / "whole/metrics.jsonl", tmp_path / "killed/metrics.jsonl"
    assert without_time(killed) == without_time(whole)


def test_cut_at_every_byte_of_the_last_line(tmp_path):
    """Killed anywhere while the line of step 6 is written, and resumed from any step at or before 5."""
    path = tmp_path / "metrics.jsonl"
    run(tmp_path, None, last_step=6)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    for resume_step in (0, 5):
        for end in range(len(content) - len(lines[-1]), len(content) + 1):
            path.write_bytes(content[:end])
            cut_metrics(path, resume_step)
            assert path.read_bytes() == b"".join(lines[:resume_step])
    path.write_bytes(content[:-1])
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4, 5]
    assert list(tmp_path.glob(".*")) == []


def test_cut_leaves_a_file_alone_that_needs_none(tmp_path):
    path = tmp_path / "metrics.jsonl"
    cut_metrics(path, 3)
    assert not path.exists()
    run(tmp_path, None, last_step=3)
    before = path.stat()
    cut_metrics(path, 3)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', '{"step": "1"}'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    for reader in (read_metrics, lambda path: cut_metrics(path, 1)):
        with pytest.raises(UserError, match=r"metrics\.jsonl:2: "):
            reader(path)


def test_what_is_logged_outlives_kill_9(tmp_path):
    script = """if True:
        import os, signal, sys
        from hhh_jax.record import Record
        with Record(sys.argv[1], None, 9) as run_record:
            run_record.log(1, {"loss": 0.5})
            run_record.log(2, {"loss": 0.25})
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
    assert [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0.5, 0.25]
    assert [event.summary.value[0].simple_value for event in read_events(tmp_path)[2:]] == [0.5, 0.25]
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


def test_tensorboard_events(tmp_path):
    run(tmp_path, None)
    events = read_events(tmp_path)
    assert events[0].file_version == "brain.Event:2"
    by_step = {event.step: {v.tag: v.simple_value for v in event.summary.value} for event in events[2:]}
    assert sorted(by_step) == list(range(1, STEPS + 1))
    for step, scalars in by_step.items():
        expected = {name: np.asarray(value) for name, value in metrics_at(step).items()}
        expected |= {f"loss/seed{seed}": loss for seed, loss in enumerate(expected.pop("loss"))}
        assert scalars.keys() == expected.keys()
        for name, value in scalars.items():
            np.testing.assert_array_equal(np.float32(value), expected[name].astype(np.float32))


def test_tensorboard_drops_what_a_resumed_run_does_again(tmp_path):
    """TensorBoard's own rule, event by event: a start at step s drops what it knows of step s and later."""
    from tensorboardX.proto.event_pb2 import SessionLog

    run(tmp_path, None, last_step=6)
    run(tmp_path, 4)
    seen: list[int] = []
    for event in read_events(tmp_path):
        if event.session_log.status == SessionLog.START:
            seen = [step for step in seen if step < event.step]
        elif event.HasField("summary"):
            seen.append(event.step)
    assert seen == list(range(1, STEPS + 1))


def test_plain_lines_off_a_terminal(tmp_path, capsys, monkeypatch):
    now = 100.0
    monkeypatch.setattr(record.time, "monotonic", lambda: now)
    with Record(tmp_path, None, STEPS) as run_record:
        run_record.say("compiling")
        for step in range(1, STEPS + 1):
            run_record.log(step, {"loss": [0.5, 0.25], "tokens_per_second": 12345.0})
            now += 6.0
    printed = capsys.readouterr()
    assert printed.out == ""
    # 6 s a step: a line after each second step, and the last one
    assert printed.err.splitlines() == [
        "compiling",
        "step 1/8 loss=[0.5 0.25] 12.3k tokens/s",
        "step 3/8 loss=[0.5 0.25] 12.3k tokens/s 0:00:30 left",
        "step 5/8 loss=[0.5 0.25] 12.3k tokens/s 0:00:18 left",
        "step 7/8 loss=[0.5 0.25] 12.3k tokens/s 0:00:06 left",
        "step 8/8 loss=[0.5 0.25] 12.3k tokens/s 0:00:00 left",
    ]
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines][:2] == ["compiling", printed.err.splitlines()[1]]
    assert len(lines) == 1 + STEPS


def test_progress_bar_on_a_terminal(tmp_path):
    script = """if True:
        import sys
        from hhh_jax.record import Record
        with Record(sys.argv[1], 10, 30) as run_record:
            for step in range(11, 31):
                run_record.log(step, {"loss": 0.5, "tokens_per_second": 12345.0, "other": 1})
            run_record.say("evaluating")
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not data:
            break
        shown += data
    os.close(ours)
    assert process.wait() == 0
    bars = re.split(r"[\r\n]+", shown.decode())
    assert any("10/30" in bar for bar in bars)
    last = [bar for bar in bars if "30/30" in bar][-1]
    assert "100%" in last and "loss=0.5 12.3k tokens/s" in last and "other" not in last
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d", last)  # time spent and time left
    assert "evaluating" in bars


def test_quiet_and_disabled(tmp_path, capsys):
    with Record(tmp_path / "quiet", None, 2, quiet=True) as run_record:
        run_record.log(2, {"loss": 1.0})
        run_record.say("done")
    assert len((tmp_path / "quiet/log.txt").read_text().splitlines()) == 2
    with Record(tmp_path / "second process", None, 2, enabled=False) as run_record:
        run_record.log(2, {"loss": 1.0})
        run_record.say("done")
    assert not (tmp_path / "second process").exists()
    assert capsys.readouterr().err == ""


def test_write_atomic(tmp_path):
    path = tmp_path / "rows.json"
    write_json_atomic(path, {"a": np.arange(2), "b": math.nan, "c": "Grüße\n"})
    assert json.loads(path.read_text()) == {"a": [0, 1], "b": "nan", "c": "Grüße\n"}
    write_text_atomic(path, "é\r\n")
    assert path.read_bytes() == "é\r\n".encode()
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert os.listdir(tmp_path) == ["rows.json"]
    with pytest.raises(UserError, match=r"cannot write .*absent/rows.json: No such file"):
        write_text_atomic(tmp_path / "absent/rows.json", "")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_full_disk_is_one_line_and_leaves_the_old_file(tmp_path):
    """A limit on the size of files is the full disk that every system has."""
    script = """if True:
        import resource, signal, sys
        from pathlib import Path
        from hhh_jax.errors import UserError
        from hhh_jax.record import Record, read_metrics, write_text_atomic
        workdir = Path(sys.argv[1])
        write_text_atomic(workdir / "rows.jsonl", "old")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        try:
            write_text_atomic(workdir / "rows.jsonl", "new" * 1000)
        except UserError as error:
            print(error)
        try:
            with Record(workdir, None, 99) as run_record:
                for step in range(1, 99):
                    run_record.log(step, {"text": "x" * 100})
        except UserError as error:
            print(error)
        print(len(read_metrics(workdir / "metrics.jsonl")))
    """
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == [
        f"cannot write {tmp_path}/rows.jsonl: File too large; mend that and give the same command again",
        f"cannot write {tmp_path}/metrics.jsonl: File too large; mend that and give the same command again",
        str(1000 // len((tmp_path / "metrics.jsonl").read_bytes().splitlines()[0] + b"\n")),
    ]
    assert (tmp_path / "rows.jsonl").read_text() == "old"
    assert sorted(path.name for path in tmp_path.glob("*") if not path.name.startswith("events")) == [
        "log.txt",
        "metrics.jsonl",
        "rows.jsonl",
    ]


def test_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file: File exists"):
        Record(tmp_path / "file", None, 1).__enter__()
