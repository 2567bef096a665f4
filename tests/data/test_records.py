from dataclasses import replace

from hhh_jax.data.records import Counts, Document, Pair, content_sha

PAIR = Pair("a", "context", "good", "bad", "group")


def test_counts_add_up_and_read_well():
    counts = Counts()
    counts.keep()
    counts.drop("too long")
    counts.drop("empty")
    counts.drop("too long")
    assert counts.read == counts.kept + sum(counts.dropped.values()) == 4
    assert counts.as_dict() == {"read": 4, "kept": 1, "dropped": {"empty": 1, "too long": 2}}
    assert list(counts.as_dict()["dropped"]) == ["empty", "too long"]


def test_every_field_and_the_order_are_in_the_hash():
    changed = [replace(PAIR, **{name: "x"}) for name in ("id", "context", "good", "bad", "group")]
    contents = [[PAIR], [PAIR, PAIR], [], *([pair] for pair in changed)]
    contents += [[PAIR, changed[0]], [changed[0], PAIR], [Document("a", "b", "c")]]
    assert len({content_sha(records) for records in contents}) == len(contents)
    assert content_sha([PAIR]) == content_sha([replace(PAIR)])


def test_hash_is_that_of_the_json_rows():
    import hashlib

    rows = [b'["a", "context", "good", "bad", "group"]', b'["a", "b", "c"]']
    digests = [hashlib.sha256(row).digest()[:16] for row in rows]
    assert content_sha([PAIR, Document("a", "b", "c")]) == hashlib.sha256(digests[0] + digests[1]).hexdigest()
