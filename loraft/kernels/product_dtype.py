"""In which dtype a product of tensors is computed: pure.

torch's autocast decides it for every function that it knows. A function with a backward of its own, or one that writes
into a tensor that is given, has to ask: half of its products would come out in one dtype and half in another.
"""

from __future__ import annotations

import torch
from torch import Tensor


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that autocast gives to a product with `tensor`, or the tensor's own where autocast is off."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return tensor.dtype
    return torch.get_autocast_dtype(device)
