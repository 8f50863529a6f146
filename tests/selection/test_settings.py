"""Settings are checked when they are made, and what holds tensors has no equality that could fail."""

import dataclasses
import importlib
import json
import math
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest

import vitcop
from vitcop.errors import check_retention
from vitcop.selection.settings import checked

KINDS = [*vitcop.METHODS.values(), *vitcop.methods.STAGES.values(), vitcop.Pipeline, vitcop.Stage]
GIVEN = {
    vitcop.Pipeline: {"stages": (vitcop.Stage(vitcop.KNorm(), 4, 0.2),)},
    vitcop.Stage: {"selector": vitcop.KNorm(), "layer": 4, "share": 0.2},
}
FIELDS = [(kind, field) for kind in KINDS for field in dataclasses.fields(kind)]
WRONG = ("x", "1/9", "", b"x", [3, "x"], {"a": 1}, math.nan, math.inf, -math.inf, 10**400, object(), 1j)


def made(kind, **values):
    """What the constructor makes, past the type check of the test run, which a user does not have."""
    settings = object.__new__(kind)
    for each in dataclasses.fields(kind):
        object.__setattr__(settings, each.name, (GIVEN.get(kind, {}) | values).get(each.name, each.default))
    settings.__post_init__()
    return settings


def wrong_for(kind, name):
    """Values that no setting takes, and those that only this one does not."""
    hint = {each.name: each.type for each in dataclasses.fields(kind)}[name]
    yield from (value for value in WRONG if not (hint.startswith("int") and value == 10**400))
    if hint != "bool":
        yield True
    if not hint.startswith(("float", "bool")):
        yield 0.5
    if "None" not in hint:
        yield None


@pytest.mark.parametrize(("kind", "each"), FIELDS, ids=lambda value: getattr(value, "__name__", None) or value.name)
def test_values_of_the_wrong_type_are_refused_when_they_are_made(kind, each):
    for value in wrong_for(kind, each.name):
        with pytest.raises(vitcop.VitcopError, match=rf"{each.name} of {kind.__name__} is|has several stages"):
            made(kind, **{each.name: value})
        if kind is not vitcop.Stage and kind is not vitcop.Pipeline and isinstance(value, str | int | float | list):
            with pytest.raises(vitcop.VitcopError, match=f"{each.name} of {kind.__name__} is"):
                vitcop.Selector.from_json(json.dumps({"method": kind.name, each.name: value}))


RIGHT = {
    "retention": (1.0, 0.25),
    "layer": (4, None),
    "layers": ([4, 9, 14], (4, 9, 14), None),
    "head_weights": ([0.5, 0.0], (1.0, 2.0), None),
    "tokens": (64, None),
    "seed": (7, 10**400),
    "recycle": (True, False),
    "signal": ("key_norm", "last_query", "question"),
    "shallow_signal": ("key_norm", "question"),
    "deep_signal": ("key_norm", "last_query", "question"),
    "positions": ("compact", "keep"),
    "calibrate": ("none", "size"),
    "centre_fraction": (1.0, 0.5),
    "deep_ratio": (1.0, 0.3, None),
    "shallow_layer": (3, None),
    "deep_layer": (9, None),
    "radius": (0.0, 2.0),
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in GIVEN], ids=lambda kind: kind.__name__)
def test_values_of_the_right_type_survive_json(kind):
    defaults = kind()
    assert vitcop.Selector.from_json(defaults.to_json()) == defaults
    for each in dataclasses.fields(kind):
        for value in RIGHT.get(each.name, (0.5,)):
            if value is None and "None" not in each.type:
                continue
            if value == "size" and not kind.described.merges:
                continue
            settings = made(kind, **{each.name: value})
            if (
                type(value) is not int or "float" not in each.type
            ):  # a whole number is a number, but not in the test run
                assert kind.from_json(settings.to_json()) == settings
            assert hash(settings) == hash(made(kind, **{each.name: value}))


