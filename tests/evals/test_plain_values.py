"""Values cross between processes equal and of the same types, shared as before, and no message does more than fail."""

import decimal
import fractions
import io
import json
from collections import Counter, deque, namedtuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hhh_jax.evals.plain_values import BadMessage, Heap, Opaque, Unsupported, receive, send

ATOMS = (
    st.none() | st.booleans() | st.integers() | st.integers(-(2**200), 2**200) | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.complex_numbers(allow_nan=False) | st.fractions() | st.builds(range, st.integers(0, 9))
)  # fmt: skip
HASHED = st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3))
VALUES = st.recursive(
    HASHED,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(HASHED, inner, max_size=3) | st.sets(HASHED, max_size=3)
    | st.tuples(inner, inner),
)  # fmt: skip


class Node:
    def __init__(self, value, successor=None):
        self.value, self.successor = value, successor


def over(value, classes=None):
    """The value on the other side."""
    message = json.loads(json.dumps(Heap(classes or {}, strict=True).dump(value)))
    return Heap(classes or {}).load(message)


def call(function, *arguments, classes=None):
    """What a call over messages returns; the arguments are changed as the function changes its copies."""
    here, there = Heap(classes or {}, strict=True), Heap(classes or {})
    received = there.load(json.loads(json.dumps(here.dump(arguments))))
    return here.load(json.loads(json.dumps(there.dump(function(*received)))))


def types(value):
    """The types within a value; those of a set's or dict's members without their order."""
    if isinstance(value, dict):
        return dict, Counter((types(key), str(types(item))) for key, item in value.items()).total()
    if isinstance(value, list | tuple):
        return type(value), *map(types, value)
    return type(value)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_values_arrive_as_they_were(value):
    arrived = over(value)
    assert arrived == value and types(arrived) == types(value)


@pytest.mark.parametrize(
    "value",
    [float("inf"), -0.0, "\ud800", 2**63, -(2**63), 10**4000, b"", bytearray(b"\xff"), decimal.Decimal("0.10"),
     fractions.Fraction(1, 3), deque([1, [2]]), (), ((),), {(1, (2,)): {3}}],
)  # fmt: skip
def test_single_values(value):
    arrived = over(value)
    assert arrived == value and type(arrived) is type(value) and repr(arrived)[:9] == repr(value)[:9]


def test_subclasses_count_as_what_they_derive_from():
    class Word(str):
        pass

    arrived = over([Counter("aab"), namedtuple("Point", "x y")(1, 2), Word("w")])
    assert arrived == [{"a": 2, "b": 1}, (1, 2), "w"] and [type(item) for item in arrived] == [dict, tuple, str]


def test_iterators_give_the_same_items_once():
    arrived = over(x * x for x in range(3))
    assert arrived != [0, 1, 4] and list(arrived) == [0, 1, 4] and list(arrived) == []
    assert list(over({"a": 1}.keys())) == ["a"]


def test_what_is_shared_or_circular_stays_so():
    shared, circle = [1], []
    circle.append(circle)
    arrived = over([shared, shared, [1], circle])
    assert arrived[0] is arrived[1] and arrived[0] is not arrived[2] and arrived[3][0] is arrived[3]
    nested = []
    for _ in range(20_000):
        nested = [nested]
    depth, arrived = 0, over(nested)
    while arrived:
        depth, arrived = depth + 1, arrived[0]
    assert depth == 20_000


def test_arguments_change_in_place_and_come_back_as_themselves():
    numbers, table, letters, queue = [3, 1, 2], {"a": [1]}, {"x"}, deque([1], maxlen=4)

    def change(numbers, table, letters, queue):
        numbers.sort()
        table["a"].append(table)
        letters.clear()
        queue.append(2)
        return [numbers, table["a"]]

    inner = table["a"]
    returned = call(change, numbers, table, letters, queue)
    assert numbers == [1, 2, 3] and letters == set() and queue == deque([1, 2]) and queue.maxlen == 4
    assert returned[0] is numbers and returned[1] is inner is table["a"] and inner[1] is table


