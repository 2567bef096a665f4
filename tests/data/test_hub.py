import importlib.util
import json
import sys

import numpy as np
import pytest

from hhh_jax.data import prepare, streams
from hhh_jax.data.source import Drop
from hhh_jax.data.sources import hub
from hhh_jax.errors import UserError

needs_datasets = pytest.mark.skipif(not importlib.util.find_spec("datasets"), reason="needs the data extra")
OPTIONS = {**hub.SOURCE.options, "kind": "pairs", "seed": 0}


def read(name, **options):
    """({id: (record, split)}, drops, journal) of a dataset."""
    options = {**OPTIONS, **options}
    with streams.journal() as journal:
        found = [item for block in hub.SOURCE.blocks([str(name)], options) for item in hub.SOURCE.read(block, options)]
    made = {}
    for row in found:
        if not isinstance(row, Drop):
            (item,) = hub.SOURCE.join(row.key, [row], options)
            made[item.record.id] = item.record, item.split
    return made, [item for item in found if isinstance(item, Drop)], journal


def rows(number, **columns):
    columns = {"question": "q{}", "chosen": "g{}", "rejected": "b{}", "id": "{}", **columns}
    return {
        name: [value.format(i) if isinstance(value, str) else value for i in range(number)]
        for name, value in columns.items()
    }


def save(path, **splits):
    import datasets

    made = {split: datasets.Dataset.from_dict(columns) for split, columns in splits.items()}
    (datasets.DatasetDict(made) if "only" not in made else made["only"]).save_to_disk(str(path))
    return path


@needs_datasets
def test_pairs_by_columns(tmp_path):
    path = save(tmp_path / "a", train=rows(3), validation=rows(1), test_prefs=rows(2))
    made, drops, journal = read(path, context="question", group="id")
    assert made["a/train:2"] == (hub.Pair("a/train:2", "q1", "g1", "b1", "1"), "train")
    assert [split for _, split in made.values()] == ["train"] * 3 + ["validation"] + ["test"] * 2
    assert not drops
    assert journal.inputs[str(path)]["bytes"] > 0
    assert read(path, context="question", group="id")[2].inputs == journal.inputs
    contexts = {record.context: record.group for record, _ in made.values()}
    assert set(contexts) == {"q0", "q1", "q2"}


@needs_datasets
def test_rows_of_one_context_stay_together(tmp_path):
    path = save(tmp_path / "a", train=rows(5, question="the same"))
    groups = [record.group for record, _ in read(path, context="question")[0].values()]
    assert len(set(groups)) == 1
    records = [record for record, _ in read(path)[0].values()]
    assert [record.context for record in records] == [""] * 5
    assert [record.group for record in records] == [record.id for record in records]


@needs_datasets
def test_documents_and_nested_columns(tmp_path):
    chosen = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    columns = {"chosen": chosen, "meta": {"url": "u"}}
    path = save(tmp_path / "a", train=rows(2, **columns), test=rows(1, **columns))
    made, _, _ = read(path, kind="documents", text="chosen.1.content", group="meta.url")
    assert made["a/test:1"] == (hub.Document("a/test:1", "A", "u"), "test")
    assert len(made) == 3


@needs_datasets
def test_rows_that_are_no_pair_are_counted(tmp_path):
    columns = rows(6)
    columns["chosen"][1] = None
    columns["chosen"][2] = "b2"
    columns["rejected"][3] = " "
    columns["id"][4] = None
    made, drops, _ = read(save(tmp_path / "a", train=columns), group="id")
    assert [name.rpartition(":")[2] for name in made] == ["1", "6"]
    assert [(drop.place.rpartition(":")[2], drop.reason, drop.bad) for drop in drops] == [
        ("2", "chosen is not text", True), ("3", "both sides are equal", False), ("4", "rejected is empty", False),
        ("5", "id is not text", True),
    ]  # fmt: skip


