"""What vLLM answers with the plug-in is token for token what the model answers in transformers under `vitcop.prune`."""

from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM; `make test-vllm` installs it in an environment of its own")

from engines import ask, engine, forget, prune_by, tokens
from setting import ON_BACKEND, Reference, served_methods


@dataclass(frozen=True)
class Run:
    """A family in one engine.

    Attributes:
        name: of the family.
        retention: of all methods.
        settings: of the engine.
    """

    name: str
    retention: float = 1 / 3
    settings: dict[str, Any] = field(default_factory=dict, hash=False)


CHUNKS = {"max_num_batched_tokens": 16, "enable_chunked_prefill": True}
NATIVE = ("llava", "llava with siglip", "llava_next", "llava_onevision", "qwen2_5_vl")
RUNS = {
    **{name: Run(name) for name in NATIVE},
    **{f"{name}, chunks": Run(name, 1 / 2, settings=CHUNKS) for name in NATIVE if name != "llava with siglip"},
    **{name: Run(name) for name in ON_BACKEND},
    **{f"{name}, chunks": Run(name, 1 / 2, settings=CHUNKS) for name in ("internvl", "qwen2_vl")},
}
"""Name -> what is run. A chunk of 16 tokens holds a part of a picture of which half is left."""


@pytest.fixture(scope="module")
def references():
    """By family, with the answers that they have given already."""
    return {}


@pytest.fixture(scope="module", params=RUNS, ids=str)
def served(request, references):
    """An engine, the model in transformers, and the methods to compare."""
    run = RUNS[request.param]
    reference = references.setdefault(run.name, Reference(run.name))
    methods = served_methods(run.name, run.retention)
    with engine(run.name, methods["visionzip"], **run.settings) as llm:
        yield llm, reference, methods, run


@pytest.mark.parametrize("name", NATIVE)
def test_dense_answers_are_the_same_without_the_plug_in(name, references):
    reference = references.setdefault(name, Reference(name))
    with engine(name, None) as llm:
        assert tokens(ask(llm, reference.asked)) == reference.answers(None)


@pytest.mark.parametrize("name", served_methods("llava", 1 / 3))
def test_answers_are_those_of_transformers(name, served, monkeypatch):
    llm, reference, methods, run = served
    if name not in methods:
        pytest.skip("vLLM's Transformers backend cannot run the decoder over a picture by itself")
    prune_by(llm, methods[name])
    expected = reference.answers(methods[name])
    alone = [tokens(ask(llm, [question]))[0] for question in reference.asked[2:4]]
    assert alone == expected[2:4]
    forget(llm)
    assert tokens(ask(llm, reference.asked)) == expected  # at once
    if not run.settings:  # the cache of a small chunk holds a picture or two
        monkeypatch.setattr(llm.llm_engine.model_executor.driver_worker.worker.model_runner.model, "_encoded", None)
    again = ask(llm, reference.asked)  # with pictures from one cache, and prompts from another
    assert tokens(again) == expected
    assert any(output.num_cached_tokens for output in again)


def test_answers_depend_on_the_method(served):
    """Or the above would see nothing."""
    _, reference, methods, _ = served
    answers = [tuple(map(tuple, reference.answers(method))) for method in methods.values()]
    assert len(set(answers)) > len(answers) // 2
