"""prune: magnitude pruning to a pattern, in place, to try things out."""

from __future__ import annotations

import torch
from torch import nn

from ajour.layer_choice import LayerChoice, choose_layers, write_weight
from ajour.layers import find_layers
from ajour.magnitude import keep_largest, magnitudes
from ajour.terms.errors import PatternError
from ajour.terms.pattern import NM, Block, Dense, Pattern, as_pattern


def prune(
    model: nn.Module,
    pattern: Pattern | str,
    *,
    density: float | None = None,
    layers: LayerChoice | None = None,
    balanced: bool = False,
) -> nn.Module:
    """Zeroes the smallest weights of every linear layer in place, so that each fits `pattern`, and returns the model.

    pattern:  or its name, like "2:4". NM keeps the `keep` largest |w| of every group; Block the blocks with the largest
              sum of |w|; Unstructured the largest |w| of the layer. Among equals, the first in row-major order is kept.
    density:  the share of blocks or of weights that is kept, 0 to 1, rounded to a whole number of them; an N:M pattern
              has its own.
    layers:   a name or glob ("encoder.*"), several of them, or a callable (name, module) -> bool; without it all
              layers that can be converted. What can't be converted is skipped, unless it was named in full.
    balanced: keep the same number of blocks in every block row.

    Raises PatternError if pattern and density don't go together, ConversionError for a layer that is named and can't be
    pruned, or if nothing matches; the model is unchanged then.
    """
    pattern = as_pattern(pattern)
    _check(pattern, density, balanced)
    for layer in choose_layers(find_layers(model), layers):
        w = layer.weight()
        kept = keep_largest(magnitudes(w), pattern, density if density is not None else 1.0, balanced)
        write_weight(layer, torch.where(kept, w, 0))
    return model


def _check(pattern: Pattern, density: float | None, balanced: bool) -> None:
    if isinstance(pattern, Dense):
        raise PatternError("dense is nothing to prune to; expected NM, Block or Unstructured")
    if isinstance(pattern, NM) and density is not None:
        raise PatternError(f"{pattern} keeps {pattern.keep} of {pattern.group} by itself; leave density out")
    if not isinstance(pattern, NM) and (density is None or not 0 <= density <= 1):
        raise PatternError(f"{pattern} needs density=, the share that is kept, from 0 to 1; found {density}")
    if balanced and not isinstance(pattern, Block):
        raise PatternError(f"balanced keeps the same number of blocks in every block row; {pattern} has no blocks")