def test_instances_of_known_classes_are_turned_round_as_in_one_process():
    last = Node(1)
    first = Node(3, Node(2, last))

    def turn(node):
        before = None
        while node:
            node.successor, before, node = before, node, node.successor
        return before

    assert call(turn, first, classes={"Node": Node}) is last
    assert last.successor.value == 2 and last.successor.successor is first and first.successor is None
    assert call(lambda edges, a, b: edges[a, b], {(first, last): 5}, first, last, classes={"Node": Node}) == 5


def test_what_cannot_be_carried():
    with pytest.raises(Unsupported, match="function"):
        Heap({}, strict=True).dump([len, lambda: 0])
    with pytest.raises(Unsupported, match="Node"):
        Heap({}, strict=True).dump(Node(1))
    with pytest.raises(Unsupported, match="Node"):
        Heap({"Node": Node}, strict=True).dump(type("Node", (), {})())

    class AlwaysEqual:
        __hash__ = None

        def __eq__(self, other):
            return True

    returned = call(AlwaysEqual)
    assert type(returned) is Opaque and returned != 1 and repr(returned) == "<AlwaysEqual>"
    assert type(call(lambda value: value, returned)) is Opaque  # a test may pass on what it got


@pytest.mark.parametrize(
    "message",
    [
        None, [], {}, {"value": 1}, {"value": [0], "objects": []}, {"value": [-1], "objects": [["list", []]]},
        {"value": {}, "objects": []}, {"value": [0, 0], "objects": [["list", []]]},
        {"value": [0], "objects": [["list"]]},
        {"value": [0], "objects": [["os.system", "true"]]}, {"value": [0], "objects": [["tuple", [[0]]]]},
        {"value": [0], "objects": [["set", [[1]]], ["list", []]]}, {"value": [0], "objects": [["int", "0y"]]},
        {"value": [0], "objects": [["instance", ["Node", []]]]}, {"value": [0], "objects": [["Fraction", [1, 0]]]},
        {"value": [0], "objects": [["range", ["x"]]]}, {"value": [0], "objects": [[["list"], []]]},
        {"value": [0], "objects": [["Decimal", [{}]]]}, {"value": [True], "objects": [["bytes", 5]]},
    ],
)  # fmt: skip
def test_bad_messages_fail(message):
    with pytest.raises(BadMessage):
        Heap({}).load(message)


def test_an_argument_cannot_become_something_else():
    for objects in ([], [["tuple", []], ["dict", []]], [["tuple", [[1]]]]):
        heap = Heap({}, strict=True)
        heap.dump(([],))
        with pytest.raises(BadMessage):
            heap.load({"value": 1, "objects": objects})


KINDS = st.sampled_from(["list", "tuple", "dict", "set", "instance", "int"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.sampled_from(["list", "tuple", "instance", "x"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["value", "objects"]), inner),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(KINDS, JSON), max_size=4), JSON)
def test_any_message_is_a_plain_value_or_bad(objects, value):
    try:
        loaded = Heap({"Node": Node}).load({"value": value, "objects": objects})
    except BadMessage:
        return
    assert type(loaded) in (type(None), bool, int, float, str, list, tuple, dict, set, Node)


def test_messages_on_a_stream():
    stream = io.BytesIO()
    send(stream, {"a": "\ud800"})
    send(stream, [1])
    stream.seek(0)
    assert receive(stream, 100) == {"a": "\ud800"} and receive(stream, 100) == [1]
    with pytest.raises(EOFError):
        receive(stream, 100)
    for data, error in (
        ((101).to_bytes(8) + b"1" * 101, BadMessage), ((5).to_bytes(8) + b"1", EOFError), (b"123", EOFError),
        ((1).to_bytes(8) + b"[", BadMessage), ((1).to_bytes(8) + b"\xff", BadMessage),
        ((10**5).to_bytes(8) + b"[" * 10**5, BadMessage),
    ):  # fmt: skip
        with pytest.raises(error):
            receive(io.BytesIO(data), 10**5 if len(data) > 10**5 else 100)
