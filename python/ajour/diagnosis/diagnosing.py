"""diagnose: everything that ajour can use here, looked at and tested."""

from __future__ import annotations

import torch

from ajour.diagnosis.findings import Diagnosis
from ajour.diagnosis.machine import look
from ajour.diagnosis.packages import optional_packages
from ajour.diagnosis.products import check_products
from ajour.diagnosis.updates import check_updates


def diagnose() -> Diagnosis:
    """Looks at everything that ajour can use and runs every kernel that takes a small problem here. Takes seconds."""
    found = [*look(), *optional_packages()]
    for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
        found += [*check_products(device), *check_updates(device)]
    return Diagnosis(tuple(found))