@dataclass(frozen=True)
class Everything:
    """Annotations that methods of one's own may have."""

    pair: tuple[int, float] = (1, 0.5)
    names: Sequence[str] = ()
    nested: tuple[tuple[int, int], ...] = ()
    either: Literal["a", 2] | float = 2
    plain: list = field(default_factory=list)
    table: dict = field(default_factory=dict)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("pair", (3, 0.5), [3, 1, 2]),
        ("pair", (3, 1), (0.5, 3)),
        ("names", ("a", "b"), "a"),
        ("nested", ((1, 2), (3, 4)), [[1, 2], [3]]),
        ("either", "a", "b"),
        ("either", 0.5, True),
        ("plain", [1, "x"], 1),
        ("table", {"a": 1}, [1]),
    ],
)
def test_annotations_of_ones_own_are_followed(name, right, wrong):
    assert checked(Everything, {"either": 1}) == {"either": 1}  # a whole number is a number
    from_json = json.loads(json.dumps(right))
    assert checked(Everything, {name: from_json}) == {name: right}  # with tuples for lists that are none
    with pytest.raises(vitcop.VitcopError, match=f"{name} of Everything is "):
        checked(Everything, {name: wrong})


def test_numbers_of_numpy_become_numbers():
    method = made(vitcop.FastV, retention=np.float32(0.5), layer=np.int64(3))
    assert method == vitcop.FastV(retention=0.5, layer=3) and type(method.layer) is int
    layers = made(vitcop.PyramidDrop, layers=[*np.array([2, 4, 6])])
    assert vitcop.Pruner.from_json(layers.to_json()) == layers == vitcop.PyramidDrop(layers=(2, 4, 6))
    with pytest.raises(vitcop.VitcopError, match="layer of FastV is a whole number"):
        made(vitcop.FastV, layer=np.float64(3))
    with pytest.raises(vitcop.VitcopError, match="retention of FastV is a finite number"):
        made(vitcop.FastV, retention=np.bool_(True))


def test_what_a_method_works_out_itself_is_no_setting():
    @dataclass(frozen=True)
    class Halved(vitcop.Random):
        half: float = field(init=False)

        def __post_init__(self):
            super().__post_init__()
            object.__setattr__(self, "half", self.retention / 2)

    method = Halved(retention=0.5)
    assert method.half == 0.25 and "half" not in method.to_dict()
    assert vitcop.Pruner.from_json(method.to_json()) == method
    with pytest.raises(vitcop.VitcopError, match="unknown setting of halved 'half'"):
        Halved.from_dict({"method": "halved", "half": 0.25})


def test_ranges_are_checked_when_settings_are_made_too():
    for make in (
        lambda: vitcop.Random(layer=-1),
        *(lambda share=share: check_retention(share) for share in ("1/9", True, None, math.nan, 10**400, 0, 1.01)),
        lambda: vitcop.PyramidDrop(layers=(4, 4, 9)),
        lambda: vitcop.ViTCoP(shallow_layer=1),
        lambda: vitcop.ViTCoP(shallow_layer=5, deep_layer=5),
        lambda: vitcop.SalientClusters(radius=-1.0),
        lambda: vitcop.SalientClusters(centre_fraction=0.0),
        *(lambda layer=layer: vitcop.Stage(vitcop.MostSignificant(), layer, 0.5) for layer in (0, 1)),
        lambda: vitcop.Stage(vitcop.MergeClusters(), 1, 0.5),
        lambda: vitcop.Stage(vitcop.SparseVLM(), 0, 0.5),
        lambda: vitcop.Stage(vitcop.PyramidDrop(), 0, 0.5),
    ):
        with pytest.raises(vitcop.BudgetError):
            make()


def test_what_holds_tensors_is_equal_to_itself_alone():
    optional = "vitcop.app", "vitcop.bench.plot", "vitcop.lmms", "vitcop.quality.plot", "vitcop.testbed", "vitcop.vllm"
    modules = [module.name for module in pkgutil.walk_packages(vitcop.__path__, "vitcop.")]
    kinds = {
        value
        for name in modules
        if not name.startswith(optional)
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    }
    holders = [
        k for k in kinds if any(word in str(f.type) for f in dataclasses.fields(k) for word in ("Tensor", "ndarr"))
    ]
    assert len(holders) > 10
    assert [kind for kind in holders if kind.__eq__ is not object.__eq__] == []
