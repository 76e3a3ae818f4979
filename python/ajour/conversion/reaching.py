"""What the classes of a model read of things other than themselves: a child that is reached so is no one's alone."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType

from torch import nn

from ajour.conversion.source import SIZES, tree_of

_KNOWN: dict[type, frozenset[str]] = {}


def reached(kind: type) -> frozenset[str]:
    """Names that a class reads of things other than itself, such as fc1 of `self.block.fc1(x)`; sizes aside."""
    if kind not in _KNOWN:
        _KNOWN[kind] = frozenset(_reached_by(kind))
    return _KNOWN[kind]


def _reached_by(kind: type) -> set[str]:
    names: set[str] = set()
    for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        tree = None if base.__module__.startswith("torch.") else tree_of(base)
        for method in ast.walk(tree) if tree is not None else ():
            if isinstance(method, ast.FunctionDef) and method.name != "__init__":
                names.update(_reached(method, vars(sys.modules[base.__module__])))
    return names


def _reached(method: ast.FunctionDef, known: Mapping[str, object]) -> Iterator[str]:
    parents = {child: node for node in ast.walk(method) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(method):
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
            continue
        of, parent = node.value, parents[node]
        library = isinstance(of, ast.Name) and (of.id == "self" or isinstance(known.get(of.id), ModuleType))
        if not library and not (isinstance(parent, ast.Attribute) and parent.attr in SIZES):
            yield node.attr
