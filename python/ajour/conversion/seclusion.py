"""Whether the layers of a model are run by the calls that its structure shows, and by nothing else."""

from __future__ import annotations

import ast
import gc
import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from ajour.conversion.discretion import discretion
from ajour.conversion.source import tree_of
from ajour.importers.torch_prune import is_prune_hook

_MOST_OBJECTS = 100_000  # of what attributes lead to; past that the search gives up, which proves nothing
_LIBRARIES = ("torch", "ajour")
_LEAVES = (str, bytes, int, float, bool, Tensor, type, ModuleType, CodeType, type(None))


def secluded(model: nn.Module, libraries: tuple[str, ...] = ()) -> bool:
    """Whether no code of the model can see a layer's output, or run the layer, but through the calls in plain sight.

    Every class that is not torch's only calls its own children (see discretion), no attribute of any module leads to
    another one that is registered elsewhere, through containers, partials and closures too, and no hook is handed
    more than one layer.
    libraries: further packages whose classes are taken to do so.
    """
    modules = list(model.modules())
    if any(_is_listened_to(module) for module in modules) or _leads_inside(modules):
        return False
    return all(_calls_only(module) for module in modules if not _is_of(module, (*_LIBRARIES, *libraries)))


def kept_elsewhere(model: nn.Module) -> dict[int, str]:
    """id of a module -> the plain attribute, list, tuple, dict or set of a module that holds it too, and that is read.

    What stands there would not be swapped. An attribute that no method of the model's classes reads, as tools leave
    them for their own records, is none; where a class has no source, each is taken to be read.
    """
    kinds, usual = {type(module) for module in model.modules()}, frozenset(vars(nn.Module()))
    names = [_names_read(base) for base in {base for kind in kinds for base in kind.__mro__} if not _is_known(base)]
    found: dict[int, str] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in usual and any(known is None or name in known for known in names):
                place = f"{path}.{name}" if path else name
                found |= {id(inner): place for inner in _plainly_held(value, set())}
    return found


def _is_known(base: type) -> bool:
    return base.__module__.partition(".")[0] in (*_LIBRARIES, "builtins")


def _names_read(base: type) -> frozenset[str] | None:
    tree = tree_of(base)
    if tree is None:
        return None
    methods = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name != "__init__"]
    nodes = [node for method in methods for node in ast.walk(method)]
    return frozenset(n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load))


def _plainly_held(value: Any, seen: set[int]) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, (list, tuple, set, frozenset, dict)) and id(value) not in seen:
        seen.add(id(value))
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _plainly_held(inner, seen)


def _is_of(module: nn.Module, libraries: tuple[str, ...]) -> bool:
    return type(module).__module__.partition(".")[0] in libraries


def _calls_only(module: nn.Module) -> bool:
    read = discretion(type(module))
    if read is None:
        return False
    children = {name: child for name, child in module._modules.items() if child is not None}
    lists = all(type(children[name]) is nn.ModuleList for name in read.walked & children.keys())
    return lists and read.values.isdisjoint(children)


def _is_listened_to(module: nn.Module) -> bool:
    """Whether it has a forward of its own, or a hook that is handed a module with others inside."""
    return "forward" in vars(module) or (bool(module._modules) and bool(_hooks(module)))


def _hooks(module: nn.Module) -> list[Any]:
    """All but those that mask a weight, which look no further."""
    held = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return [hook for hooks in held for hook in hooks.values() if not is_prune_hook(hook)]


def _leads_inside(modules: Iterable[nn.Module]) -> bool:
    """Whether an attribute of a module or of its class, or a hook, leads to one of the modules."""
    targets, usual = {id(module) for module in modules}, frozenset(vars(nn.Module()))
    todo: list[Any] = [value for m in modules for name, value in vars(m).items() if name not in usual]
    todo += [hook for module in modules for hook in _hooks(module)]
    for base in {base for m in modules for base in type(m).__mro__}:
        if base.__module__.partition(".")[0] not in (*_LIBRARIES, "builtins", "transformers"):
            todo += [value for value in vars(base).values() if not isinstance(value, (FunctionType, property))]
    seen: set[int] = set()
    kept = []  # so that no id is given away twice
    while todo:
        thing = todo.pop()
        if isinstance(thing, _LEAVES) or id(thing) in seen:
            continue
        if id(thing) in targets or len(seen) > _MOST_OBJECTS:
            return True
        seen.add(id(thing))
        kept.append(thing)
        todo += _next(thing)
    return False


def _next(thing: Any) -> Iterator[Any]:
    if isinstance(thing, FunctionType):  # its globals only where it names them: they may be a whole script
        if thing.__module__ is not None and thing.__module__.partition(".")[0] in _LIBRARIES and not thing.__closure__:
            return
        named = (thing.__globals__.get(name) for name in thing.__code__.co_names)
        yield from (*gc.get_referents(*(thing.__closure__ or ())), *(thing.__defaults__ or ()), *named)
        yield from (thing.__kwdefaults__ or {}).values()
        yield from vars(thing).values()
    elif isinstance(thing, MethodType):
        yield from (thing.__self__, thing.__func__)
    elif isinstance(thing, partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, weakref.ref):
        yield thing()
    else:
        yield from gc.get_referents(thing)
