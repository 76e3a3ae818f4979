"""revert: the dense modules back in their places."""

from __future__ import annotations

import torch
from torch import nn

from ajour.conversion.fast_path import switch_on
from ajour.conversion.fusion import unfold
from ajour.conversion.origin import dense_of
from ajour.conversion.recorded import record_plan
from ajour.nn import SparseLinear


def revert(model: nn.Module) -> nn.Module:
    """Gives every converted layer its dense module back, in place, and returns the model.

    Weights are exact: non-zeros bit for bit, dropped zeros as +0.0. Activations that were folded into a layer and fast
    paths are what they were before. A model that is itself one sparse layer is returned as its dense module, and one
    that was made with an activation, not converted, as an nn.Sequential of both. Where a single layer is put back
    (`model[0] = ajour.revert(model[0])`), the activation that it had taken over is applied where it had stood.
    """
    with torch.inference_mode(False), torch.no_grad():
        if isinstance(model, SparseLinear):
            return dense_of(model)
        for module in list(model.modules()):
            for leaf, child in list(module._modules.items()):
                if isinstance(child, SparseLinear):
                    module._modules[leaf] = dense_of(child)
                unfold(module, leaf)
            switch_on(module)
    record_plan(model, None)
    return model
