"""finish: what training put around the weights goes, and plain layers with their zeros stay."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from ajour.train.linear import MaskedLinear
from ajour.train.lottery import Change
from ajour.train.sr_ste import SrSte
from ajour.train.tuning import TunedMask

_OURS = (SrSte, TunedMask, Change)


def finish(model: nn.Module) -> nn.Module:
    """Turns MaskedLinear, SrSte, TunedMask and `rewind` back into plain weights, in place, and returns the model.

    The values stay bit for bit as the last forward would use them. Parametrizations of others stay. Optimizers that
    held the scores or changes are of no use afterwards; those of a MaskedLinear still hold its parameters.
    """
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, MaskedLinear):
            parent, _, leaf = path.rpartition(".")
            if not path:
                return module.to_linear()
            setattr(model.get_submodule(parent), leaf, module.to_linear())
        elif parametrize.is_parametrized(module):
            for leaf, steps in list(module.parametrizations.items()):  # type: ignore[union-attr, operator]
                if all(isinstance(step, _OURS) for step in steps):
                    parametrize.remove_parametrizations(module, leaf, leave_parametrized=True)
    return model
