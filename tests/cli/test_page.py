"""`vitcop report`: one page of all that commands write, which asks nothing of a network."""

import base64
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from vitcop import cli

ROOT = Path(__file__).parents[2]
STORED = {
    "bench": ROOT / "benchmarks" / "runs" / "llava-onevision-0.5b-cpu.json",
    "eval": ROOT / "docs" / "results" / "quality.json",
}


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def page_of(*files, folder, title="vitcop"):
    result = invoke("report", *files, "--html", folder / "page.html", "--title", title)
    assert result.exit_code == 0, result.output
    return (folder / "page.html").read_text()


def test_a_run_and_what_it_drew_are_on_one_page(tmp_path):
    question = "what color is the <b>circle</b>?"
    files = tmp_path / "run.json", tmp_path / "kept.png"
    ran = invoke("run", question, "--compare", "--retention", "1/9", "--json", files[0], "--overlay", files[1])
    assert ran.exit_code == 0, ran.output
    page, held = page_of(*files, folder=tmp_path, title="a & b"), json.loads(files[0].read_text())
    assert "<h1>a &amp; b</h1>" in page and "&lt;b&gt;circle&lt;/b&gt;" in page and "<b>" not in page
    (picture,) = re.findall(r"src='data:image/png;base64,([^']+)'", page)
    assert base64.b64decode(picture) == files[1].read_bytes()
    assert set(re.findall(r"(?:src|href)='([a-z]+:)", page)) == {"data:"} and "http" not in page
    stages = held["report"]["images"][0]["stages"]
    bounds = [stage["layer"] for stage in stages] + [held["report"]["num_layers"]]
    for stage, end in zip(stages, bounds[1:], strict=True):
        assert all(f"layer {layer}: {stage['after']} of 324" in page for layer in range(stage["layer"], end))


def test_what_is_compared_planned_measured_and_asked_has_its_tables(tmp_path):
    compared, planned = tmp_path / "compare.json", tmp_path / "plan.json"
    asked = ["--methods", "visionzip,knorm", "--retention", "0.05", "--json", compared]
    assert invoke("compare", *asked).exit_code == 0
    assert invoke("plan", "--json", planned).exit_code == 0
    page = page_of(compared, planned, *STORED.values(), folder=tmp_path)
    rows = json.loads(compared.read_text())["rows"]
    refusal = next(row["refusal"] for row in rows if row["name"] == "knorm")
    assert refusal in page and f"{rows[1]['average_retention']:.1%}" in page
    assert "Plan of vitcop" in page and "Speed-up and memory, batch 1" in page and "Agreement: answers" in page
    assert page.count("<section>") == 4


def test_a_title_that_is_no_text_leaves_a_page(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "own.png")
    assert "<h1>a?b</h1>" in page_of(tmp_path / "own.png", folder=tmp_path, title="a\udcffb")


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (["missing.json"], "There is no file missing.json"),
        (["text.json"], "is not what a vitcop command writes"),
        (["list.json"], "is neither a picture nor"),
        (["cut.json"], "is not what a vitcop command writes"),
        (["empty.json"], "is not what a vitcop command writes"),
        (["own.tiff"], "nor a picture that browsers show, by its name: .png"),
        (["own.png", "--html", "page.txt"], "--html needs one of the extensions .html"),
        (["own.png", "--html", "missing/page.html"], "no folder missing"),
        (["page.html", "--html", "page.html"], "overwrite page.html"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(files, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("own.png")
    Image.new("RGB", (8, 8)).save("own.tiff")
    Path("text.json").write_text("no json")
    Path("page.html").write_text("somebody's")
    Path("list.json").write_text("[1]")
    Path("empty.json").write_text('{"report": {"images": [], "num_layers": 2}}')
    Path("cut.json").write_text('{"report": {"images": []}}')
    result = invoke("report", *files)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1 and complaint in result.stderr
    assert not Path("report.html").exists()