@needs_datasets
def test_blocks_cut_by_size_change_nothing(tmp_path, monkeypatch):
    path = save(tmp_path / "a", train=rows(2500))
    whole = read(path)[:2]
    monkeypatch.setattr(streams, "BLOCK_BYTES", 5000)
    assert read(path)[:2] == whole
    assert len(list(hub.blocks([str(path)], OPTIONS))) > 10


@needs_datasets
def test_splits(tmp_path):
    path = save(tmp_path / "a", train=rows(2), unsupervised=rows(3))
    with pytest.raises(UserError, match=r"is unsupervised train, validation or test\?.*=splits=train,unsupervised"):
        read(path)
    assert len(read(path, splits="train")[0]) == 2
    assert {split for _, split in read(path, splits="unsupervised")[0].values()} == {None}
    with pytest.raises(UserError, match="no split 'dev'; it has train, unsupervised"):
        read(path, splits="train,dev")
    assert {split for _, split in read(save(tmp_path / "b", only=rows(3)))[0].values()} == {None}


@needs_datasets
def test_prepared(tmp_path):
    path = save(tmp_path / "a", train=rows(300), test=rows(20, question="t{}"))
    options = {"context": "question"}
    card = prepare.prepare("hub", [str(path)], tmp_path / "out", options=options, workers=1, held_out=0.1)
    assert (card["read"], card["kept"]) == (320, 320)
    assert card["records"]["test"] == 20
    assert 10 < card["records"]["validation"] < 60
    assert card["inputs"][0]["name"] == str(path)


@needs_datasets
def test_what_cannot_be_had_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match="a/train: no column 'prompt'; it has question, chosen, rejected, id: --option="
    ):
        read(save(tmp_path / "a", train=rows(1)), context="prompt")
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"no/such: datasets can't load it: .*the network, or give a folder"):
        read("no/such")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: datasets can't load it"):
        read(tmp_path / "empty")


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="some/name: needs the library datasets: pip install datasets"):
        read("some/name")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """A dataset of TFDS's catalogue."""
    import tensorflow_datasets as tfds

    class TinyComparisons(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text, number = tfds.features.Text(), np.int64
            features = {"chosen": text, "rejected": text, "number": number, "parts": tfds.features.Sequence(text)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(3), "test": self._generate_examples(1)}

        def _generate_examples(self, number):
            for i in range(number):
                sides = {"chosen": f"é{i}", "rejected": b"\xff" if i == 2 else "b"}
                yield i, {**sides, "number": i % 2, "parts": ["x", "y"]}

    return tmp_path_factory.mktemp("tfds")


@pytest.mark.filterwarnings("ignore")
def test_names_of_the_tfds_catalogue_and_its_folders(catalogue, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(catalogue))
    made, drops, journal = read("tfds:tiny_comparisons", context="parts.1", group="number")
    assert len(made) == 3
    assert {(r.good, r.bad, r.context, r.group) for r, _ in made.values()} == {
        ("é0", "b", "y", "0"),
        ("é1", "b", "y", "1"),
    }
    assert [r.good for r, split in made.values() if split == "test"] == ["é0"]
    assert [drop.reason for drop in drops] == ["rejected has half a surrogate pair"]
    assert list(journal.inputs) == ["tfds:tiny_comparisons"]
    folder = catalogue / "tiny_comparisons" / "1.0.0"
    again, _, _ = read(folder, context="parts.1", group="number")
    assert [record.good for record, _ in again.values()] == [record.good for record, _ in made.values()]
    assert json.loads((folder / "dataset_info.json").read_text())["fileFormat"] == "array_record"


def test_older_names_of_the_tfds_catalogue():
    hub._import_legacy("hellaswag:1.1.0")
    hub._import_legacy("lambada/plain")
    assert {"tensorflow_datasets.text.hellaswag", "tensorflow_datasets.text.lambada.lambada"} <= set(sys.modules)
    with pytest.raises(UserError, match="tfds:no_such_name: TFDS can't read it: Dataset no_such_name not found"):
        read("tfds:no_such_name")
