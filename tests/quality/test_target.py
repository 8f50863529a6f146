"""`vitcop plan --quality`: no more is promised than was seen, and what checks a choice has no part in it."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from shown import assert_nothing_is_lost
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

import vitcop
from docs.pages import README
from vitcop import builtin, cli
from vitcop.cli import target as command
from vitcop.errors import BudgetError, VitcopError
from vitcop.quality import Course, OwnQuestion, QualityPlan, Subject, plan_quality, read_questions
from vitcop.quality import plan as planning
from vitcop.quality.agreement import Agreement, needed
from vitcop.quality.contenders import constant
from vitcop.quality.journal import Answered
from vitcop.quality.own import halves, worth
from vitcop.quality.plan_table import tables
from vitcop.quality.reader import Reader
from vitcop.quality.results import DENSE, Refusal, Setting
from vitcop.quality.target import meet, split
from vitcop.scenes import scene
from vitcop.tables import show

PICTURES, TARGET = 100, 0.9  # 50 in each half, where one answer may be another
NAMES = ("fastv", "knorm", "dart")
SETTING = Setting("model", "own questions", 0, 324, 20, "float32", "CPU", 25, {"vitcop": "0"})


def questions_about(pictures: int, of_each: int = 1) -> tuple[OwnQuestion, ...]:
    return tuple(
        OwnQuestion(Path(f"{number}.png"), f"{number}", (9, 9), f"{number} {turn}?", "0")
        for number in range(pictures)
        for turn in range(of_each)
    )


BOTH = split(questions_about(PICTURES), TARGET, seed=0)
CHOOSING, CHECKING = ({int(each.digest) for each in half} for half in BOTH)


class MadeUp:
    """Answers as it is told to, and remembers what it was asked.

    Args:
        misses: by candidate and retention, the pictures about which it says what the dense model does not; None if it
            cannot answer.
        prices: of the candidates.
    """

    setting = SETTING

    def __init__(self, misses: dict[str, dict[float, set[int] | None]], prices: Sequence[int] = (1, 1, 1)) -> None:
        self.misses, self.prices = misses, dict(zip(misses, prices, strict=False))
        self.candidates = tuple(misses)
        self.retentions = sorted(next(iter(misses.values())), reverse=True)
        self.asked: list[tuple[set[int], str, float]] = []

    def method(self, name: str, retention: float) -> vitcop.Pruner:
        return vitcop.METHODS[name](retention=retention)

    def flops(self, name: str, retention: float) -> int:
        return round(1000 * retention * self.prices.get(name, 1))

    def ask(self, questions: Sequence[OwnQuestion], name: str, retention: float) -> Answered:
        pictures = [int(each.digest) for each in questions]
        self.asked.append(({*pictures}, name, retention))
        missed = set() if name == DENSE else self.misses[name][retention]
        if missed is None:
            raise BudgetError("this is too few")
        return Answered(
            ["another" if each in missed else str(each % 4) for each in pictures], [retention] * len(pictures)
        )


@st.composite
def made_up(draw: st.DrawFn) -> MadeUp:
    """Candidates whose agreement need not fall with the retention."""
    retentions = [1 / number for number in range(2, 2 + draw(st.integers(1, 9)))]
    few = (st.sets(st.sampled_from(sorted(half)), max_size=most) for half, most in ((CHOOSING, 3), (CHECKING, 8)))
    missed = st.builds(set.union, *few) | st.none()
    misses = {name: {each: draw(missed) for each in retentions} for name in draw(st.permutations(NAMES))}
    return MadeUp(misses, draw(st.lists(st.integers(1, 2), min_size=3, max_size=3)))


def passes_the_binomial_test(same: int, asked: int) -> bool:
    """So many, or more, come at most once in twenty times where the true share is the target."""
    chance = Fraction(9, 10)
    tail = sum(math.comb(asked, k) * chance**k * (1 - chance) ** (asked - k) for k in range(same, asked + 1))
    return tail <= Fraction(1, 20)


@given(made_up())
def test_what_is_promised_was_asked_and_seen_and_is_the_cheapest_of_all_that_was(answerer):
    plan = meet(answerer, BOTH, TARGET)
    kept = []
    for name in answerer.candidates:
        looks = [retention for pictures, other, retention in answerer.asked if (pictures, other) == (CHOOSING, name)]
        assert len(looks) <= 1 + math.log2(len(answerer.retentions))
        for retention in looks:
            missed = answerer.misses[name][retention]
            if missed is not None and passes_the_binomial_test(len(CHOOSING - missed), len(CHOOSING)):
                kept.append((answerer.flops(name, retention), name, retention))
    found = plan.winner and (plan.winner.flops, plan.winner.name, plan.winner.retention)
    assert found == min(kept, default=None)


@given(made_up())
def test_what_checks_is_asked_once_when_all_is_chosen_and_about_that_alone(answerer):
    plan = meet(answerer, BOTH, TARGET)
    if plan.winner is None:
        assert all(pictures == CHOOSING for pictures, *_ in answerer.asked) and not plan.holds
        return
    chosen = plan.winner.name, plan.winner.retention
    assert answerer.asked[-2:] == [(CHECKING, DENSE, 1.0), (CHECKING, *chosen)]
    assert all(pictures == CHOOSING for pictures, *_ in answerer.asked[:-2])
    missed = len(CHECKING & answerer.misses[chosen[0]][chosen[1]])
    assert (plan.seen.same, plan.seen.asked) == (len(CHECKING) - missed, len(CHECKING))
    assert plan.holds == (missed <= 5)


@given(st.integers(1, 12), st.integers(0, 12))
def test_where_agreement_falls_with_the_retention_the_lowest_that_keeps_it_is_found(count, kept):
    retentions = [1 / number for number in range(2, 2 + count)]
    misses = {retention: set() if number < kept else CHOOSING for number, retention in enumerate(retentions)}
    winner = meet(MadeUp({"dart": misses}), BOTH, TARGET).winner
    assert (winner and winner.retention) == (retentions[min(kept, count) - 1] if kept else None)


def test_of_what_costs_the_same_the_first_by_name_is_taken():
    assert meet(MadeUp({name: {0.5: set()} for name in NAMES}), BOTH, TARGET).winner.name == "dart"


def test_a_model_that_always_says_the_same_cannot_be_held_to_it():
    answerer = MadeUp({"dart": {0.5: set()}})
    answerer.ask = lambda questions, name, retention: Answered(["no"] * len(questions), [1.0] * len(questions))
    with pytest.raises(VitcopError, match="says 'no' to 50 of 50"):
        meet(answerer, BOTH, TARGET)


@pytest.mark.parametrize("draws", [14, 40])
def test_bounds_are_wrong_as_seldom_as_they_say(draws):
    for share in (0.03, 0.5, 0.94, 0.97):
        chance = [math.comb(draws, same) * share**same * (1 - share) ** (draws - same) for same in range(draws + 1)]
        seen = [Agreement(same, draws, draws) for same in range(draws + 1)]
        above = sum(each for each, agreement in zip(chance, seen, strict=True) if agreement.at_least > share)
        inside = 0.0
        for each, agreement in zip(chance, seen, strict=True):
            lowest, highest = agreement.interval
            inside += each * (lowest <= share <= highest)
        assert above <= 0.05 and inside >= 0.95
    assert seen[-1].at_least == pytest.approx(0.05 ** (1 / draws)) and seen[0].at_least == 0


def test_as_many_are_needed_as_show_it_if_all_agree():
    assert needed(0.97) == 99
    for target in (0.5, 0.8, 0.97, 0.999):
        least = needed(target)
        assert Agreement(least, least, least).at_least >= target > Agreement(least - 1, least - 1, least - 1).at_least


def test_the_documentation_says_how_many_answers_may_differ():
    text = (README.parent / "docs" / "quality_target.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if re.match(r"\| (pictures|\d)", line)]
    heading, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    targets = [float(cell.removesuffix(" %")) / 100 for cell in heading[1:]]
    for target, cell in zip(targets, heading[1:], strict=True):
        assert re.search(rf"{2 * needed(target)} (pictures can )?show {cell}", text)
    for pictures, *cells in rows:
        half = int(pictures) // 2
        for target, cell in zip(targets, cells, strict=True):
            most = -1 if cell == "-" else int(cell.removesuffix(f" of {half}"))
            shows = [
                Agreement(half - missed, half, half).at_least >= target for missed in (most, most + 1) if missed >= 0
            ]
            assert shows == [True, False][-len(shows) :]


def test_questions_about_one_picture_are_worth_one():
    assert worth(questions_about(7)) == worth(questions_about(7, of_each=9)) == 7
    assert worth([*questions_about(6), *questions_about(1, of_each=5)]) == 2  # 11 ** 2 / (5 + 6 ** 2)
    many, few = Agreement(18 * 9, 20 * 9, 20), Agreement(18, 20, 20)
    assert (many.at_least, many.interval) == (few.at_least, few.interval)


def test_halves_have_as_many_pictures_and_none_in_common_in_whichever_order_they_come():
    questions = questions_about(9, of_each=2)
    first, second = halves(questions, seed=1)
    pictures = [{each.digest for each in half} for half in (first, second)]
    assert [len(each) for each in pictures] == [5, 4] and not pictures[0] & pictures[1]
    again = halves(questions[::-1], seed=1)
    assert ({*again[0]}, {*again[1]}) == ({*first}, {*second}) != tuple(map(set, halves(questions, seed=2)))


def test_too_few_questions_are_told_how_many_it_takes():
    for questions in (questions_about(197), questions_about(10, of_each=50), ()):
        with pytest.raises(VitcopError, match="To show that 97 % of the answers are kept takes questions about 198"):
            split(questions, 0.97, seed=0)
    assert sum(map(len, split(questions_about(198), 0.97, seed=0))) == 198
    for target in (0.0, 1.0, 97.0, math.nan):
        with pytest.raises(VitcopError, match="above 0 and below 1"):
            split(questions_about(198), target, seed=0)


def shown(plan: QualityPlan) -> str:
    console = Console(file=io.StringIO(), width=120)
    show(console, *tables(plan))
    return " ".join(console.file.getvalue().split())


def missing_the_target() -> QualityPlan:
    return meet(MadeUp({"dart": {0.5: CHECKING, 0.25: None}, "knorm": {0.5: None, 0.25: None}}), BOTH, TARGET)


def test_what_is_said_follows_from_the_answers():
    plan = meet(MadeUp({"dart": {0.5: set(), 0.25: {min(CHOOSING), *sorted(CHECKING)[:3]}}}, [2]), BOTH, TARGET)
    assert "Promised: dart at retention 0.25 keeps 90 % of the dense answers or more, for 50 % of" in shown(plan)
    assert "It kept 49 of 50 by which" in shown(plan)
    seen = "47 of 50 that took no part: 94 %, with an interval of 95 % from 83.45 % to 98.75 %."
    assert f"Seen: it kept {seen}" in shown(plan)
    assert "90 % or more: the promise holds." in shown(plan)
    right = sum(each % 4 == 0 for each in CHOOSING)
    pruned = right - (min(CHOOSING) % 4 == 0)
    assert f"Right are {pruned} of the 50 known ones, dense {right}." in shown(plan)
    held = json.loads(json.dumps(plan.to_dict()))
    assert held["holds"] and held["check"]["agreement"]["share"] == 0.94
    assert vitcop.Pruner.from_dict(held["chosen"]) == plan.method == vitcop.DART(retention=0.25)
    assert_nothing_is_lost(tables(plan))

    plan = missing_the_target()
    assert not plan.holds and "That is less than 90 %: the promise does not hold." in shown(plan)
    assert "knorm: this is too few" in shown(plan) and "dart: this is too few" not in shown(plan)
    plan = meet(MadeUp({"dart": {0.5: CHOOSING}}), BOTH, TARGET)
    assert not plan.holds and "No promise: at no retention" in shown(plan)
    assert json.loads(json.dumps(plan.to_dict()))["check"] is None


@pytest.fixture
def written(tmp_path):
    """Pictures of scenes, and a file with a question about each."""
    lines, number = [], 0
    for number in range(10):
        drawn = scene(9_000_000 + number, "test")
        drawn.picture.save(tmp_path / f"{number}.png")
        asked = drawn.questions[number % len(drawn.questions)]
        lines.append({"picture": f"{number}.png", "question": asked.text, "answer": asked.answer})
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


def test_a_line_is_a_picture_a_question_and_perhaps_an_answer(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name, color in (("red", "#ff0000"), ("same", "#ff0000"), ("blue", "#0000ff")):
        Image.new("RGB", (4, 3), color).save(tmp_path / "pictures" / f"{name}.png")
    lines = [
        '{"picture": "pictures/red.png", "question": "What?", "answer": " Red. ", "id": 7}',
        "",
        '{"picture": "pictures/same.png", "question": "What\u2028now?"}',
        json.dumps({"picture": str(tmp_path / "pictures" / "blue.png"), "question": "What?"}),
    ]
    (tmp_path / "mine.jsonl").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    red, same, blue = read_questions(tmp_path / "mine.jsonl")
    assert (red.answer, same.answer, same.question, red.size) == ("red", None, "What\u2028now?", (4, 3))
    assert red.digest == same.digest != blue.digest
    assert blue.picture().getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"picture": "0.png", "question": "What?"}\n{', "mine.jsonl, line 2 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        ('["0.png", "What?"]', 'line 1 is no object with "picture" and "question"'),
        ('{"image": "0.png", "question": "What?"}', 'line 1 has no "picture"'),
        ('{"picture": "0.png", "question": " "}', 'line 1 has no "question"'),
        ('{"picture": "0.png", "question": "How many?", "answer": 2}', 'line 1 has an "answer" that is no text: 2'),
        ('{"picture": "1.png", "question": "What?"}', "Cannot read"),
        ('{"picture": "mine.jsonl", "question": "What?"}', "is not a picture"),
        ('{"picture": "https://some.where/0.png", "question": "What?"}', "is an address"),
        ('{"picture": "0.png", "question": "\udcff"}', "Cannot read the questions"),
    ],
)
def test_what_is_no_question_is_told_in_one_line(text, message, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    (tmp_path / "mine.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(VitcopError, match=message) as caught:
        read_questions(tmp_path / "mine.jsonl")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def subject():
    model = AutoModelForImageTextToText.from_pretrained(builtin.MODEL_PATH, dtype=torch.float32)
    return Subject("the model in the box", model.eval(), AutoProcessor.from_pretrained(builtin.MODEL_PATH))


def test_each_half_is_answered_as_by_its_method_and_a_stop_loses_at_most_a_batch(subject, written, monkeypatch):
    questions, course = read_questions(written), Course(["visionzip", "knorm"], [0.25, 0.05], 5, ("keep",))
    plan = plan_quality(subject, questions, 0.5, course)
    refused = [(look.name, look.retention) for look in plan.looks if isinstance(look, Refusal)]
    assert refused == [("knorm", 0.05)] and plan.check
    both = halves(questions)
    for row, half in ((plan.looks[0], both[0]), (plan.check, both[1])):
        kind, _, positions = row.name.partition(", ")
        method = vitcop.METHODS[kind](retention=row.retention, positions=positions or None)
        reader = Reader(subject.model, subject.processor, half, batch=5)
        assert row.answers == [reader.read(constant(method)).answers]
    assert plan.method == method

    asked: list[object] = []
    generate = Reader._generate

    def stop(reader: Reader, inputs: object) -> object:
        asked.append(inputs)
        if len(asked) in (2, 6):  # in either half
            raise KeyboardInterrupt
        return generate(reader, inputs)

    def again(**options: int) -> QualityPlan:
        return plan_quality(subject, questions, 0.5, course, folder=written.parent / "kept", **options)

    monkeypatch.setattr(Reader, "_generate", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            again()
    assert again() == plan
    assert len(asked) == 2 + len(plan.looks) - len(refused) + 3
    monkeypatch.setattr(Reader, "_generate", None)
    assert again() == plan
    with pytest.raises(TypeError):  # answers that are cut off elsewhere are others
        again(max_new_tokens=1)


def test_candidates_are_asked_under_both_numberings_where_these_can_differ(subject, written, monkeypatch):
    found = []

    def seen(answerer: object, *_: object) -> None:
        found.append(answerer)
        raise VitcopError("seen")

    monkeypatch.setattr(planning, "meet", seen)
    with pytest.raises(VitcopError, match="seen"):
        course = Course(["vitcop", "fastv"], [0.5, 0.05], 5, ("keep", "compact"))
        plan_quality(subject, read_questions(written), 0.5, course)
    (answerer,) = found
    assert answerer.candidates == ("vitcop, keep", "vitcop, compact", "fastv")
    with pytest.raises(BudgetError):
        answerer.flops("fastv", 0.05)
    assert answerer.flops("vitcop, keep", 0.05) < answerer.flops("vitcop, keep", 0.5) < answerer.flops(DENSE, 1.0)


def invoke(*arguments: object):
    return CliRunner(env={"COLUMNS": "120"}).invoke(cli.app, ["plan", *map(str, arguments)])


def test_the_command_writes_what_it_shows(written, tmp_path):
    result = invoke(
        *("--quality", 0.5, "--questions-file", written, "--methods", "knorm", "--json", tmp_path / "plan.json"),
        *("--folder", tmp_path / "kept"),
    )
    assert result.exit_code == 0, result.output
    held = json.loads((tmp_path / "plan.json").read_text())
    chosen = held["chosen"]
    assert held["holds"] and chosen["method"] == "knorm"
    assert f"Promised: knorm at retention {chosen['retention']:.4g} keeps 50 %" in result.stdout
    assert len(held["looks"]) == 5 and list((tmp_path / "kept").rglob("dense-1.0.jsonl"))


def test_a_promise_that_does_not_hold_ends_with_1(written, monkeypatch):
    monkeypatch.setattr("vitcop.quality.plan_quality", lambda *given, **options: missing_the_target())
    result = invoke("--quality", 0.5, "--questions-file", written)
    assert result.exit_code == 1 and "the promise does not hold" in result.stdout and not result.stderr


def test_the_command_and_the_library_try_the_same():
    assert tuple(command.CANDIDATES.split(",")) == planning.CANDIDATES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--quality", 0.97), "--quality needs a file of questions"),
        (("--quality", 0.97, "--questions-file", "nowhere.jsonl"), "got nowhere.jsonl"),
        (("--quality", "most", "--questions-file", "mine.jsonl"), "--quality is a fraction"),
        (("--quality", 97, "--questions-file", "mine.jsonl"), "above 0 and below 1"),
        (("--quality", 0.97, "--questions-file", "mine.jsonl"), "questions about 198 pictures"),
        (
            ("--quality", 0.97, "--questions-file", "mine.jsonl", "--retention", "1/9"),
            "--retention and --quality exclude",
        ),
        (
            ("--quality", 0.97, "--questions-file", "mine.jsonl", "--method", "fastv"),
            "--method does not go with --quality",
        ),
        (("--quality", 0.97, "--questions-file", "mine.jsonl", "--methods", "vitcp"), "Did you mean 'vitcop'"),
        (("--quality", 0.97, "--questions-file", "mine.jsonl", "--model", "llava-1.5-7b"), "a shape without weights"),
        (("--quality", 0.97, "--questions-file", "mine.jsonl", "--json", "mine.jsonl"), "would overwrite"),
        (("--questions-file", "mine.jsonl"), "--questions-file goes with --quality"),
        (("--seed", 1), "--seed goes with --quality"),
        (("--quality", 0.5, "--questions-file", "odd.jsonl"), "holds '<image>', which stands for the image"),
    ],
)
def test_mistakes_get_one_line(arguments, message, written, monkeypatch):
    monkeypatch.chdir(written.parent)
    Path("odd.jsonl").write_text(written.read_text().replace('"question": "', '"question": "<image> '))
    result = invoke(*arguments)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
