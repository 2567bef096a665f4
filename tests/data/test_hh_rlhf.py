"""HH-RLHF: what two dialogues share up to an answer is the context, the first turn is the group."""

import gzip
import json

import pytest
from source_runs import run

from hhh_jax.data import sources
from hhh_jax.errors import UserError

HH_RLHF = sources.load("hh_rlhf")
H, A = "\n\nHuman:", "\n\nAssistant:"


@pytest.fixture
def dialogues(tmp_path):
    """Writes (chosen, rejected) as a published file."""

    def write(*pairs, name="helpful-base/test.jsonl.gz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        rows = [
            pair if isinstance(pair, dict) else dict(zip(("chosen", "rejected"), pair, strict=True)) for pair in pairs
        ]
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
        return path

    return write


@pytest.mark.parametrize(
    ("chosen", "rejected", "context", "good", "bad"),
    [
        (f"{H} Hi{A} Yes", f"{H} Hi{A} Yes!", f"{H} Hi{A}", " Yes", " Yes!"),
        (f"{H} Hi{A} Oh{H} So{A} A b", f"{H} Hi{A} Oh{H} So{A} A c ", f"{H} Hi{A} Oh{H} So{A}", " A b", " A c"),
        (f"{H} Hi{A} A{H} x{A} B", f"{H} Hi{A} A{H} y{A} B", f"{H} Hi{A}", f" A{H} x{A} B", f" A{H} y{A} B"),
        (f"{H} Hi{A} A", f"{H} Hi{A} A{H} y{A} B", f"{H} Hi{A}", " A", f" A{H} y{A} B"),
    ],
)
def test_the_context_ends_at_the_last_shared_answer(dialogues, chosen, rejected, context, good, bad):
    made = run(HH_RLHF, [dialogues((chosen, rejected))])
    (pair,) = made.records
    assert (pair.context, pair.good, pair.bad) == (context, good, bad) and made.splits == ["test"]
    assert pair.id.startswith("helpful-base:")


def test_groups_are_first_turns_in_all_files(dialogues):
    train = dialogues((f"{H} Hi{A} 1", f"{H} Hi{A} 2"), name="harmless-base/train.jsonl.gz")
    test = dialogues((f"{H} Hi{A} 1{H} So{A} 1", f"{H} Hi{A} 1{H} So{A} 2"), (f"{H} Ho{A} 1", f"{H} Ho{A} 2"))
    made = run(HH_RLHF, [train.parents[1]])
    (first,), (second, third) = made.of("train"), sorted(made.of("test"), key=lambda pair: "Ho" in pair.context)
    assert first.group == second.group != third.group and test.exists()


def test_what_is_no_comparison_is_dropped(dialogues):
    made = run(HH_RLHF, [dialogues((f"{H} Hi{A} Yes", f"{H} Hi{A} Yes "), (f"{H} Hi{A} Yes", f"{H} Hi{A} "))])
    assert made.reasons == {"both dialogues are the same": 1, "an answer is empty": 1}
    assert not any(drop.bad for drop in made.drops)
    made = run(HH_RLHF, [dialogues((f"{H} Hi{A} Yes", f"{H} Ho{A} Yes"), ("a", "b"), {"chosen": "x"})])
    assert made.kept == 0 and all(drop.bad for drop in made.drops)
    assert run(HH_RLHF, [dialogues({"transcript": "x"}, name="red_team_attempts.jsonl.gz")]).reasons.total() == 1
    with pytest.raises(UserError, match="none of its 1 files is a train or test file"):
        run(HH_RLHF, [dialogues({"transcript": "x"}, name="red-team-attempts/red_team_attempts.jsonl.gz").parent])


@pytest.mark.real_data("hh_rlhf/helpful-base/test.jsonl.gz", "hh_rlhf/harmless-base/test.jsonl.gz")
def test_real_dialogues(real_data):
    made = run(HH_RLHF, [real_data / "hh_rlhf"])
    assert made.read == 2354 + 2312
    assert made.reasons == {"an answer is empty": 8, "both dialogues are the same": 2}
    for pair in made.records:
        assert pair.context.startswith(H) and pair.context.endswith(A) and H not in pair.good + pair.bad
        assert pair.good[0] == pair.bad[0] == " " and pair.good != pair.bad
    assert len({pair.group for pair in made.records}) > 4300
