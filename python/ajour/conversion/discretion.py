"""What a module's class may do with its children, read from its source strictly: whatever is not understood is a no."""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType, ModuleType

import torch
from torch import nn
from torch.nn import functional as F

from ajour.conversion.source import is_what_it_says, tree_of

_OWN = frozenset(dir(nn.Module)) - {"training", "forward"}  # children(), get_submodule(), ...: ways to any module
_SIZES = frozenset(("in_features", "out_features", "nf"))
_KINDS = frozenset(("dtype", "device", "shape"))  # of a child's weight
_BUILTINS = frozenset((
    "abs", "all", "any", "bool", "dict", "enumerate", "float", "int", "isinstance", "len", "list", "max", "min",
    "print", "range", "reversed", "round", "set", "sorted", "str", "sum", "super", "tuple", "zip",
    "AssertionError", "NotImplementedError", "RuntimeError", "TypeError", "ValueError",
))  # fmt: skip
_PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device, torch.Size, type(None))
_DOORS = frozenset(("sys", "gc", "inspect", "builtins", "importlib", "operator"))  # modules that lead to any object
_HARMLESS_METHODS = (FunctionType, property, staticmethod, classmethod)


@dataclass(frozen=True)
class Discretion:
    """values: attributes of self that leave the class as values. walked: those of which it only calls every element."""

    values: frozenset[str]
    walked: frozenset[str]


def discretion(kind: type) -> Discretion | None:
    """What a class and its bases below torch's do with their attributes; None where that may be anything.

    `self.child(...)`, `for step in self.steps: x = step(x)` and sizes are fine. None for getattr, imports, functions
    that are not torch's, global objects, self as a value, the inner API of nn.Module, and source that is not there.
    """
    values: set[str] = set()
    walked: set[str] = set()
    for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        if base.__module__.partition(".")[0] in ("torch", "ajour"):
            continue
        tree = tree_of(base)
        if tree is None or not is_what_it_says(base) or any(map(_strange, vars(base).values())):
            return None
        body = getattr(tree.body[0], "body", [])
        for method in body:
            if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)) and method.name != "__init__":
                reader = _Method(method, vars(sys.modules[base.__module__]))
                if reader.refuses():
                    return None
                values |= reader.values
                walked |= reader.walked
            elif not isinstance(method, (ast.FunctionDef, ast.Assign, ast.AnnAssign, ast.Expr, ast.Pass)):
                return None
    return Discretion(frozenset(values), frozenset(walked))


def _strange(thing: object) -> bool:
    return callable(thing) and not isinstance(thing, _HARMLESS_METHODS)


class _Method:
    def __init__(self, method: ast.FunctionDef | ast.AsyncFunctionDef, known: Mapping[str, object]) -> None:
        self.values: set[str] = set()
        self.walked: set[str] = set()
        self.known = known
        self.method = method
        self.nodes = [node for part in (*method.body, *method.decorator_list, method.args) for node in _code(part)]
        self.parents = {child: node for node in self.nodes for child in ast.iter_child_nodes(node)}
        self.own = {n.id for n in self.nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
        self.own |= {n.arg for n in self.nodes if isinstance(n, ast.arg)}
        self.own |= {n.name for n in self.nodes if isinstance(n, (ast.FunctionDef, ast.ExceptHandler)) and n.name}

    def refuses(self) -> bool:
        """Reads the method; whether it does something that is not understood."""
        first = [*self.method.args.posonlyargs, *self.method.args.args][:1]
        marks = {mark.id for mark in self.method.decorator_list if isinstance(mark, ast.Name)}
        named_otherwise = not marks & {"staticmethod", "classmethod"} and [arg.arg for arg in first] != ["self"]
        return named_otherwise or isinstance(self.method, ast.AsyncFunctionDef) or not all(map(self._fine, self.nodes))

    def _fine(self, node: ast.AST) -> bool:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Global, ast.ClassDef, ast.Await, ast.AsyncFunctionDef)):
            return False
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            return self._fine_name(node)
        if isinstance(node, ast.Name):
            return node.id != "self"
        if isinstance(node, ast.Attribute):
            return self._fine_attribute(node)
        return True

    def _fine_name(self, node: ast.Name) -> bool:
        if node.id == "self":
            return isinstance(self.parents.get(node), ast.Attribute)
        if node.id == "super":  # as a value it is self
            return isinstance(self.parents.get(self.parents.get(node, node)), ast.Attribute)
        if node.id in self.own:
            return True
        if node in self.method.decorator_list and node.id in ("property", "staticmethod", "classmethod"):
            return True
        if node.id in self.known:
            return _harmless(self.known[node.id])
        return node.id in _BUILTINS

    def _fine_attribute(self, node: ast.Attribute) -> bool:
        on_super = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", None) == "super"
        if node.attr in _DOORS or (node.attr.startswith("__") and not on_super):
            return False
        if on_super:
            return node.attr not in _OWN
        if not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            return True
        if node.attr in _OWN:
            return False
        if isinstance(node.ctx, ast.Load):
            self._read(node)
        return True

    def _read(self, node: ast.Attribute) -> None:
        parent = self.parents.get(node)
        if isinstance(parent, ast.Call) and parent.func is node:
            return
        if isinstance(parent, ast.Attribute) and (parent.attr in _SIZES or self._kind_of_weight(parent)):
            return
        if isinstance(parent, ast.For) and parent.iter is node and self._only_called(parent.target):
            self.walked.add(node.attr)
            return
        self.values.add(node.attr)

    def _kind_of_weight(self, node: ast.Attribute) -> bool:
        above = self.parents.get(node)
        return node.attr in ("weight", "bias") and isinstance(above, ast.Attribute) and above.attr in _KINDS

    def _only_called(self, target: ast.expr) -> bool:
        if not isinstance(target, ast.Name):
            return False
        same = [n for n in self.nodes if isinstance(n, ast.Name) and n.id == target.id and n is not target]
        calls = (self.parents.get(n) for n in same)
        return all(isinstance(call, ast.Call) and call.func is n for n, call in zip(same, calls, strict=True))


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but annotations."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _code(child)


def _harmless(thing: object) -> bool:
    """Whether a global name leads to no module of a model: constants, and what torch and math offer."""
    if isinstance(thing, tuple):
        return all(map(_harmless, thing))
    if isinstance(thing, _PLAIN) or any(thing is known for known in vars(F).values()):
        return True
    root = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None)
    named = isinstance(root, str) and root.partition(".")[0] in ("torch", math.__name__)
    return named and not isinstance(thing, nn.Module)
