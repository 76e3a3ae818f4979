"""Plain zeros, as SparseGPT, Wanda, llm-compressor and every finalised model have them: the weight is what it says."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ajour.importers.tool import Found, Place, Shapes

_NOWHERE = "it holds no parameter named weight; a hook or a wrapper makes its weight on the fly"


def places(shapes: Shapes, taken: set[str]) -> Iterator[Place]:
    """Every tensor that no tool has taken."""
    for name in shapes:
        if name not in taken:
            yield Place(name, name)


def on_module(module: nn.Module) -> Found:
    """The parameter itself."""
    weight = module._parameters.get("weight")
    return Found(None, reason=_NOWHERE) if weight is None else Found(weight.detach())
