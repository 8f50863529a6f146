"""A method of one's own, in one's own folder or package, is as good as those that come with vitcop."""

import importlib
import json
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import torch
from typer.testing import CliRunner

import vitcop
from docs.pages import README
from vitcop import cli
from vitcop.lmms.arguments import split_arguments
from vitcop.quality.fingerprint import codes
from vitcop.quality.runner import pruners_of
from vitcop.selection import registry

TOLD = re.search(r"```python\n([^`]*?class Mine.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
MINE = f"""{TOLD}
class Helper: ...


@dataclass(frozen=True)
class Half(ScorePruner): ...


if __name__ == "__main__":
    print(Mine(power=3.0).to_json())
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of one's own, to work in; what is defined there is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(registry, "_defined", {**registry._defined})
    modules = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def invoke(*arguments):
    result = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_names_are_known_and_wrong_ones_refused_before_anything_is_imported(tmp_path):
    script = """
import sys
from typer.testing import CliRunner
import vitcop, vitcop.lmms.manifests
from vitcop import cli

assert list(vitcop.METHODS)[:2] == ["vitcop", "earlyvitcop"] and "dart" in vitcop.METHODS
assert "salientclusters" in vitcop.methods.STAGES and "FastV" in vitcop.methods.__all__
for words, said in [
    ("run --method vitcp", "'vitcop'"),
    ("run --method gone.py:Mine", "no file gone.py"),
    ("run --retention 2", "above 0"),
    ("compare --methods vitcop,vitcp", "'vitcop'"),
    ("compare --retention 0", "above 0"),
    ("eval --methods all,vitcp", "'vitcop'"),
    ("eval --methods last-query", "'last query'"),
    ("eval --retentions 1,2", "above 0"),
    ("bench --methods downsample,vitcp", "'vitcop'"),
    ("bench --model lava-1.5-7b", "'llava-1.5-7b'"),
    ("bench --retentions 1,2", "above 0"),
    ("plan --model none --method vitcp", "'vitcop'"),
    ("plan --model none --retention 2", "above 0"),
    ("methods vitcp", "'vitcop'"),
]:
    result = CliRunner().invoke(cli.app, words.split())
    assert result.exit_code == 2 and result.stderr.count("\\n") == 1, (words, result.stderr)
    assert said in result.stderr, (words, result.stderr)
assert not {"torch", "transformers", "vitcop.methods.vitcop"} & {*sys.modules}
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


def test_names_that_stand_twice_are_the_same():
    from vitcop.bench import SHAPES
    from vitcop.quality.variants import ABLATIONS

    assert tuple(SHAPES) == cli.common.SHAPES
    assert {f"{name}-ablations": tuple(variants) for name, variants in ABLATIONS.items()} == cli.eval.ABLATIONS
    for catalogue in (vitcop.METHODS, vitcop.methods.STAGES):
        assert [kind.name for kind in catalogue.values()] == list(catalogue)
        assert all(getattr(vitcop, kind.__name__) is kind for kind in catalogue.values())
    assert {kind.__name__ for kind in (vitcop.EntrancePruner, vitcop.LayerPruner, vitcop.ScorePruner)} < {
        *vitcop.__all__
    }


@pytest.mark.parametrize("text", ["mine.py:Mine", "mine:Mine", "{folder}/mine.py:Mine"])
def test_a_class_in_a_file_or_module_is_found_used_and_written_down(folder, text):
    Path("mine.py").write_text(MINE)
    text = text.format(folder=folder)
    kind = vitcop.Pruner.named(text)
    assert vitcop.Pruner.named(text) is kind and vitcop.Pruner.named("mine") is kind
    method = kind(0.5, power=2.0)
    written = json.loads(method.to_json())["method"]
    assert written == ("mine:Mine" if text == "mine:Mine" else f"{folder}/mine.py:Mine")
    assert vitcop.Pruner.from_json(method.to_json()) == method
    stage = vitcop.Pipeline([vitcop.Stage(method, 0, 0.4)])
    assert vitcop.Pruner.from_json(stage.to_json()) == stage
    with torch.no_grad(), vitcop.prune(tiny.LLAVA.model(), method):
        tiny.LLAVA.model()(**tiny.batch([tiny.ONE_IMAGE]))
    assert split_arguments({"method": text, "power": 2.0, "retention": "1/2"}, []) == (method, {})


def test_a_file_imports_what_stands_beside_it(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "beside_it.py").write_text("POWER = 5.0")
    (folder / "sub" / "mine.py").write_text("from beside_it import POWER\n" + MINE.replace("= 1.0", "= POWER"))
    assert vitcop.Pruner.named("sub/mine.py:Mine")().power == 5.0


def test_a_script_writes_where_it_stands(folder, capsys):
    Path("mine.py").write_text(MINE)
    runpy.run_path(f"{folder}/mine.py", run_name="__main__")
    del registry._defined["mine"]  # as in another process
    method = vitcop.Pruner.from_json(capsys.readouterr().out)
    assert method.power == 3.0 and type(method).__module__ == f"{folder}/mine.py"


@dataclass(frozen=True)
class Wrapped(vitcop.EntrancePruner):
    """A method around another."""

    inner: vitcop.Selector | None = None

    def select(self, tokens, budget):
        return self.inner.select(tokens, budget)


def test_a_method_within_a_method_survives_json():
    method = Wrapped(retention=0.5, inner=vitcop.FastV(layer=3))
    assert vitcop.Pruner.from_json(method.to_json()) == method != Wrapped(retention=0.5)


def test_every_command_takes_it(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    Path("mine.py").write_text(MINE)
    assert "Mine (--method mine.py:Mine)" in (told := invoke("methods", "mine.py:Mine"))
    assert "    power = 1.0\n" in told
    assert invoke("run", "--method", "mine.py:Mine").count("\n") == 1
    Path("bad.py").write_text(MINE.replace("Mine", "Bad").replace("return tokens.saliency", "return 1 / 0"))
    table = invoke("compare", "--methods", "bad.py:Bad,mine.py:Mine,random", "--retention", "1/2")
    assert "ZeroDivisionError: division by zero." in " ".join(table.split())
    assert [line.split()[1] for line in table.splitlines() if " 50.0% " in line] == ["mine", "random"]
    assert " mine " in invoke("plan", "--model", vitcop.builtin.MODEL_PATH, "--method", "mine:Mine")


@pytest.mark.parametrize(
    ("command", "work", "other"),
    [
        (["bench"], "vitcop.bench.run_benchmark", "downsample"),
        (["eval", "--questions", "8"], "vitcop.quality.evaluate", "last query"),
    ],
)
def test_long_runs_are_given_its_name(command, work, other, monkeypatch):
    def seen(*given):
        raise vitcop.VitcopError(f"{next(value.methods for value in given if hasattr(value, 'methods'))}")

    monkeypatch.setattr(work, seen)
    Path("mine.py").write_text(MINE)
    result = CliRunner().invoke(cli.app, [*command, "--methods", f"mine.py:Mine,{other}"])
    assert result.stderr == f"Error: ['mine', {other!r}]\n"
    assert pruners_of("mine")(0.5) == vitcop.Pruner.named("mine")(0.5)
    # Answers under another state of its code are not taken for those of this one.
    before = codes(["mine", "fastv", "paper"])
    Path("mine.py").write_text(MINE + "\n")
    assert [*before] == ["mine"] and codes(["mine"]) != before


def test_no_method_is_taken_for_what_it_is_compared_with():
    Path("mine.py").write_text(MINE.replace("Mine", "Dense"))
    result = CliRunner().invoke(cli.app, ["compare", "--methods", "mine.py:Dense"])
    assert result.exit_code == 2 and "cannot be told from what commands call 'dense'" in result.stderr


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("gone.py:Mine", "there is no file gone.py"),
        ("mine.py:Mime", "unknown class of mine.py 'Mime'. Did you mean 'Mine'?"),
        ("mine.py:Helper", "does not derive from vitcop.Pruner"),
        ("mine.py:dataclass", "does not derive from vitcop.Pruner"),
        ("loose.py:Loose", "must be a dataclass"),
        ("mine.py:Half", "is not complete: it does not define budgets, score"),
        ("mine.py", "file.py:Class or package.module:Class"),
        ("broken.py:Mine", "RuntimeError: no way"),
        ("leaves.py:Mine", "SystemExit: 3"),
        ("gone.module:Mine", "No module named 'gone'"),
        (":", "Cannot import"),
        ("", "unknown method ''"),
        ("mergeclusters", "put it into a Pipeline"),
    ],
)
def test_what_cannot_be_found_is_answered_in_one_line(text, complaint):
    Path("mine.py").write_text(MINE)
    Path("loose.py").write_text("from mine import Mine\n\nclass Loose(Mine):\n    power: float = 2.0")
    Path("broken.py").write_text("raise RuntimeError('no way\\nout')")
    Path("leaves.py").write_text("raise SystemExit(3)")
    with pytest.raises(vitcop.VitcopError) as raised:
        vitcop.Pruner.named(text)
    assert complaint in str(raised.value) and "\n" not in str(raised.value)


