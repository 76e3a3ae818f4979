"""What a module's class does with its children, read from its source: which activation directly follows which layer."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

from torch import nn

SIZES = frozenset(("weight", "bias", "in_features", "out_features"))  # reading these of a layer does not run it
_WALKS = frozenset(("_modules", "children", "modules", "named_children", "named_modules", "get_submodule"))


@dataclass(frozen=True)
class Usage:
    """pairs: (layer, activation, method) of every `self.activation(self.layer(x))`, both used nowhere else.

    called: children that the class only ever calls as a whole.
    """

    pairs: tuple[tuple[str, str, str], ...] = ()
    called: frozenset[str] = frozenset()


# read by a person: the first one's forward walks its modules, but only to look for hooks
_FEED_FORWARD = Usage((("linear1", "activation", "_ff_block"),))
_KNOWN: dict[type, Usage] = {nn.TransformerEncoderLayer: _FEED_FORWARD, nn.TransformerDecoderLayer: _FEED_FORWARD}


@dataclass
class _Reading:
    uses: Counter[str] = field(default_factory=Counter)  # self.x, but for reading its sizes
    calls: Counter[str] = field(default_factory=Counter)  # self.x(...)
    found: list[tuple[str, str, str]] = field(default_factory=list)
    opaque: bool = False  # self goes elsewhere, or all children are walked


def usage(kind: type) -> Usage:
    """Reads the source of a module class and of its bases; an empty answer where that proves nothing."""
    if kind not in _KNOWN:
        _KNOWN[kind] = _usage(kind)
    return _KNOWN[kind]


@cache
def tree_of(base: type) -> ast.Module | None:
    """The source of a class; None where there is none."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(base)))
    except (OSError, TypeError, SyntaxError):
        return None


def _usage(kind: type) -> Usage:
    reading = _Reading()
    bases = kind.__mro__[: kind.__mro__.index(nn.Module)]
    methods: list[tuple[type, ast.FunctionDef]] = []
    for base in bases:
        tree = tree_of(base)
        if tree is None or not is_what_it_says(base):
            return Usage()
        methods += [(base, node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inherited = {name for _, method in methods for name in _supers(method)}
    for base, method in methods:
        effective = next((c for c in bases if method.name in vars(c)), base) is base
        if method.name != "__init__" and (effective or method.name in inherited):
            _read(method, reading)
    if reading.opaque:
        return Usage()
    pairs = tuple(p for p in reading.found if reading.uses[p[0]] == 1 and reading.uses[p[1]] == 1)
    return Usage(pairs, frozenset(name for name, count in reading.calls.items() if count == reading.uses[name]))


def is_what_it_says(base: type) -> bool:
    """Whether the methods of a class stand in its source: none was patched in."""
    lines, first = inspect.getsourcelines(base)
    codes = [inspect.unwrap(thing).__code__ for thing in vars(base).values() if inspect.isfunction(thing)]
    file = inspect.getsourcefile(base)
    return all(code.co_filename == file and first <= code.co_firstlineno < first + len(lines) for code in codes)


def _supers(method: ast.FunctionDef) -> Iterator[str]:
    """x of every `super().x`."""
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call):
            name = node.value.func
            if isinstance(name, ast.Name) and name.id == "super":
                yield node.attr


def _read(method: ast.FunctionDef, reading: _Reading) -> None:
    parents = {child: node for node in ast.walk(method) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(method):
        if isinstance(node, ast.Name) and node.id == "self" and not isinstance(parents[node], ast.Attribute):
            reading.opaque = True
        name = _child(node)
        if name is None or not isinstance(node.ctx, ast.Load):  # type: ignore[attr-defined]
            continue
        parent = parents[node]
        if isinstance(parent, ast.Attribute) and parent.attr in SIZES:
            continue
        reading.opaque |= name in _WALKS
        reading.uses[name] += 1
        reading.calls[name] += isinstance(parent, ast.Call) and parent.func is node
    reading.found += [(layer, activation, method.name) for layer, activation in _pairs(method)]


def _pairs(method: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """(layer, activation) of `self.activation(self.layer(x))`, and of `y = self.layer(x)` with its activation next."""
    loads = Counter(n.id for n in ast.walk(method) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
    for node in ast.walk(method):
        outer = _called(node)
        if outer is not None and (inner := _called(_only_argument(node))) is not None:
            yield inner, outer
        for block in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            if isinstance(block, list):
                yield from _in_turn(block, loads)


def _in_turn(block: list[ast.stmt], loads: Counter[str]) -> Iterator[tuple[str, str]]:
    for first, second in pairwise(block):
        name, layer = _assigned(first), _called(getattr(first, "value", None))
        call = getattr(second, "value", None)
        activation, argument = _called(call), _only_argument(call)
        if name is None or layer is None or activation is None:
            continue
        passed_on = isinstance(argument, ast.Name) and argument.id == name
        if passed_on and (_assigned(second) == name or loads[name] == 1):
            yield layer, activation


def _child(node: ast.AST | None) -> str | None:
    """x of `self.x`."""
    inside_self = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    return node.attr if inside_self else None  # type: ignore[union-attr]


def _called(node: ast.AST | None) -> str | None:
    """x of `self.x(...)`."""
    return _child(node.func) if isinstance(node, ast.Call) else None


def _only_argument(node: ast.AST | None) -> ast.AST | None:
    alone = isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords
    return node.args[0] if alone else None  # type: ignore[union-attr]


def _assigned(node: ast.AST) -> str | None:
    """x of `x = ...`."""
    alone = isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
    return node.targets[0].id if alone else None  # type: ignore[attr-defined]
