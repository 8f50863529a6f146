"""Products in the precision of their factors."""

from __future__ import annotations

import torch


def full_precision(device: torch.device) -> torch.autocast:
    """Autocast would round products to half precision whose factors were widened so that they would not be."""
    return torch.autocast(device.type, enabled=False)
