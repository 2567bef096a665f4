"""Evaluations of a small run, from records on disk to rows, against the whole computation without a cache."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_runs import tiny

from hhh_jax import prompts, run, sharding
from hhh_jax.data.records import MultipleChoice, Pair, Prompt
from hhh_jax.data.shards import serialize, write_records
from hhh_jax.errors import UserError
from hhh_jax.evals import battery, own_hhh, templates
from hhh_jax.evals.battery import Settings, run_battery
from hhh_jax.model import hidden_states, lm_logits
from hhh_jax.storage import open_path

CONTEXT = 1024


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory) -> Path:
    """A language model of two seeds with room for the short prompt and an item of 300 bytes."""
    workdir = tmp_path_factory.mktemp("long")
    run.run(tiny("pretrain", corpus, data__row_length=CONTEXT, batch__rows=1), workdir, quiet=True)
    return workdir


@pytest.fixture(scope="module")
def logps(checkpoint):
    """Log-probability of each token of a list of ids after those before it, for seed 1, computed whole."""
    c, tokenizer = run.load_config(open_path(checkpoint))
    step_config = run.make_step_config(c, tokenizer.vocab_size, sharding.make_mesh())
    params = jax.tree.map(lambda x: x[1], run.load_state(open_path(checkpoint), step_config)["params"])

    def compute(ids: np.ndarray) -> np.ndarray:
        tokens_1xT, ones_1xT = ids[None], np.ones((1, len(ids)), np.int32)
        hidden = hidden_states(step_config.model, params, tokens_1xT, ones_1xT, 0 * ones_1xT, np.arange(len(ids))[None])
        logp_TxV = np.asarray(jax.nn.log_softmax(lm_logits(params, hidden[0, :-1])))
        return logp_TxV

    return tokenizer, compute


def prepared(folder: Path, source: str, kind: str, records) -> Path:
    """A prepared folder as `hhh_jax.data.prepare` leaves it, as far as evaluations read it."""
    path = folder / source
    path.mkdir(parents=True)
    (path / "card.json").write_text(json.dumps({"kind": kind, "records": {"test": len(records)}}))
    write_records(path / f"{source}-test.array_record-00000-of-00001", [serialize(record) for record in records])
    return folder


def test_a_prompted_choice_is_the_whole_text_computed(checkpoint, logps, tmp_path):
    run_battery(checkpoint, ["own_hhh"], tmp_path, Settings("short", limit=4))
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    tokenizer, compute = logps
    record = own_hhh.load()[2]
    text = prompts.load("short").text, prompts.as_question(record.context)
    before = np.concatenate([tokenizer.encode(part) for part in text])
    for option in (0, 1):
        own = tokenizer.encode(record.options[option])
        logp_TxV = compute(np.concatenate([before, own]))
        expected = logp_TxV[np.arange(len(before) - 1, len(before) - 1 + len(own)), own].sum()
        (found,) = (i for i in items if (i["item_id"], i["option"], i["seed"]) == (record.id, option, 1))
        assert found["logp_sum"] == pytest.approx(expected, rel=1e-5)
        assert found["n_tokens"] == len(own)
    assert json.loads((tmp_path / "own_hhh" / "about.json").read_text())["notes"][0].startswith("prompt short (")


def test_rows_follow_from_the_items(checkpoint, tmp_path):
    rows = run_battery(checkpoint, ["own_hhh"], tmp_path, Settings("template", limit=13))
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    scores = {(i["seed"], i["item_id"], i["option"]): i for i in items}
    for seed in (0, 1):
        right = 0.0
        for record in own_hhh.load()[:13]:
            good, bad = (scores[seed, record.id, option] for option in (0, 1))
            gain = [i["logp_sum"] - i["logp_unconditional"]["empty"] for i in (good, bad)]
            right += 0.5 if gain[0] == gain[1] else gain[0] > gain[1]
        wanted = {"task": "own_hhh", "seed": seed, "ranker": "mutual_information_empty", "metric": "accuracy"}
        (row,) = (row for row in rows if wanted.items() <= row.items())
        assert row["value"] == pytest.approx(right / 13) and row["n_items"] == 13
        assert row["intervention"] == "template" and row["stage"] == "evaluate"
    assert {row["task"] for row in rows} == {"own_hhh", "own_hhh:helpful", "own_hhh:honest"}
    trivial = [row for row in rows if row["stage"] == "baseline"]
    assert trivial and not any({"N", "intervention", "config_sha"} & row.keys() for row in trivial)
    printed = [line.split() for line in battery.summary_lines(rows)]
    mean = np.mean([row["value"] for row in rows if {**wanted, "seed": row["seed"]}.items() <= row.items()])
    assert ["own_hhh", "mutual_information_empty", "accuracy", f"{mean:.3f}"] in [line[:4] for line in printed]


def test_rows_of_a_study_name_the_run_that_has_their_items(checkpoint, tmp_path):
    """Claims find the records behind a row by its run; two conversations are a prompt of their own."""
    directory = tmp_path / "evaluate-pretrain-two"
    directory.mkdir()
    battery.job(directory, after=checkpoint, study="s", evals=["own_hhh"], intervention="two", limit=3)
    rows = [json.loads(line) for line in (directory / "rows.jsonl").read_text().splitlines()]
    found = {(row["run"], row.get("intervention", row["ranker"])) for row in rows}
    assert found == {("evaluate-pretrain-two", name) for name in ("two", "chance", "shorter", "longer")}
    assert json.loads((directory / "own_hhh" / "about.json").read_text())["notes"][0].startswith("prompt two (")


@pytest.mark.slow
def test_two_runs_give_identical_records_and_done_ones_are_kept(checkpoint, tmp_path):
    once, again = tmp_path / "once", tmp_path / "again"
    for output in (once, again):
        run_battery(checkpoint, ["own_hhh", "counting:64-71"], output, Settings(limit=3))
    for name in ("rows.jsonl", "items.jsonl", "own_hhh/about.json"):
        assert (once / name).read_bytes() == (again / name).read_bytes()
    marked = once / "own_hhh" / "rows.jsonl"
    marked.write_text('{"kept": true}\n')
    rows = run_battery(checkpoint, ["own_hhh", "counting:64-71"], once, Settings(limit=3))
    assert rows[0] == {"kept": True}
    with pytest.raises(UserError, match="made with limit = 3, not 4"):
        run_battery(checkpoint, ["own_hhh"], once, Settings(limit=4))


def test_lambada_counts_words_whose_every_token_is_the_most_probable(checkpoint, logps, tmp_path):
    """One target is what the model says, the others are not; one passage is too long to ask."""
    tokenizer, compute = logps
    passages = [f"the quick {word} ran over the hill and met the" for word in ("fox", "hen", "cow")]
    records = []
    for i, passage in enumerate(passages):
        ids = tokenizer.encode(passage)
        said = tokenizer.decode([int(compute(np.append(ids, 0))[-1].argmax())])
        word = said.removeprefix(" ") if i == 0 and said.startswith(" ") and said.strip() else "zebra"
        records.append(Prompt(f"p{i}", passage, f"p{i}", {"target": word, "format": "nice"}))
    records.append(Prompt("long", "word " * CONTEXT, "long", {"target": "end", "format": "nice"}))
    data = prepared(tmp_path / "data", "lambada", "prompts", records)
    rows = run_battery(checkpoint, ["lambada"], tmp_path / "out", Settings(data=str(data)))
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    of_seed_1 = {i["item_id"]: i for i in items if i["seed"] == 1}
    for record in records[:3]:
        target = tokenizer.encode(f" {record.meta['target']}")
        ids = np.concatenate([tokenizer.encode(record.text), target])
        logp_TxV = compute(ids)[-len(target) :]
        assert of_seed_1[record.id]["correct"] == int((logp_TxV.argmax(-1) == target).all())
    assert "exceed the model's context" in of_seed_1["long"]["error"] and "correct" not in of_seed_1["long"]
    (accuracy,) = (row for row in rows if (row["metric"], row["seed"]) == ("accuracy", 1))
    assert accuracy["n_items"] == 3
    (errors,) = (row for row in rows if row["metric"] == "errors")
    assert errors["value"] == 1


@pytest.mark.slow
def test_what_cannot_be_asked_is_an_error_and_not_a_wrong_answer(checkpoint, tmp_path, monkeypatch):
    """A broken item and over-long ones, in each kind of evaluation; the others are counted alone."""
    monkeypatch.setattr("hhh_jax.evals.toxicity.SAMPLES", 2)
    long = "word " * CONTEXT
    options = (" yes", " certainly not")
    items = [MultipleChoice(f"q{i}", f"Is {i} even?", options, i % 2, f"q{i}") for i in range(4)]
    items += [MultipleChoice("label", "?", options, 7, "label"), MultipleChoice("none", "?", (), 0, "none")]
    items += [MultipleChoice("long", long, options, 0, "long")]
    kinds = ("toxic", "nontoxic")
    prompts = [Prompt(f"{kind}{i}", f"The {i}", kind, {"category": kind}) for kind in kinds for i in range(5)]
    prompts += [Prompt(f"{kind} long", long, kind, {"category": kind}) for kind in kinds]
    problem = {"entry_point": "one", "tests": "def check(f):\n    assert f() == 1\n"}
    problems = [Prompt("one", "def one():\n", "one", problem), Prompt("long", long, "long", problem)]
    prepared(tmp_path / "data", "truthfulqa", "choices", items)
    prepared(tmp_path / "data", "toxicity", "prompts", prompts)
    prepared(tmp_path / "data", "humaneval", "prompts", problems)
    scorer = tmp_path / "half.py"
    scorer.write_text("def half(texts):\n    return [0.5] * len(texts)\n")
    settings = Settings(data=str(tmp_path / "data"), toxicity=f"{scorer}:half", run_untrusted_code=True)
    rows = run_battery(checkpoint, ["truthfulqa", "toxicity", "humaneval"], tmp_path / "out", settings)
    found = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    failed = {(item["task"], item["item_id"]): item["error"] for item in found if "error" in item}
    too_long = "exceed the model's context of 1024"
    assert {name: reason.partition(" ")[2] if "tokens" in reason else reason for name, reason in failed.items()} == {
        ("truthfulqa", "label"): "label 7 of 2 options", ("truthfulqa", "none"): "label 0 of 0 options",
        ("truthfulqa", "long"): "tokens, and the model's context has 1024",
        **{("toxicity", f"{kind} long"): f"tokens {too_long}" for kind in kinds},
        ("humaneval", "long"): f"tokens {too_long}",
    }  # fmt: skip
    errors = {row["task"]: row["value"] for row in rows if row["metric"] == "errors"}
    assert errors == {"truthfulqa": 3, "toxicity": 2, "humaneval": 1}
    of_model = [row for row in rows if row["seed"] == 0]
    n_items = {row["task"]: row["n_items"] for row in of_model}
    assert n_items == {"truthfulqa": 4, "toxicity:toxic": 5, "toxicity:nontoxic": 5, "humaneval": 1}
    assert {row["n_items"] for row in rows if row["task"] == "truthfulqa" and row["stage"] == "baseline"} == {5}


def test_counting_scores_every_number_once(checkpoint, tmp_path):
    expected = [("counting:1-80", range(1, 81)), ("counting:64-71", range(64, 72))]
    rows = run_battery(checkpoint, [name for name, _ in expected], tmp_path, Settings())
    found = {(row["task"], row["seed"], row["k"]) for row in rows}
    assert found == {(task, seed, n) for task, numbers in expected for seed in (0, 1) for n in numbers}


@pytest.mark.slow
def test_a_limit_takes_whole_groups_of_ethics(checkpoint, tmp_path):
    """Of groups of four that come mixed, six items are the two first; a group counts if all its items are right."""
    labels = (" yes", " no")
    pairs = [
        Pair(f"g{g}:{i}", f"I slept in bed {g} {i}.\nReasonable:", labels[i % 2], labels[1 - i % 2], f"g{g}")
        for i in range(4) for g in (3, 1, 4, 0, 2)
    ]  # fmt: skip
    data = prepared(tmp_path / "data", "ethics_justice", "pairs", pairs)
    settings = Settings("template", data=str(data), limit=6)
    rows = run_battery(checkpoint, ["ethics_justice"], tmp_path / "out", settings)
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert {item["group_id"] for item in items} == {"g3", "g1"} and len(items) == 8 * 2 * 2
    of_seed_0 = {(i["item_id"], i["option"]): i["logp_sum"] for i in items if i["seed"] == 0}
    right = {name: of_seed_0[name, 0] > of_seed_0[name, 1] for name, _ in of_seed_0}
    share = np.mean([all(right[f"{g}:{i}"] for i in range(4)) for g in ("g3", "g1")])
    wanted = {"seed": 0, "ranker": "sum_logp", "metric": "group_accuracy"}
    (row,) = (row for row in rows if wanted.items() <= row.items())
    assert row["value"] == share and row["n_items"] == 2
    data = prepared(tmp_path / "uneven", "ethics_justice", "pairs", pairs[:-1])  # g2 only keeps together what is alike
    rows = run_battery(checkpoint, ["ethics_justice"], tmp_path / "other", Settings(data=str(data)))
    assert {row["metric"] for row in rows} == {"accuracy"}
    chance = [row for row in rows if (row.get("stage"), row["ranker"]) == ("baseline", "chance")]
    assert [row["value"] for row in chance] == [0.5]


def test_the_prompt_that_fits_is_taken_and_said(checkpoint, tmp_path):
    run_battery(checkpoint, ["own_hhh"], tmp_path, Settings("prompt", limit=2))
    about = json.loads((tmp_path / "own_hhh" / "about.json").read_text())
    assert about["notes"][0].startswith("prompt short (") and "in place of hhh (" in about["notes"][0]
    with pytest.raises(UserError, match="together more than the model's context of 500"):
        run_battery(checkpoint, ["own_hhh"], tmp_path / "small", Settings("short", limit=2, context=500))


def test_what_cannot_be_evaluated(checkpoint, tmp_path):
    with pytest.raises(UserError, match="no evaluation 'hh'; there are own_hhh"):
        run_battery(checkpoint, ["hh"], tmp_path, Settings())
    with pytest.raises(UserError, match=r"truthfulqa: no prepared data .* make it by python -m hhh_jax.data.prepare"):
        run_battery(checkpoint, ["truthfulqa"], tmp_path, Settings(data=str(tmp_path)))
    data = prepared(tmp_path / "data", "truthfulqa", "prompts", [Prompt("x", "y", "z")])
    with pytest.raises(UserError, match=r"holds prompts, and choices are needed; prepare it with --kind=choices"):
        run_battery(checkpoint, ["truthfulqa"], tmp_path / "other", Settings(data=str(data)))


def test_every_choice_has_its_template():
    texts = templates.load()
    assert {"bare", "dialogue", "empty"} <= texts["hhh"].keys() & texts["truthfulqa"].keys() & texts["hellaswag"].keys()
    assert texts["hhh"]["empty"] == prompts.as_question("") and set(battery.EVALUATIONS) > {"hhh", "toxicity"}


def test_programs_run_only_where_that_is_allowed(checkpoint, tmp_path):
    tests = "def check(f):\n    assert f(1, 2) == 3\n"
    problem = Prompt("add", "def add(a, b):\n", "add", {"entry_point": "add", "tests": tests})
    data = prepared(tmp_path / "data", "humaneval", "prompts", [problem])
    with pytest.raises(UserError, match="--run_untrusted_code"):
        run_battery(checkpoint, ["humaneval"], tmp_path / "no", Settings(data=str(data)))
    rows = run_battery(checkpoint, ["humaneval"], tmp_path / "yes", Settings(data=str(data), run_untrusted_code=True))
    items = [json.loads(line) for line in (tmp_path / "yes" / "items.jsonl").read_text().splitlines()]
    assert len(items) == 20 and {item["outcome"] for item in items} <= {"passed", "failed"}
    assert {(row["k"], row["seed"]) for row in rows} == {(1, 0), (1, 1), (10, 0), (10, 1)}


@pytest.mark.slow
def test_toxicity_is_sampled_judged_and_forbids_in_the_dialogue(checkpoint, tmp_path, monkeypatch):
    """A scorer of the user's: the share of capitals. What is forbidden never comes."""
    monkeypatch.setattr("hhh_jax.evals.toxicity.SAMPLES", 3)
    monkeypatch.setattr("hhh_jax.evals.toxicity.FORBIDDEN", ("e",))
    scorer = tmp_path / "capitals.py"
    scorer.write_text("def share(texts):\n    return [sum(c.isupper() for c in t) / max(len(t), 1) for t in texts]\n")
    records = [Prompt(f"{c}{i}", f"The {i}", c, {"category": c}) for c in ("toxic", "nontoxic") for i in range(3)]
    data = prepared(tmp_path / "data", "toxicity", "prompts", records)
    settings = Settings("template", data=str(data), toxicity=f"{scorer}:share")
    rows = run_battery(checkpoint, ["toxicity", "toxicity_free"], tmp_path / "out", settings)
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    said = {task: "".join(i["said"] for i in items if i["task"] == task) for task in ("toxicity", "toxicity_free")}
    assert "e" not in said["toxicity"] and "e" in said["toxicity_free"]
    one = [i["toxicity"] for i in items if (i["task"], i["seed"], i["category"]) == ("toxicity", 1, "toxic")]
    wanted = {"task": "toxicity:toxic", "seed": 1, "metric": "toxicity"}
    (row,) = (row for row in rows if wanted.items() <= row.items())
    assert len(one) == 9 and row["value"] == pytest.approx(np.mean(one)) and row["n_items"] == 3
    limited = battery.EVALUATIONS["toxicity"].first(records, 4)
    assert sorted(record.meta["category"] for record in limited) == ["nontoxic"] * 2 + ["toxic"] * 2
