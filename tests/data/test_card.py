"""Data cards against hand counts and brute force."""

import dataclasses
import html.parser
import itertools
import json
import random
import re

import numpy as np
import pytest

from hhh_jax.baselines import baseline_scores
from hhh_jax.data import card, card_page, card_stats, predictors, shards
from hhh_jax.data.records import Document, GroupedLabel, MultipleChoice, Pair, Prompt
from hhh_jax.data.tokenizer import train_tokenizer
from hhh_jax.errors import UserError

WORDS = ["a", "the", "dog", "cat", "runs", "sleeps", "quickly", "well", "red", "blue", "Ökonom", "雨"]


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory):
    """A tokenizer without merges: a token is a byte."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_tokenizer([], 258).to_json())
    return path


def make(directory, kind, splits, **facts):
    """A prepared folder of these records and what `prepare` tells a card about it."""
    rows = [(split, shards.serialize(record)) for split, records in splits.items() for record in records]
    (directory / "units").mkdir()
    shards.write_unit(directory / "units" / "00000", rows, {})
    files = shards.write_folder(directory / "final", "made", "Made up.", kind, directory / "units")
    return {
        "source": "made", "kind": kind, "licence": "CC0", "about": "Made up.",
        "inputs": [{"name": "made.xml", "bytes": 1234, "sha256": "0" * 64, "damage": "broken <compression>"}],
        "settings": {"seed": 0},
        "read": 10, "kept": 7, "dropped": {"too <short>": 3},
        "dropped_examples": {"too <short>": [{"place": "made.xml:3", "detail": "<script>alert(1)</script>"}]},
        "records": {split: len(records) for split, records in splits.items()},
        "shards": [shard | {"sha256": card.sha256(directory / "final" / shard["name"])} for shard in files], **facts,
    }  # fmt: skip


def written(directory, kind, splits, **options):
    """The card of these records, and its folder."""
    facts = make(directory, kind, splits)
    card.write_card(directory / "final", facts, **options)
    return json.loads((directory / "final" / "card.json").read_text()), directory / "final"


def read(folder, split):
    """Decoded ids of a split as TFDS reads it."""
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(folder).as_data_source(split)
    return [source[i]["id"].decode() for i in range(len(source))]


def sentence(rng, n=4):
    return " ".join(rng.choice(WORDS) for _ in range(n))


def random_pairs(rng, n, name):
    """Pairs from so few texts that they repeat, a third without context, in varying case and white space."""
    vary = (str, str.upper, lambda text: f" {text.replace(' ', '  ')}\n")
    pairs = []
    for i in range(n):
        context = rng.choice(vary)(sentence(rng, 2)) if rng.random() < 0.7 else rng.choice(["", " "])
        good, bad = (rng.choice(vary)(sentence(rng, 2)) for _ in range(2))
        pairs.append(Pair(f"{name}{i}", context, good, bad, f"group {rng.randrange(1000)}"))
    return pairs


def test_counts_of_pairs(tmp_path, bytes_tokenizer):
    train = [
        Pair("1", "question é", "good", "bad", "g1"),
        Pair("2", "Question  É", "bad", "GOOD ", "g1"),  # repeats the first with the answers exchanged
        Pair("3", "", "x" * 1023, "y", "g2"),  # exactly 1024 tokens with its end
        Pair("4", "c", "x" * 1023, "y", "g3"),  # the context goes
        Pair("5", "c", "x" * 1024, "y", "g4"),  # the answer does not fit
        Pair("6", "c" * 1000, "x" * 24 + "y", "x" * 24 + "z", "g5"),  # equal in their first 1024 tokens
    ]
    made, _ = written(tmp_path, "pairs", {"train": train}, tokenizer=bytes_tokenizer)
    stats = made["statistics"]["train"]
    sizes = {name: [len(getattr(pair, name).encode()) for pair in train] for name in ("context", "good", "bad")}
    assert stats["records"] == 6 and stats["text_bytes"] == sum(map(sum, sizes.values()))
    assert (stats["groups"], stats["largest_group"], stats["duplicates"], stats["contradictions"]) == (5, 2, 1, 1)
    assert stats["truncation"] == {"truncated": 3, "response too long": 1, "equal if cut at the end": 1}
    assert stats["tokens"]["context"] == {
        "texts": 6, "mean": sum(sizes["context"]) / 6, "median": 1, "p90": 1000, "max": 1000, "empty": 1,
        "histogram": {"1": 2, "10": 2, "813": 1},
    }  # fmt: skip
    for name, values in sizes.items():
        assert stats["tokens"][name]["mean"] == pytest.approx(np.mean(values))
        assert stats["tokens"][name]["max"] == max(values)
    assert made["read"] == 10 and made["records"] == {"train": 6} and made["overlap"] == {} == made["predictors"]
    assert [example["id"] for example in made["examples"]] == ["1", "2", "3"]
    assert made["tokenizer"]["name"] == "tokenizer.json" and made["tokenizer"]["vocab_size"] == 258


def test_histogram_and_quantiles():
    rng = np.random.default_rng(0)
    values = np.floor(rng.lognormal(4, 2, 1000)).astype(int)
    summary = card_stats.summary(card_stats.Counter(values.tolist()))
    edges = card_stats.EDGES
    expected = {str(a): int(((values >= a) & (values < b)).sum()) for a, b in itertools.pairwise(edges)}
    assert summary["histogram"] == {edge: n for edge, n in expected.items() if n}
    assert summary["empty"] == (values == 0).sum() and summary["max"] == values.max()
    ordered = sorted(values)
    assert summary["median"] == ordered[499] and summary["p90"] == ordered[899]


@pytest.mark.parametrize("seed", range(3))
def test_overlap_of_pairs(tmp_path, bytes_tokenizer, seed):
    rng = random.Random(seed)
    splits = {
        "train": random_pairs(rng, 300, "train"), "validation": random_pairs(rng, 40, "v"),
        "test": random_pairs(rng, 80, "t"),
    }  # fmt: skip
    made, folder = written(tmp_path, "pairs", splits, tokenizer=bytes_tokenizer)

    def plain(text):
        return tuple(text.lower().split())

    def item(pair):
        return plain(pair.context), frozenset((plain(pair.good), plain(pair.bad)))

    for split in ("validation", "test"):
        contexts = [plain(pair.context) for pair in splits["train"]]
        sides = [plain(side) for p in splits["train"] if not plain(p.context) for side in (p.good, p.bad)]
        items = list(map(item, splits["train"]))
        groups = [pair.group for pair in splits["train"]]
        hit = [
            plain(pair.context) in contexts if plain(pair.context) else plain(pair.good) in sides
            or plain(pair.bad) in sides
            for pair in splits[split]
        ]  # fmt: skip
        bad_groups = {pair.group for pair, is_hit in zip(splits[split], hit, strict=True) if is_hit} | set(groups)
        free = [pair.id for pair in splits[split] if pair.group not in bad_groups]
        assert 0 < len(free) < len(hit)
        assert made["overlap"][split] == {
            "records": len(hit), "contexts": sum(hit), "free": len(free),
            "items": sum(item(pair) in items for pair in splits[split]),
            "groups": sum(pair.group in groups for pair in splits[split]),
        }  # fmt: skip
        assert read(folder, f"{split}_no_overlap") == free
        assert read(folder, split) == [pair.id for pair in splits[split]]
        assert made["records"][f"{split}_no_overlap"] == len(free)
        shard = next(shard for shard in made["shards"] if shard["split"] == f"{split}_no_overlap")
        assert shard["records"] == len(free) and shard["sha256"] == card.sha256(folder / shard["name"])
        answers = {(plain(pair.context), plain(pair.good), plain(pair.bad)) for pair in splits[split]}
        distinct = set(map(item, splits[split]))
        assert made["statistics"][split]["duplicates"] == len(hit) - len(distinct)
        assert made["statistics"][split]["contradictions"] == len(answers) - len(distinct)


def test_labels_and_their_groups(tmp_path, bytes_tokenizer):
    def label(number, group):
        return GroupedLabel(f"{group}{number}", f"statement {number}", number % 2, group)

    splits = {
        "train": [label(number, f"t{number}") for number in range(10)],
        "test": [label(number, f"g{number // 4}") for number in range(8, 24)],
        "test_hard": [label(number, f"h{number // 4}") for number in range(40, 48)],
    }
    made, folder = written(tmp_path, "labels", splits, tokenizer=bytes_tokenizer)
    assert made["overlap"]["test"] == {"records": 16, "items": 2, "contexts": 2, "groups": 0, "free": 12}
    assert read(folder, "test_no_overlap") == [x.id for x in splits["test"] if x.group != "g2"]
    assert made["overlap"]["test_hard"]["free"] == 8 and "test_hard_no_overlap" not in made["records"]
    assert made["statistics"]["test"]["tables"]["label"] == {"0": 8, "1": 8}
    assert set(made["predictors"]["accuracy"]) == {"test", "test_no_overlap", "test_hard"}
    assert made["predictors"]["group_accuracy"]["test"]["majority"] == predictors.accuracy(np.full(4, 0.5**4))


def test_no_free_record_no_split(tmp_path, bytes_tokenizer):
    pairs = [Pair(str(i), "the same", f"good {i}", f"bad {i}", str(i)) for i in range(30)]
    made, folder = written(tmp_path, "pairs", {"train": pairs[:20], "test": pairs[20:]}, tokenizer=bytes_tokenizer)
    assert made["overlap"]["test"] == {"records": 10, "items": 0, "contexts": 10, "groups": 0, "free": 0}
    assert list(made["records"]) == ["train", "test"] and not list(folder.glob("*no_overlap*"))
    assert "None is free of overlap" in (folder / "card.html").read_text()


def test_writing_again_changes_nothing(tmp_path, bytes_tokenizer):
    rng = random.Random(1)
    facts = make(tmp_path, "pairs", {"train": random_pairs(rng, 60, "a"), "test": random_pairs(rng, 30, "b")})
    contents = []
    for _ in range(2):
        card.write_card(tmp_path / "final", facts, tokenizer=bytes_tokenizer)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "final").iterdir()})
    assert contents[0] == contents[1]
    assert {"card.json", "card.html", "dataset_info.json", "features.json"} < set(contents[0])
    assert not any("tmp" in name for name in contents[0])


def test_predictors_of_pairs_are_the_baselines(tmp_path, bytes_tokenizer):
    rng = random.Random(2)
    train, test = ([Pair(f"{name}{i}", f"{name}{i}", "good " + sentence(rng), sentence(rng), f"{name}{i}")
                    for i in range(40)] for name in "ab")  # fmt: skip
    made, _ = written(tmp_path, "pairs", {"train": train, "test": test}, tokenizer=bytes_tokenizer)
    expected = baseline_scores(train, test)
    assert made["predictors"]["trained_on"] == 40
    assert {k: v["value"] for k, v in made["predictors"]["accuracy"]["test"].items()} == {
        name: score_I.mean() for name, score_I in expected.items()
    }
    assert made["predictors"]["accuracy"]["test"]["bag_of_words"]["value"] == 1


def random_choices(rng, n, name):
    made = []
    for i in range(n):
        options = tuple(sentence(rng, rng.randint(1, 2)) for _ in range(rng.randint(2, 4)))
        label = rng.randrange(len(options))
        made.append(MultipleChoice(f"{name}{i}", f"{name} {i}", options, label, f"{name}{i // 2}"))
    return made


def test_predictors_of_choices():
    rng = random.Random(3)
    train, test = random_choices(rng, 50, "a"), random_choices(rng, 200, "b")
    scores = predictors.held_out_scores(train, test)

    def best(choice, key):  # the chance that the right option is drawn from those with the best key
        values = [key(option) for option in choice.options]
        return (values[choice.label] == max(values)) / values.count(max(values))

    assert scores["longer"].tolist() == pytest.approx([best(choice, lambda o: len(o.encode())) for choice in test])
    assert scores["shorter"].tolist() == pytest.approx([best(choice, lambda o: -len(o.encode())) for choice in test])
    assert scores["chance"].tolist() == pytest.approx([1 / len(choice.options) for choice in test])
    assert any(0 < score < 1 for score in scores["longer"])
    labels = [choice.label for choice in train]
    common = max(set(labels), key=labels.count)
    assert scores["position"].tolist() == [choice.label == common for choice in test]


def test_affordable_training_records(monkeypatch):
    monkeypatch.setattr(predictors, "MAX_TRAIN_PAIRS", 10)
    choices = [MultipleChoice(str(i), "", ("a",) * 5, 0, "") for i in range(9)]  # four pairs each
    assert predictors.affordable(choices) == choices[:2]
    labels = [GroupedLabel(str(i), "", 0, "") for i in range(12)]
    assert predictors.affordable(labels) == labels[:10] and predictors.affordable(labels[:3]) == labels[:3]


def test_bag_of_words_of_choices_learns_a_word():
    rng = random.Random(4)
    choices = random_choices(rng, 120, "a")
    marked = [
        dataclasses.replace(x, options=tuple(o + " right" * (i == x.label) for i, o in enumerate(x.options)))
        for x in choices
    ]
    assert predictors.held_out_scores(marked[:60], marked[60:])["bag_of_words"].mean() == 1
    assert predictors.held_out_scores([], marked)["bag_of_words"].mean() == 1  # in folds


def test_folds_do_not_learn_from_their_own_group():
    rng = random.Random(5)
    pairs = []
    for group in range(60):  # within a group a word tells the good side; in another one it says nothing
        for i in range(4):
            sides = [f"w{group}", "other"]
            pairs.append(Pair(f"{group}/{i}", "", sides[group % 2], sides[1 - group % 2], f"group {group}"))
    rng.shuffle(pairs)
    score = predictors.held_out_scores([], pairs)["bag_of_words"].mean()
    assert score < 0.6
    assert baseline_scores(pairs, pairs)["bag_of_words"].mean() == 1
    assert predictors.held_out_scores([], [dataclasses.replace(pair, group="one") for pair in pairs]) == {}


def test_predictors_of_labels():
    rng = random.Random(6)
    labels = [GroupedLabel(str(i), sentence(rng, rng.randint(1, 9)), rng.randint(0, 1), str(i // 3)) for i in range(90)]
    train, test = labels[:60], labels[60:]
    scores = predictors.held_out_scores(train, test)
    assert set(scores) == {"chance", "majority", "length", "bag_of_words"}
    ones = sum(x.label for x in train)
    assert ones != 30
    assert scores["majority"].tolist() == [x.label == (ones > 30) for x in test]

    def right(cut, above, x):
        return ((len(x.context.encode()) > cut) == above) == x.label

    rules = [(cut, above) for cut in range(-1, 100) for above in (True, False)]
    best = max(sum(right(*rule, x) for x in train) for rule in rules)
    fitting = [[float(right(*rule, x)) for x in test] for rule in rules if sum(right(*rule, x) for x in train) == best]
    assert scores["length"].tolist() in fitting
    assert predictors.by_group(np.array([1, 0.5, 0, 1, 0.5]), list("aabcb")).tolist() == [0.5, 0, 1]


def test_tokens_of_a_part_only(tmp_path, bytes_tokenizer, monkeypatch):
    monkeypatch.setattr(card_stats, "TOKENIZED", (150, 2**20))
    monkeypatch.setattr(card, "TRAIN_DIGESTS", 200)
    documents = [Document(str(i), "word " * (i + 1), str(i % 7)) for i in range(400)]
    made, folder = written(tmp_path, "documents", {"train": documents}, tokenizer=bytes_tokenizer)
    stats = made["statistics"]["train"]
    assert (stats["records"], stats["tokenized"], stats["digested"]) == (400, 150, 256)
    assert stats["tokens"]["text"]["max"] == 750 and stats["text_bytes"] == sum(5 * i for i in range(1, 401))
    assert "Counted in the first records only: 150 of train." in (folder / "card.html").read_text()


def test_long_texts_in_pieces(bytes_tokenizer):
    import tokenizers

    rng = random.Random(8)
    words = " ".join(sentence(rng, 3) for _ in range(20_000))
    text = words + "\n" + "unbroken" * 5000 + "  end"
    assert "".join(card_stats.pieces(text)) == text
    assert max(map(len, card_stats.pieces(text))) <= card_stats.PIECE
    assert list(card_stats.pieces("")) == [""]
    bpe = tokenizers.Tokenizer.from_str(train_tokenizer([words], 300).to_json())
    texts = [words, "", "short", text[:100]]
    expected = [bpe.encode(each).ids for each in texts]
    assert card_stats.encode(texts, bpe) == [(len(ids), ids[: card_stats.MAX_TOKENS]) for ids in expected]
    records = [Document("1", same, "") for same in (text, text.upper().replace(" ", " \n "), text + "!")]
    one, same, other = map(card_stats.digests, records)
    assert one == same and other[card_stats.ITEM] != one[card_stats.ITEM]


def test_sample_is_the_first_records(bytes_tokenizer):
    import tokenizers

    stats = card_stats.SplitStats((100, 20))
    documents = [Document(str(i), "x" * size, "") for i, size in enumerate((5, 14, 100, 1, 1))]
    for document in documents:
        stats.add([document], tokenizers.Tokenizer.from_file(str(bytes_tokenizer)))
    assert stats.sample == documents[:3] and stats.records == 5


def test_prompts_and_their_meta(tmp_path, bytes_tokenizer):
    prompts = [
        Prompt(str(i), f"prompt {i % 8}", "", {"toxicity": i / 10 if i else None, "target": "word", "last": i == 9})
        for i in range(10)
    ]
    made, _ = written(tmp_path, "prompts", {"test": prompts}, tokenizer=bytes_tokenizer)
    assert made["statistics"]["test"]["meta"] == {
        "last": {"types": {"bool": 10}},
        "target": {"types": {"str": 10}},
        "toxicity": {"types": {"none": 1, "number": 9}, "mean": pytest.approx(0.5), "min": 0.1, "max": 0.9},
    }
    assert made["statistics"]["test"]["duplicates"] == 2 and made["predictors"] == {} == made["overlap"]


def test_tokenizers(tmp_path):
    facts = make(tmp_path, "documents", {"train": [Document("1", "text", "1")]})
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json: can't be read as a tokenizer"):
        card.write_card(tmp_path / "final", facts, tokenizer=path)
    card.write_card(tmp_path / "final", facts)
    made = json.loads((tmp_path / "final" / "card.json").read_text())
    assert made["tokenizer"]["vocab_size"] == 258 and "trained on the first 1 records" in made["tokenizer"]["name"]


class Balance(html.parser.HTMLParser):
    """The open elements and the text of a page."""

    VOID = ("meta", "line", "rect", "circle", "path")

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.tags = [], [], set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


@pytest.mark.parametrize("kind", ["pairs", "documents", "choices", "labels", "prompts"])
def test_page(tmp_path, bytes_tokenizer, kind):
    rng = random.Random(7)
    evil = "<script>alert('x')</script> & \"quoted\""
    make_one = {
        "pairs": lambda i: Pair(str(i), f"{evil} {i % 25}", sentence(rng), sentence(rng), f"g{i % 30}"),
        "documents": lambda i: Document(str(i), f"{evil} {i % 25}", f"g{i}"),
        "choices": lambda i: MultipleChoice(str(i), f"{evil} {i % 25}", (sentence(rng), evil), 0, f"g{i}", evil),
        "labels": lambda i: GroupedLabel(str(i), f"{evil} {i % 25}", i % 2, f"g{i // 2}", "part"),
        "prompts": lambda i: Prompt(str(i), f"{evil} {i % 25}", f"g{i}", {evil: i}),
    }[kind]
    records = [make_one(i) for i in range(40)]
    made, folder = written(tmp_path, kind, {"train": records[:20], "test": records[20:]}, tokenizer=bytes_tokenizer)
    page = (folder / "card.html").read_text()
    parsed = Balance(page)
    text = " ".join(" ".join(parsed.text).split())
    assert parsed.open == [] and "script" not in parsed.tags and evil in text
    assert not re.search(r"(src|href)=|https?:|url\(", page)
    assert "too <short>" in text and "30.0%" in text and "made.xml" in text and "0" * 64 in text
    for badge, finding in card_page.findings(made):
        assert finding in text and badge in text
    findings = {badge for badge, _ in card_page.findings(made)}
    assert "damage" in findings and "made.xml could not be read to its end: broken <compression>." in text
    assert "overlap" in findings and made["overlap"]["test"]["contexts"] == 15
    assert ("order" in findings) == (kind == "choices")
    assert "floor" in findings or kind != "choices"