def test_a_method_without_retention_is_told_what_commands_need():
    @dataclass(frozen=True)
    class Bare(vitcop.Pruner):
        budgets = select = None

    with pytest.raises(vitcop.VitcopError, match="Bare has no field `retention`"):
        vitcop.Pruner.from_dict({"method": "bare", "retention": 0.5})
    with pytest.raises(vitcop.VitcopError, match="pipeline needs 'stages'"):
        vitcop.Pruner.from_dict({"method": "pipeline", "retention": 0.5})


def test_from_dict_gives_what_it_is_asked_of():
    settings = vitcop.FastV(retention=0.5).to_dict()
    assert settings["method"] == "fastv"
    assert vitcop.FastV.from_dict(settings) == vitcop.LayerPruner.from_dict(settings) == vitcop.FastV(retention=0.5)
    with pytest.raises(vitcop.VitcopError, match="'fastv' is no ViTCoP; read it by FastV"):
        vitcop.ViTCoP.from_dict(settings)
    assert vitcop.Selector.from_dict({"method": "mergeclusters"}) == vitcop.MergeClusters()
    for settings in ({}, {"method": None}, {"method": ["fastv"]}):
        with pytest.raises(vitcop.VitcopError, match="is described by its name"):
            vitcop.Pruner.from_dict(settings)


