"""Calls between two processes of which one is not trusted: values as JSON, so that reading them runs nothing.

A message holds a call's objects by number: what is shared, or goes round in a circle, stays so. Both sides keep the
objects of one call, and the answer brings what became of the arguments, which are changed accordingly: a function can
sort a list in place, or turn a linked list round, and return a node that it was given.

Carried are None, bool, int, float, complex, str, bytes, bytearray, range, tuple, list, set, frozenset, dict, deque,
Fraction and Decimal, and instances of the classes that both sides know by name (their attributes). Subclasses count as
what they derive from. An iterator is carried as an iterator over all that it gives.

This module and what it imports run inside the sandbox: standard library only.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, MappingView
from importlib import import_module
from typing import Any, BinaryIO

_BIG = 2**63
_PENDING = object()
_NUMBERS = {"Fraction": "fractions", "Decimal": "decimal"}
_EMPTY: dict[str, Callable[[], Any]] = {
    "list": list, "deque": deque, "bytearray": bytearray, "set": set, "dict": dict,
}  # fmt: skip
_MADE: dict[str, Callable[[list[Any]], Any]] = {"tuple": tuple, "frozenset": frozenset, "iterator": iter}


class BadMessage(Exception):
    """What was received is no message of this form, or is too long."""


class Unsupported(Exception):
    """A value of which no plain copy can be made."""


class Opaque:
    """Stands for a value that cannot be carried: equal to nothing but itself."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Heap:
    """A call's objects, numbered alike on both sides. The caller dumps and then loads, the other loads first.

    Attributes:
      classes: whose instances are carried, by name.
      strict: whether `dump` raises Unsupported for what cannot be carried, rather than sending its type's name.
    """

    def __init__(self, classes: dict[str, type], strict: bool = False) -> None:
        self.classes = classes
        self.strict = strict
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}  # by id(): `_objects` keeps them alive

    def dump(self, value: Any) -> dict[str, Any]:
        """The message, ready for JSON: the value, and all objects that this call has met, as they are now."""
        atom = self._atom(value)
        entries: list[Any] = []
        while len(entries) < len(self._objects):  # an entry can add objects
            entries.append(self._entry(self._objects[len(entries)]))
        return {"value": atom, "objects": entries}

    def load(self, message: Any) -> Any:
        """The value of a message. Objects of earlier messages are changed in place. Raises BadMessage."""
        try:
            entries, known = list(message["objects"]), len(self._objects)
            if len(entries) < known:
                raise BadMessage("objects are missing")
            self._objects += [self._empty(kind, content) for kind, content in entries[known:]]
            for number in range(known):
                if _kind(self._objects[number], self.classes) != entries[number][0]:
                    raise BadMessage("an argument is of another type now")
            for hashing in (False, True):  # what sets and dicts hash has its attributes by then
                for number, (kind, content) in enumerate(entries):
                    if (kind in ("set", "dict")) is hashing:
                        self._fill(number, kind, content, entries)
            self._numbers = {id(value): number for number, value in enumerate(self._objects)}
            return self._value(message["value"], entries)
        except BadMessage:
            raise
        except Exception as error:  # whatever malformed content leads to
            raise BadMessage(f"{type(error).__name__}: {error}"[:200]) from None

    def _atom(self, value: Any) -> Any:
        """The value itself if JSON can hold it, or else [number]."""
        if value is None or isinstance(value, bool | str | float):
            return value
        if isinstance(value, int) and -_BIG < value < _BIG:
            return int(value)
        number = self._numbers.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects.append(value)
        return [number]

    def _entry(self, value: Any) -> list[Any]:
        kind = _kind(value, self.classes)
        content: Any
        if kind == "int":
            content = hex(value)
        elif kind in ("bytes", "bytearray"):
            content = value.hex()
        elif kind == "complex":
            content = [value.real, value.imag]
        elif kind == "range":
            content = [self._atom(part) for part in (value.start, value.stop, value.step)]
        elif kind == "Fraction":
            content = [self._atom(value.numerator), self._atom(value.denominator)]
        elif kind == "Decimal":
            content = [str(value)]
        elif kind == "dict":
            content = [[self._atom(key), self._atom(item)] for key, item in dict.items(value)]
        elif kind == "instance":
            content = [type(value).__name__, [[name, self._atom(item)] for name, item in vars(value).items()]]
        elif kind == "opaque":
            content = type(value).__name__
            if self.strict and not isinstance(value, Opaque):
                raise Unsupported(f"no plain copy can be made of a {content}")
        else:
            content = [self._atom(item) for item in value]
        return [kind, content]

    def _empty(self, kind: str, content: Any) -> Any:
        """A new object to be filled; `_PENDING` if it can only be made at once."""
        if kind == "instance":
            return object.__new__(self.classes[content[0]])
        return _EMPTY[kind]() if kind in _EMPTY else _PENDING

    def _fill(self, number: int, kind: str, content: Any, entries: list[Any]) -> None:
        """Gives an object its content, or makes it."""
        if kind not in _EMPTY and kind != "instance":
            self._value([number], entries)
            return
        target = self._objects[number]
        if kind == "bytearray":
            target[:] = bytes.fromhex(content)
        elif kind == "instance":
            attributes = {name: self._value(item, entries) for name, item in content[1]}
            vars(target).clear()
            vars(target).update(attributes)
        elif kind == "dict":
            items = [(self._value(key, entries), self._value(item, entries)) for key, item in content]
            target.clear()
            for key, item in items:
                target[key] = item
        else:
            values = [self._value(item, entries) for item in content]
            target.clear()
            target.update(values) if kind == "set" else target.extend(values)

    def _value(self, atom: Any, entries: list[Any]) -> Any:
        """What an atom stands for, made now if it was not yet."""
        if not isinstance(atom, list):
            if isinstance(atom, dict):
                raise BadMessage("no value")
            return atom
        (number,) = atom
        if not 0 <= number < len(self._objects):
            raise BadMessage("no such object")
        if self._objects[number] is _PENDING:
            kind, content = entries[number]
            self._objects[number] = self._make(kind, content, entries)
        return self._objects[number]

    def _make(self, kind: str, content: Any, entries: list[Any]) -> Any:
        if kind == "int":
            return int(content, 16)
        if kind == "bytes":
            return bytes.fromhex(content)
        if kind == "complex":
            return complex(*content)
        if kind == "opaque":
            return Opaque(str(content))
        values = [self._value(item, entries) for item in content]
        if kind == "range":
            return range(*values)
        if kind in _NUMBERS:
            return getattr(import_module(_NUMBERS[kind]), kind)(*values)
        return _MADE[kind](values)


def _kind(value: Any, classes: dict[str, type]) -> str:
    """The name under which a value is carried."""
    for base in (list, tuple, dict, set, frozenset, int, bytes, bytearray, complex, range, deque):
        if isinstance(value, base):
            return base.__name__
    if classes.get(type(value).__name__) is type(value):
        return "instance"
    if _NUMBERS.get(type(value).__name__) == type(value).__module__:
        return type(value).__name__
    return "iterator" if isinstance(value, Iterator | MappingView) else "opaque"


def send(stream: BinaryIO, message: Any) -> None:
    """Writes one message. Raises OSError if nobody reads them any more."""
    data = json.dumps(message).encode()
    stream.write(len(data).to_bytes(8) + data)
    stream.flush()


def receive(stream: BinaryIO, most_bytes: int) -> Any:
    """Reads one message. Raises EOFError where there is none, BadMessage for what is none or longer than allowed."""
    size = int.from_bytes(head := stream.read(8))
    if len(head) < 8:
        raise EOFError("no more messages")
    if size > most_bytes:
        raise BadMessage(f"{size} bytes, more than {most_bytes}")
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("half a message")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadMessage(str(error)[:200]) from None
