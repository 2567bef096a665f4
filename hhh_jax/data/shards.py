"""The files of a preparation: rows by bucket, units of records, and the TFDS folder that they become.

    rows/000007     the rows of a block of the input, or of some small ones, in buckets by a hash of their key
    units/00002/    the records of some neighboring buckets, an array_record file a split, and meta.json
    final/          the TFDS folder: units as its shards

Every file and folder appears by a rename when it is complete, so that what is there is right, whenever the run ends.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from hhh_jax.atomic import new_path, write_errors
from hhh_jax.data.records import KINDS, SPLITS, Record
from hhh_jax.data.source import Row
from hhh_jax.errors import UserError

UNIT_BYTES = 64 * 2**20  # of rows; a unit is held in memory by one worker
_MAGIC = b"hhhrows1"
_FOOTER = struct.Struct("<QQ8s")  # where the table begins, number of buckets, magic
_RECORD_OPTIONS = "group_size:1"  # as TFDS writes: each record is read by itself
_TEXT = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}
_LABEL = {
    "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
    "tensor": {"dtype": "int64", "encoding": "none", "shape": {}},
}
_TEXTS = {
    "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
    "sequence": {"feature": _TEXT, "length": "-1"},
}
_FEATURES: dict[str, dict[str, Any]] = {"label": _LABEL, "options": _TEXTS}  # all others are text


def fraction(text: str) -> float:
    """A hash of the text, spread evenly over [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    with new_path(path) as partial:  # JSON spells half a surrogate pair as Python does, so that it comes back
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def storable(text: str) -> str:
    """The text with each half of a surrogate pair, as in names that aren't UTF-8, spelled out."""
    return text.encode(errors="backslashreplace").decode()


class RowsFile:
    """The rows of a batch of blocks: a compressed piece a bucket, a table of their ends and sizes, and `meta`.

    Attributes:
      meta: as given to `write_rows`.
      sizes: bytes of each bucket's rows.
    """

    def __init__(self, path: Path) -> None:
        """Raises UserError if the file is not whole, which a rename rules out but a disk may not."""
        self._path = path
        with path.open("rb") as file:
            end = file.seek(-_FOOTER.size, os.SEEK_END)
            start, buckets, magic = _FOOTER.unpack(file.read())
            if magic != _MAGIC:
                raise UserError(f"{path}: damaged; remove the folder {path.parent.parent} to begin again")
            file.seek(start)
            self._ends, self.sizes = array.array("Q"), array.array("Q")
            self._ends.fromfile(file, buckets)
            self.sizes.fromfile(file, buckets)
            self.meta: dict[str, Any] = json.loads(file.read(end - file.tell()))

    def rows(self, first: int, last: int) -> Iterator[tuple[bytes, bytes]]:
        """The packed rows of the buckets from `first` up to but not including `last`."""
        import zstandard

        begin = self._ends[first - 1] if first else 0
        with self._path.open("rb") as file:
            file.seek(begin)
            data = memoryview(file.read(self._ends[last - 1] - begin))
        decompressor = zstandard.ZstdDecompressor()
        for bucket in range(first, last):
            piece, data = data[: self._ends[bucket] - begin], data[self._ends[bucket] - begin :]
            begin = self._ends[bucket]
            if piece:
                for line in decompressor.decompress(piece).splitlines():
                    key, _, rest = line.partition(b"\t")
                    yield key, rest


def write_rows(path: Path, rows: Iterable[tuple[bytes, bytes]], buckets: int, meta: Mapping[str, Any]) -> None:
    """Writes a `RowsFile` of packed rows. `meta` is looked at when the rows are through, so they may fill it."""
    import zstandard

    pieces = [bytearray() for _ in range(buckets)]
    for key, rest in rows:
        bucket = int.from_bytes(hashlib.sha256(key).digest()[:8]) * buckets >> 64
        pieces[bucket] += b"%b\t%b\n" % (key, rest)
    compressor = zstandard.ZstdCompressor(level=1)
    packed = [compressor.compress(piece) if piece else b"" for piece in pieces]
    ends = array.array("Q", itertools.accumulate(map(len, packed)))
    with new_path(path) as partial, partial.open("wb") as file:
        file.writelines(packed)
        file.write(ends.tobytes() + array.array("Q", map(len, pieces)).tobytes())
        file.write(json.dumps(meta).encode() + _FOOTER.pack(ends[-1], buckets, _MAGIC))


def pack_row(row: Row) -> tuple[bytes, bytes]:
    """A row as key and rest, without tabs and line ends. Raises orjson.JSONEncodeError at half a surrogate pair, but
    for the place, and at a number of more than 64 bits."""
    return orjson.dumps(row.key), orjson.dumps([row.fields, storable(row.place)])


def unpack_row(key: bytes, rest: bytes) -> Row:
    """The inverse of `pack_row`."""
    fields, place = orjson.loads(rest)
    return Row(orjson.loads(key), fields, place)


def plan_units(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Neighboring buckets, (first, one after the last), put together up to UNIT_BYTES of rows."""
    units, first, total = [], 0, 0
    for bucket, size in enumerate(sizes):
        if total and total + size > UNIT_BYTES:
            units.append((first, bucket))
            first, total = bucket, 0
        total += size
    return [*units, (first, len(sizes))]


def write_unit(path: Path, records: Sequence[tuple[str, bytes]], meta: dict[str, Any]) -> None:
    """Writes a unit: serialized records with their split, in their final order, and `meta`, which gets ``splits``:
    {split: {records, bytes}}."""
    splits = {split: [data for its, data in records if its == split] for split in dict(records)}
    meta["splits"] = {
        split: {"records": len(data), "bytes": sum(map(len, data))} for split, data in sorted(splits.items())
    }
    with new_path(path) as partial:
        partial.mkdir()
        for split, data in splits.items():
            write_records(partial / split, data)
        (partial / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Writes an array_record file. Raises RuntimeError if it can't."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), _RECORD_OPTIONS)
    for record in records:
        writer.write(record)
    writer.close()


def read_records(path: Path) -> Iterator[bytes]:
    """The serialized records of an array_record file."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    with contextlib.closing(reader):
        for start in range(0, reader.num_records(), 100):
            yield from reader.read(start, min(start + 100, reader.num_records()))


def serialize(record: Record) -> bytes:
    """A record as tf.train.Example, as TFDS stores it; `meta` as JSON text. Equal records give equal bytes."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    feature = example.features.feature
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name == "label":
            feature[field.name].int64_list.value.append(value)
        elif field.name == "options":
            feature[field.name].bytes_list.value.extend(text.encode() for text in value)
        elif field.name == "meta":
            feature[field.name].bytes_list.value.append(json.dumps(value, sort_keys=True).encode())
        else:
            feature[field.name].bytes_list.value.append(value.encode())
    return example.SerializeToString(deterministic=True)


def deserialize(row: bytes, kind: str) -> Record:
    """The inverse of `serialize`."""
    values = example(row, lists=("options",))
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(KINDS[kind]):
        value = values[field.name]
        if field.name == "options":
            fields["options"] = tuple(text.decode() for text in value)
        else:
            fields[field.name] = value.decode() if isinstance(value, bytes) else value
    if "meta" in fields:
        fields["meta"] = json.loads(fields["meta"])
    return KINDS[kind](**fields)


def example(row: bytes, lists: Sequence[str] = ()) -> dict[str, Any]:
    """The features of a tf.train.Example as TFDS stores it: bytes, a number, or a list where there isn't one value or
    the name is among `lists`. TFDS's own decoding takes seven times as long."""
    from tensorflow_datasets.proto import tf_example_pb2

    found: dict[str, Any] = {}
    for name, feature in tf_example_pb2.Example.FromString(row).features.feature.items():
        kind = feature.WhichOneof("kind")  # none of an empty list
        values = getattr(feature, kind).value if kind else []
        found[name] = values[0] if len(values) == 1 and name not in lists else list(values)
    return found


def write_folder(final: Path, name: str, about: str, kind: str, units: Path) -> list[dict[str, Any]]:
    """Makes the TFDS folder of finished units, which lose their files to it, and can be gone on with if it ends early.

    Train gets a shard a unit, every other split one shard.

    Args:
      final: the folder.
      name: of the dataset.
      about: a line on it.
      kind: of its records.
      units: folder of the units.

    Returns:
      ``{name, split, records, bytes}`` of every shard, by split.
    """
    with write_errors(final):
        final.mkdir(exist_ok=True)
    folders = sorted(folder for folder in units.iterdir() if folder.suffix != ".tmp")
    metas = [json.loads((folder / "meta.json").read_text(encoding="utf-8")) for folder in folders]
    found = {split for meta in metas for split in meta["splits"]}
    shards: list[dict[str, Any]] = []
    infos = []
    for split in [*(s for s in SPLITS if s in found), *sorted(found - {*SPLITS})]:
        parts = [(f / split, m["splits"][split]) for f, m in zip(folders, metas, strict=True) if split in m["splits"]]
        groups = [[part] for part in parts] if split == "train" else [parts]
        for number, group in enumerate(groups):
            path = final / f"{name}-{split}.array_record-{number:05}-of-{len(groups):05}"
            if not path.exists():
                _gather([part for part, _ in group], path)
            sums = {key: sum(size[key] for _, size in group) for key in ("records", "bytes")}
            shards.append({"name": path.name, "split": split, **sums})
        mine = [shard for shard in shards if shard["split"] == split]
        infos.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(sum(shard["bytes"] for shard in mine)),
                "shardLengths": [str(shard["records"]) for shard in mine],
            }
        )
    features = {field.name: _FEATURES.get(field.name, _TEXT) for field in dataclasses.fields(KINDS[kind])}
    dictionary = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    write_json(final / "features.json", {"pythonClassName": dictionary, "featuresDict": {"features": features}})
    info = {"name": name, "version": "1.0.0", "description": about, "fileFormat": "array_record", "splits": infos}
    write_json(final / "dataset_info.json", info)
    return shards


def _gather(parts: Sequence[Path], path: Path) -> None:
    if len(parts) == 1:
        os.replace(parts[0], path)
        return
    with new_path(path) as partial:
        write_records(partial, itertools.chain.from_iterable(map(read_records, parts)))
    for part in parts:
        part.unlink()
