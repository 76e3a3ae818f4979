"""A reader of pickles that runs nothing: it knows tensors, plain containers and plain values, and no other name.

Only what pickle's protocols 2 to 5 need for those is understood. There is no import, no attribute access and no call of
anything but the functions of `pickled_names`, which build values of our own; whatever else stands in a pickle is
refused by its name. What calls are given is counted, so all that is allocated is a small multiple of the file's size.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import IO, Any

from ajour.importers.pickled_names import NAMES, Name, UnreadableError, plain_key

_MARK = object()
_LONG = (str, bytes, bytearray, tuple, list, dict, set, frozenset)


class DamagedError(ValueError):
    """The bytes are no pickle, or a damaged one."""


def unpickle(file: IO[bytes], size: int, persistent: Callable[[Any], Any]) -> Any:
    """The next pickle of a file, whose end is `size` bytes from its beginning.

    persistent: makes a value of a persistent id. Raises UnreadableError for a name that stands for neither tensors nor
    plain containers, DamagedError for bytes that are no pickle.
    """
    return _Machine(file, size, persistent).run()


class _Machine:
    def __init__(self, file: IO[bytes], size: int, persistent: Callable[[Any], Any]) -> None:
        self.file, self.size, self.persistent = file, size, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.left = 4 * size + 65536  # of what calls may be given: one may be given the same long value again and again

    def run(self) -> Any:
        operations = _OPERATIONS
        while True:
            code = self.file.read(1)
            if code == b".":
                return self.pop()
            operation = operations.get(code)
            if operation is None:
                raise DamagedError(f"the instruction {code!r} is none that tensors and plain containers need")
            operation(self)

    def read(self, count: int) -> bytes:
        """Exactly that many bytes; a length that lies allocates nothing."""
        if count > self.size - self.file.tell():
            raise DamagedError("it ends too early")
        data = self.file.read(count)
        if len(data) != count:
            raise DamagedError("it ends too early")
        return data

    def number(self, count: int) -> int:
        return int.from_bytes(self.read(count), "little")

    def line(self) -> str:
        line = self.file.readline(1024)
        if not line.endswith(b"\n"):
            raise DamagedError("a name does not end")
        return line[:-1].decode("utf-8")

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise DamagedError("a value is missing")
        return self.stack.pop()

    def top(self, kind: type[Any]) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise DamagedError(f"expected a {kind.__name__} to fill")
        return self.stack[-1]

    def marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                items = self.stack[place + 1 :]
                del self.stack[place:]
                return items
        raise DamagedError("a mark is missing")

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise DamagedError("a key has no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[plain_key(key)] = value

    def call(self) -> None:
        arguments, name = self.pop(), self.pop()
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise DamagedError("something is called that is no function")
        if name.make is None:
            raise UnreadableError(f"{name.text} is called")
        self.left -= sum(len(value) for value in arguments if isinstance(value, _LONG))
        if self.left < 0:
            raise DamagedError("it makes far more of its bytes than they are")
        try:
            self.stack.append(name.make(*arguments))
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError, struct.error) as error:
            if isinstance(error, UnreadableError | DamagedError):
                raise
            raise DamagedError(f"{name.text} got arguments that it does not take") from None

    def build(self) -> None:
        """Attributes of an OrderedDict (a state_dict's _metadata) are dropped; a numpy dtype gets its byte order."""
        state, target = self.pop(), self.top(object)
        if hasattr(target, "set_state"):
            target.set_state(state)
        elif not isinstance(target, dict) or not isinstance(state, dict):
            raise UnreadableError(f"a state is set on a {type(target).__name__}")

    def get(self, place: int) -> None:
        if place not in self.memo:
            raise DamagedError("a value is named that was not stored")
        self.stack.append(self.memo[place])

    def put(self, place: int) -> None:
        value = self.pop()
        self.memo[place] = value
        self.stack.append(value)

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedError("a name is no text")
        text = f"{module}.{name}"
        if text not in NAMES:
            raise UnreadableError(text[:200])
        self.stack.append(NAMES[text])


def _text(data: bytes) -> str:
    return data.decode("utf-8")


def _long(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _append(m: _Machine) -> None:
    value = m.pop()
    m.top(list).append(value)


def _appends(m: _Machine) -> None:
    items = m.marked()
    m.top(list).extend(items)


def _set_item(m: _Machine) -> None:
    value, key = m.pop(), m.pop()
    m.set_items([key, value])


def _set_items(m: _Machine) -> None:
    items = m.marked()
    m.set_items(items)


def _add_items(m: _Machine) -> None:
    items = [plain_key(item) for item in m.marked()]
    m.top(set).update(items)


def _new_dict(m: _Machine) -> None:
    items = m.marked()
    m.stack.append({})
    m.set_items(items)


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    def push(m: _Machine) -> None:
        m.stack.append(tuple(reversed([m.pop() for _ in range(count)])))

    return push


def _frame(m: _Machine) -> None:
    m.read(8)  # its length; the bytes are read as they come


def _drop(m: _Machine) -> None:
    m.pop()


def _drop_marked(m: _Machine) -> None:
    m.marked()


def _protocol(m: _Machine) -> None:
    if (version := m.number(1)) > 5:
        raise DamagedError(f"it is of protocol {version}")


def _stack_global(m: _Machine) -> None:
    name, module = m.pop(), m.pop()
    m.name(module, name)


def _refuse_object(m: _Machine) -> None:
    m.pop()
    name = m.pop()
    raise UnreadableError(name.text if isinstance(name, Name) else "an object")


def _push(value: Any) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(value)


def _sized(width: int, make: Callable[[bytes], Any]) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(make(m.read(m.number(width))))


_OPERATIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _protocol,
    b"\x95": _frame,
    b"(": _push(_MARK), b"N": _push(None), b"\x88": _push(True), b"\x89": _push(False), b")": _push(()),
    b"}": lambda m: m.stack.append({}), b"]": lambda m: m.stack.append([]), b"\x8f": lambda m: m.stack.append(set()),
    b"0": _drop, b"1": _drop_marked,
    b"2": lambda m: m.stack.append(m.top(object)),
    b"K": lambda m: m.stack.append(m.number(1)), b"M": lambda m: m.stack.append(m.number(2)),
    b"J": lambda m: m.stack.append(_long(m.read(4))),
    b"\x8a": _sized(1, _long), b"\x8b": _sized(4, _long),
    b"G": lambda m: m.stack.append(struct.unpack(">d", m.read(8))[0]),
    b"X": _sized(4, _text), b"\x8c": _sized(1, _text), b"\x8d": _sized(8, _text),
    b"C": _sized(1, bytes), b"B": _sized(4, bytes), b"\x8e": _sized(8, bytes), b"\x96": _sized(8, bytearray),
    b"U": _sized(1, lambda data: data.decode("latin-1")), b"T": _sized(4, lambda data: data.decode("latin-1")),
    b"\x85": _tuple_of(1), b"\x86": _tuple_of(2), b"\x87": _tuple_of(3),
    b"t": lambda m: m.stack.append(tuple(m.marked())),
    b"l": lambda m: m.stack.append(m.marked()), b"d": _new_dict,
    b"a": _append, b"e": _appends, b"s": _set_item, b"u": _set_items, b"\x90": _add_items,
    b"\x91": lambda m: m.stack.append(frozenset(map(plain_key, m.marked()))),
    b"h": lambda m: m.get(m.number(1)), b"j": lambda m: m.get(m.number(4)),
    b"q": lambda m: m.put(m.number(1)), b"r": lambda m: m.put(m.number(4)), b"\x94": lambda m: m.put(len(m.memo)),
    b"c": lambda m: m.name(m.line(), m.line()), b"\x93": _stack_global,
    b"R": _Machine.call, b"b": _Machine.build, b"\x81": _refuse_object,
    b"Q": lambda m: m.stack.append(m.persistent(m.pop())),
}  # fmt: skip
