"""`vitcop eval`: questions are fair, answers are those of `generate`, and what is shown follows from what is stored."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from shown import assert_nothing_is_lost
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

import vitcop
from docs import quality_page
from docs.pages import README
from vitcop import builtin, cli
from vitcop.errors import VitcopError
from vitcop.quality import Case, Course, Evaluation, Subject, Suite, evaluate
from vitcop.quality.contenders import Contest
from vitcop.quality.fingerprint import fingerprint
from vitcop.quality.journal import Answered
from vitcop.quality.oracle import oracle_for
from vitcop.quality.plot import plot
from vitcop.quality.reader import Reader
from vitcop.quality.results import Refusal, Row, Setting
from vitcop.quality.suite import WORLDS
from vitcop.quality.table import tables
from vitcop.scenes import TYPES, scene
from vitcop.tables import show

QUESTIONS = 16
PACKAGE = Path(vitcop.__file__).parent


def run_eval(*arguments: object):
    return CliRunner(env={"COLUMNS": "120"}).invoke(cli.app, ["eval", *map(str, arguments)])


@pytest.fixture(scope="module")
def subject():
    model = AutoModelForImageTextToText.from_pretrained(builtin.MODEL_PATH, dtype=torch.float32)
    return Subject("the model in the box", model.eval(), AutoProcessor.from_pretrained(builtin.MODEL_PATH))


@pytest.fixture(scope="module")
def suite():
    return Suite.of("builtin", QUESTIONS)


def untold(text: str, total: int) -> None:
    pass


def test_a_suite_has_as_many_questions_of_each_type_and_its_scenes_answer_them():
    suite = Suite.of("builtin", 100, seed=1)
    assert sorted(Counter(case.type for case in suite.cases).values()) == [20] * 5
    for case in suite.cases:
        asked = {question.text: question.answer for question in scene(case.scene, "test").questions}
        assert asked[case.question] == case.answer


def test_seeds_share_no_scene_and_a_seed_asks_the_same_again():
    choosing, reporting = Suite.of("builtin", 40, seed=1), Suite.of("builtin", 40)
    assert not {case.scene for case in choosing.cases} & {case.scene for case in reporting.cases}
    assert Suite.of("builtin", 40) == reporting


def test_no_constant_answer_to_a_wording_beats_the_majority():
    suite = Suite.of("builtin", 200, types=TYPES)
    right = sum(guess == case.answer for guess, case in zip(suite.guesses(), suite.cases, strict=True))
    for answer in ("yes", "no", "2", "left", "top", "photo", "red"):
        assert right >= sum(case.answer == answer for case in suite.cases)
    sides = [case for case in suite.cases if case.type == "place"]
    assert {guess for guess, case in zip(suite.guesses(), suite.cases, strict=True) if case in sides} <= {
        *("left", "right", "top", "bottom")
    }


def test_answers_are_those_of_a_plain_loop_over_generate(subject, suite):
    method = vitcop.ViTCoP(retention=1 / 9)
    reader = Reader(subject.model, subject.processor, suite.cases, batch=5)
    for pruner in (None, method):
        given = reader.read(None if pruner is None else lambda cases: method)
        for case, answer in zip(suite.cases, given.answers, strict=True):
            text = f"USER: <image>\n{case.question} ASSISTANT:"
            inputs = subject.processor(images=case.picture(), text=text, return_tensors="pt")
            with torch.no_grad():
                if pruner is None:
                    tokens = subject.model.generate(**inputs, max_new_tokens=8)
                else:
                    with vitcop.prune(subject.model, pruner) as pruning:
                        tokens = subject.model.generate(**inputs, max_new_tokens=8)
                    assert given.average == pytest.approx(pruning.report.average_retention())
            alone = subject.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            assert answer == alone.strip()


def test_the_oracle_keeps_objects_first_and_the_middle_of_each(subject, suite):
    cases, side = suite.cases[:4], Contest(subject, suite, 4).planner.geometry.image.shapes[0][0]
    reader = Reader(subject.model, subject.processor, cases, batch=4)
    with vitcop.prune(subject.model, oracle_for(cases, side, 1 / 36)) as pruning:
        subject.model.generate(**reader._prompts(cases, [case.picture() for case in cases]), max_new_tokens=1)
    for number, case in enumerate(cases):
        owner = scene(case.scene, "test", side * 8).patch_owner(side).ravel()
        kept = pruning.report.stages[0].kept(number)
        of = Counter(owner[kept].tolist())
        things = len(set(owner.tolist()) - {0})
        assert 0 not in of and len(of) == min(things, len(kept))


def test_a_run_goes_on_where_it_stopped(subject, suite, tmp_path, monkeypatch):
    course = Course(["vitcop", "fastv"], [1 / 9, 1 / 36], batch=8)
    asked: list[str] = []

    def stop(text: str, total: int) -> None:
        asked.append(text)
        if len(asked) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(subject, suite, course, stop, tmp_path)
    whole = evaluate(subject, suite, course, untold, tmp_path)
    assert {row.name for row in whole.rows} == {
        *("dense", "majority", "blind", "vitcop", "fastv", "random", "uniformgrid", "averagepool", "oracle")
    }
    again = {(refusal.name, round(1 / refusal.retention)) for refusal in whole.refusals}
    assert again == {("fastv", 36), ("downsample", 9), ("downsample", 36)}

    monkeypatch.setattr(Reader, "_generate", None)
    assert evaluate(subject, suite, course, untold, tmp_path) == whole
    with pytest.raises(TypeError):  # other weights: nothing of what is there may be taken
        with torch.no_grad():
            subject.model.lm_head.weight[0, 0] += 1
        try:
            evaluate(subject, suite, course, untold, tmp_path)
        finally:
            with torch.no_grad():
                subject.model.lm_head.weight[0, 0] -= 1


def test_a_stop_loses_at_most_a_batch_and_shows_in_nothing(subject, suite, tmp_path, monkeypatch):
    course = Course(["vitcop"], [1 / 9], batch=4)
    undisturbed = evaluate(subject, suite, course, untold)
    asked: list[object] = []
    generate = Reader._generate

    def stop(reader: Reader, inputs: object) -> object:
        asked.append(inputs)
        if len(asked) in (3, 11, 30):  # in the dense model, without pictures, among the seeds of random pruning
            raise KeyboardInterrupt
        return generate(reader, inputs)

    monkeypatch.setattr(Reader, "_generate", stop)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            evaluate(subject, suite, course, untold, tmp_path)
        (journal,) = tmp_path.rglob("*.jsonl")
        journal.write_text(journal.read_text() + '{"batch": 9')  # a line that was torn
    assert evaluate(subject, suite, course, untold, tmp_path).to_dict() == undisturbed.to_dict()
    rows = [row for row in undisturbed.rows if row.flops]
    assert len(asked) == 3 + sum(len(row.answers) * len(suite.cases) // 4 for row in rows)
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize(("kept", "line"), [(True, "The same command goes on from what "), (False, "--folder")])
def test_ctrl_c_says_how_to_go_on(kept, line, tmp_path, monkeypatch):
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitcop.quality.evaluate", stop)
    result = run_eval("--questions", 5, *(["--folder", tmp_path] if kept else []))
    assert result.exit_code == 130
    assert line in result.stderr and result.stderr.count("\n") == 1


def test_what_ran_in_another_way_is_kept_apart(subject, suite):
    before = fingerprint(subject, suite.cases, 8)
    assert fingerprint(subject, suite.cases, 8) == before != fingerprint(subject, suite.cases, 4)
    try:
        assert fingerprint(replace(subject, model=subject.model.to(torch.bfloat16)), suite.cases, 8) != before
    finally:
        subject.model.float()  # the weights are stored in bfloat16, so that nothing is lost


def test_answers_are_kept_apart_by_all_that_scenes_are_made_of(subject, suite, monkeypatch):
    read = set()

    def spy(file: Path) -> bytes:
        read.add(file)
        return b""

    monkeypatch.setattr(Path, "read_bytes", spy)
    fingerprint(subject, suite.cases, 8)
    assert {*(PACKAGE / "scenes" / "photos").iterdir(), *(PACKAGE / "photos" / "cutouts").iterdir()} <= read


def test_a_model_that_answers_otherwise_is_told_at_once(subject, suite, monkeypatch):
    monkeypatch.setattr(Reader, "_generate", lambda reader, inputs: ["it is red"] * len(inputs["input_ids"]))
    with pytest.raises(VitcopError, match="said 'it is red', where only"):
        evaluate(subject, suite, Course(["vitcop"], [1 / 9], batch=8), untold)


def test_a_method_that_cannot_answer_at_all_has_no_floor(subject, suite, monkeypatch):
    def refuse(*_: object) -> None:
        raise VitcopError("no such signal here")

    monkeypatch.setattr(vitcop.ViTCoP, "select", refuse)
    found = evaluate(subject, Suite.of("builtin", 8), Course(["vitcop"], [1 / 9], batch=8), untold)
    assert ("vitcop", None) in {(refusal.name, refusal.floor) for refusal in found.refusals}


def test_a_floor_is_the_lowest_retention_that_a_method_takes(subject, suite):
    contest = Contest(subject, suite, 8)
    methods = {"fastv": lambda retention: vitcop.methods.FastV(retention=retention)}
    floor = contest.floor("fastv", methods)
    contest.planner.plan(methods["fastv"](floor))
    with pytest.raises(vitcop.BudgetError):
        contest.planner.plan(methods["fastv"](floor * 0.999), small_images="refuse")
    assert contest.floor("oracle", methods) is None


def test_both_numberings_are_asked_of_what_drops_at_the_entrance(subject, monkeypatch):
    suite, asked = Suite.of("builtin", 8), []

    def read(reader: Reader, pruner_for: object, journal: object) -> Answered:
        if pruner_for is not None:
            asked.append(pruner_for(suite.cases).positions)
        return Answered([case.answer for case in suite.cases], [1.0] * 8)

    monkeypatch.setattr(Reader, "read", read)
    monkeypatch.setattr(Reader, "_generate", lambda reader, inputs: ["yes"] * 8)
    course = Course(["vitcop", "fastv", "positions keep"], [1, 1 / 3, 1 / 36], batch=8, positions=("keep", "compact"))
    found = evaluate(subject, suite, course, untold)
    both = ("vitcop", "random", "uniformgrid", "averagepool", "oracle")
    names = [f"{name}, {positions}" for name in both for positions in ("keep", "compact")]
    for retention in (1.0, 1 / 3, 1 / 36):
        each = {one.name for one in (*found.rows, *found.refusals) if one.retention == retention}
        assert each - {"dense", "majority", "blind"} == {*names, "fastv", "positions keep", "downsample"}
    once, seeds = 2 * 3, 1 + 5 + 5  # the variant and FastV; of random pruning
    assert asked.count("keep") - once == asked.count("compact") == 4 * 3 + seeds


def test_types_of_question_go_together_by_whether_they_ask_where_things_are():
    found = synthetic()
    assert not found.groups  # nothing is asked about places
    kinds = {"count": "naming", "color": "presence"}
    cases = [replace(case, type=kinds[case.type], suite="photos") for case in found.cases]
    found = replace(found, cases=cases, setting=replace(found.setting, suite="photos"))
    assert found.groups == {"of place": ["naming"], "of content": ["presence"]}
    console = Console(file=io.StringIO(), width=200)
    show(console, *tables(found))
    row = next(line for line in console.file.getvalue().splitlines() if "vitcop" in line)
    assert row.split()[-4:] == ["100", "0", "100", "0"] and "of place (naming)" in console.file.getvalue()
    assert found.to_dict()["rows"][1]["accuracy"] == {
        **{"all": 0.5, "of place": 1.0, "of content": 0.0},
        **{"naming": 1.0, "presence": 0.0},
    }
    # Per question 0.5, -0.5, 1, 0, of which the first and the third ask for a place.
    gains = [found.gain("vitcop", "random", *kinds) for kinds in found.groups.values()]
    assert replace(found, setting=replace(found.setting, suite="mine")).groups == {}
    assert [(gain.value, gain.lowest, gain.highest) for gain in gains] == [(0.75, 0.5, 1.0), (-0.25, -0.5, 0.0)]


@pytest.mark.parametrize("name", WORLDS)
def test_questions_of_place_are_types_of_their_world(name):
    assert {*WORLDS[name].of_place} < {*WORLDS[name].types}


def synthetic() -> Evaluation:
    """Two scenes of two questions each."""
    cases = [Case(scene, kind, f"{scene} {kind}?", "yes") for scene in (0, 1) for kind in ("count", "color")]
    rows = [
        Row("dense", 1.0, 1.0, 100, [["yes", "yes", "yes", "no"]]),
        Row("vitcop", 0.5, 0.5, 60, [["yes", "no", "yes", "no"]]),
        Row("random", 0.5, 0.5, 50, [["yes", "yes", "no", "no"], ["no", "no", "no", "no"]]),
    ]
    setting = Setting("model", "builtin", 0, 324, 20, "float32", "CPU", 25, {"vitcop": "0"})
    return Evaluation(setting, cases, rows, [Refusal("fastv", 0.5, "too low", 0.6)])


def test_figures_follow_from_the_answers():
    found = synthetic()
    dense, vitcop_, random = found.rows
    assert found.accuracy(vitcop_) == 0.5 and found.accuracy(vitcop_, "count") == 1
    assert found.agreement(vitcop_) == 0.75 and found.agreement(random) == pytest.approx(4 / 8)
    assert found.spread(random) == (0, 0.5)
    same = found.share_of_dense(dense)
    assert (same.value, same.lowest, same.highest) == (1, 1, 1)
    # Drawing whole scenes: twice scene 0 gives 1/2, twice scene 1 gives 1, one of each 2/3.
    share = found.share_of_dense(vitcop_)
    assert (share.value, share.lowest, share.highest) == (pytest.approx(2 / 3), 0.5, 1.0)
    with pytest.raises(VitcopError, match="nothing right"):
        replace(found, rows=[replace(dense, answers=[["no"] * 4])]).share_of_dense(dense)


def with_all_references(found: Evaluation) -> Evaluation:
    """With what every plot shows besides the methods."""
    return replace(found, rows=[*found.rows, *(replace(found.dense, name=name) for name in ("blind", "majority"))])


def test_one_scene_has_no_interval_and_says_why():
    found = synthetic()
    found = replace(found, cases=[replace(case, scene=0) for case in found.cases])
    share, gain = found.share_of_dense(found.rows[1]), found.gain("vitcop", "random")
    assert (share.lowest, share.highest) == (gain.lowest, gain.highest) == (None, None)
    shown = quality_page.page("{caption} {details}", found)
    assert " 66.7 |" in shown and "needs questions about several scenes" in shown
    (panel,) = plot(with_all_references(found)).axes
    assert not any(bars for _, _, bars in panel.containers)


def test_a_plot_of_one_retention_makes_no_gulf_of_a_small_difference():
    found = with_all_references(synthetic())
    rows = [replace(row, flops=59) if row.name == "random" else row for row in found.rows]
    (panel,) = plot(replace(found, rows=rows)).axes
    assert panel.get_xlim() == pytest.approx((0.495, 0.695))
    assert all(bars for _, _, bars in panel.containers)


def test_json_holds_all_that_is_shown():
    found = synthetic()
    read = Evaluation.from_dict(json.loads(json.dumps(found.to_dict())))
    assert json.dumps(read.to_dict()) == json.dumps(found.to_dict())
    shown = []
    for each in (found, read):
        console = Console(file=io.StringIO(), width=40)
        show(console, *tables(each))
        shown.append(console.file.getvalue())
    assert shown[0] == shown[1] and "fastv (from 0.600 on): too low" in shown[0] and "66.7 (50-100)" in shown[0]
    assert_nothing_is_lost(tables(found))


def test_a_gain_is_the_mean_difference_over_retentions_that_both_reach():
    found = synthetic()
    gain = found.gain("vitcop", "random")  # per question 0.5, -0.5, 1, 0: scenes give 0 and 0.5
    assert (gain.value, gain.lowest, gain.highest) == (0.25, 0.0, 0.5)


def test_the_pages_say_what_the_stored_answers_say():
    results = README.parent / "docs" / "results"
    assert (results / "quality.md").read_text(encoding="utf-8") == quality_page.quality(), "run `make quality`"
    for kind in quality_page.ABLATED:
        stored = (results / f"ablations-{kind}.md").read_text(encoding="utf-8")
        assert stored == quality_page.ablations(kind), "run `make quality`"
    assert (results / "census.md").read_text(encoding="utf-8") == quality_page.census(), "run `make quality`"
    assert (results / "testbed.md").read_text(encoding="utf-8") == quality_page.testbed(), "run `make testbed-quality`"
    assert quality_page.section() in (results / "README.md").read_text(encoding="utf-8"), "run `make quality`"
    assert quality_page.short() in README.read_text(encoding="utf-8"), "run `make quality`"


def test_the_command_writes_what_it_shows(tmp_path):
    files = [tmp_path / name for name in ("out.json", "out.png")]
    result = run_eval(
        *("--questions", 8, "--methods", "vitcop", "--retentions", "1/3", "--json", files[0], "--plot", files[1])
    )
    assert result.exit_code == 0 and "vitcop" in result.output and files[1].read_bytes()[:4] == b"\x89PNG"
    stored = Evaluation.from_dict(json.loads(files[0].read_text()))
    assert len(stored.cases) == 8 and {case.type for case in stored.cases} == set(WORLDS["builtin"].asked)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "vqa"), "unknown suite 'vqa'"),
        (("--methods", "vitcopp"), "vitcop"),
        (("--retentions", "0"), "retention"),
        (("--positions", "kept"), "unknown value of --positions 'kept'. Did you mean 'keep'?"),
        (("--questions", 3), "at least one question"),
        (("--plot", "plot.txt"), ".png"),
        (("--json", "nowhere/out.json"), "no folder"),
        (("--folder", f"{__file__}/runs"), "--folder cannot be written"),
        (("--model", Path(__file__).parent), "Cannot load"),
    ],
)
def test_mistakes_get_one_line(arguments, message):
    result = run_eval(*arguments)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
