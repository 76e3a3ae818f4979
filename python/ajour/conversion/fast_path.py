"""The fast paths of nn.TransformerEncoder and its layers read weights and never call the layers that hold them."""

from __future__ import annotations

from torch import nn

from ajour.layers import is_converted

_LAYER, _ENCODER = "activation_relu_or_gelu", "use_nested_tensor"  # conditions of the fast paths, false: not taken
_BEFORE = "ajour_fast_path"  # the condition as it was, kept on the module


def switch_off(module: nn.Module) -> None:
    """Makes a module of `bypassing` call its layers."""
    condition = _condition(module)
    assert condition is not None
    before = getattr(module, condition)
    vars(module)[_BEFORE] = before
    setattr(module, condition, type(before)(0))


def switch_on(module: nn.Module) -> None:
    """Undoes `switch_off`."""
    condition = _condition(module)
    if condition is not None and _BEFORE in vars(module):
        setattr(module, condition, vars(module)[_BEFORE])
        del vars(module)[_BEFORE]


def has_fast_path(model: nn.Module) -> bool:
    """Whether a fast path may be taken, which hooks on the layers would switch off."""
    return any(_condition(module) and _BEFORE not in vars(module) for module in model.modules())


def bypassing(model: nn.Module) -> list[nn.Module]:
    """The modules whose fast path would bypass a converted layer, and is not switched off yet."""
    return [
        module
        for module in model.modules()
        if _condition(module) and _BEFORE not in vars(module) and any(is_converted(inner) for inner in module.modules())
    ]


def notes(model: nn.Module) -> list[str]:
    """One sentence for each fast path that was switched off and had been taken otherwise."""
    return [
        f"{name or 'the model'}: the fast path of {type(module).__name__} is switched off: it reads the weights and "
        "never calls the converted layers"
        + ("; padding (src_key_padding_mask) is no longer put out as 0.0" if _condition(module) == _ENCODER else "")
        for name, module in model.named_modules()
        if vars(module).get(_BEFORE)
    ]


def _condition(module: nn.Module) -> str | None:
    if isinstance(module, nn.TransformerEncoderLayer):
        return _LAYER
    return _ENCODER if isinstance(module, nn.TransformerEncoder) else None