def install(folder, package, **places):
    """Put a package there that announces methods."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {place}" for name, place in places.items()]
    (info / "entry_points.txt").write_text("\n".join(["[vitcop.methods]", *lines]))
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))


def test_packages_announce_theirs(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    (site / "acme.py").write_text(MINE.replace("Mine", "Acme"))
    (site / "acme_broken.py").write_text("import nothing_of_this_name")
    install(site, "acme", acme="acme:Acme", acmebroken="acme_broken:AcmeBroken", other="acme:Half", fastw="acme:Acme")
    told = invoke("methods")
    assert "Of another package: acme (acme:Acme)" in told and "acmebroken" in told and "acme" not in sys.modules
    with pytest.raises(vitcop.VitcopError, match=r"'acne'. Did you mean 'acme'\? .* acmebroken, "):
        vitcop.Pruner.named("acne")
    method = vitcop.Pruner.from_dict({"method": "acme", "retention": 0.5})
    assert type(method).__name__ == "Acme" and method.to_dict()["method"] == "acme"
    with pytest.raises(vitcop.VitcopError, match="announces as acme_broken:AcmeBroken: ModuleNotFoundError: No m"):
        vitcop.Pruner.named("acmebroken")
    with pytest.raises(vitcop.VitcopError, match="announced as 'fastw', but its `name` is 'acme'"):
        vitcop.Pruner.named("fastw")
    install(tmp_path_factory.mktemp("another"), "another", acmebroken="elsewhere:AcmeBroken")
    with pytest.raises(vitcop.VitcopError, match="are both announced as 'acmebroken'"):
        vitcop.Pruner.named("acmebroken")


def test_a_name_is_of_one_class():
    with pytest.raises(vitcop.VitcopError, match=r"called 'random', which is .* vitcop.methods.random:Random"):

        class Random(vitcop.Random): ...

    Path("first.py").write_text(MINE)
    Path("second.py").write_text(MINE)
    first = vitcop.Pruner.named("first:Mine")
    with pytest.raises(vitcop.VitcopError, match=r"second:Mine cannot be called 'mine', .* of first:Mine"):
        vitcop.Pruner.named("second:Mine")
    anew = importlib.reload(sys.modules["first"]).Mine
    assert anew is not first and vitcop.Pruner.named("mine") is anew

    def local(weight):
        @dataclass(frozen=True, slots=True)
        class Local(vitcop.Random):
            weight: float = 1.0

        return Local(weight=weight)

    for weight in (0.5, 2.0):
        method = local(weight)
        assert vitcop.Pruner.from_json(method.to_json()) == method


@dataclass(frozen=True)
class Scored(vitcop.ScorePruner, vitcop.LayerPruner):
    """Scores as it is told to."""

    change: str = ""

    def score(self, tokens):
        scores = {
            "column": lambda score: score[:, None],
            "short": lambda score: score[1:],
            "mask": lambda score: score > 0,
            "bytes": lambda score: score.to(torch.uint8),
            "complex": lambda score: score + 0j,
            "list": lambda score: score.tolist(),
            "nothing": lambda score: None,
        }
        return scores.get(self.change, lambda score: score)(tokens.index.float())


@pytest.mark.parametrize("change", ["column", "short", "mask", "bytes", "complex", "list", "nothing"])
def test_a_score_that_ranks_nothing_is_never_taken(change):
    model, inputs = tiny.LLAVA.model(), tiny.batch([tiny.ONE_IMAGE])
    with torch.no_grad():
        with vitcop.prune(model, Scored(0.5)):
            model(**inputs)
        with (
            vitcop.prune(model, Scored(0.5, change=change)),
            pytest.raises(vitcop.VitcopError, match=r"score of scored must be a tensor of .* of shape \(36,\); got "),
        ):
            model(**inputs)
