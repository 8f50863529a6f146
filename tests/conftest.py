"""Settings of the whole suite."""

import gc
import os
from importlib.util import find_spec
from pathlib import Path

# Nothing here may come from the network: who asks the Hub is refused, on every machine.
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

PACKAGE = Path(find_spec("vitcop").origin).parent


def with_shapes():
    """The modules of the package that say shapes in their annotations."""
    for path in PACKAGE.rglob("*.py"):
        if "from jaxtyping import" in path.read_text(encoding="utf-8"):
            yield ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


# Each call of a checked function is as slow as a small operation on tensors, and types without shapes are left to mypy.
install_import_hook([*with_shapes()], "checker.check")

# The models are tiny: more threads only wait for each other, and xdist runs one process per core.
torch.set_num_threads(1)

# A failure must come back when it is looked for, and a busy machine is none.
hypothesis.settings.register_profile(
    "fixed",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fixed")


def pytest_collection_finish():
    """Keep the garbage collector, which tests ask what is left, from looking at everything that was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    """Tables are as wide, and as plain, in every terminal and in none."""
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def recorded():
    """Attention weights of every call, by module, of models built with the attention "recorded"."""
    weights = {}

    def record(module, query, key, value, attention_mask, scaling, **kwargs):
        repeats = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(repeats, 1) for states in (key, value))
        logits = query @ key.mT * (module.scaling if scaling is None else scaling)
        if attention_mask is not None:
            logits = logits + attention_mask
        weights.setdefault(module, []).append(logits.softmax(-1))
        return (weights[module][-1] @ value).transpose(1, 2), None

    AttentionInterface.register("recorded", record)
    AttentionMaskInterface.register("recorded", eager_mask)
    yield weights
    AttentionInterface._global_mapping.pop("recorded")
    AttentionMaskInterface._global_mapping.pop("recorded")
