"""What some tests need. Not in `tiny`, which benchmarks/gpu imports where there is no pytest."""

import inspect

import pytest
from transformers import LlavaModel

takes_encoder_outputs = pytest.mark.skipif(
    "mm_encoder_outputs" not in inspect.signature(LlavaModel.forward).parameters,
    reason="the models of this transformers take no encoder outputs, which raises",
)
