"""Files that could not be written are refused before the work, and looking leaves everything as it is."""

import errno
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitcop import VitcopError, cli
from vitcop.cli.outputs import check_file, check_picture, make_folder

NO_FILES = Path("/proc")  # a folder in which not even root may make files
needs_proc = pytest.mark.skipif(not NO_FILES.is_dir(), reason="there is no /proc")


def test_looking_changes_nothing(tmp_path):
    kept = tmp_path / "kept.json"
    kept.write_text("what was there")
    os.utime(kept, (1, 1))
    before = sorted(tmp_path.iterdir()), kept.stat().st_mtime
    check_file("--json", kept)
    check_file("--json", tmp_path / "new.json")
    check_picture("--overlay", tmp_path / "new.png", [kept])
    assert (sorted(tmp_path.iterdir()), kept.stat().st_mtime) == before
    assert kept.read_text() == "what was there"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written_is_refused(tmp_path):
    locked = tmp_path / "locked.json"
    locked.touch(mode=0o400)
    with pytest.raises(VitcopError, match=r"--json cannot be written to .*locked\.json: Permission denied"):
        check_file("--json", locked)


@needs_proc
@pytest.mark.parametrize(
    ("command", "option", "file"),
    [
        ("run", "--overlay", "kept.png"),
        ("run", "--json", "run.json"),
        ("compare", "--sheet", "sheet.png"),
        ("compare", "--json", "rows.json"),
        ("bench", "--json", "bench.json"),
        ("bench", "--plot", "speed.png"),
        ("eval", "--json", "answers.json"),
        ("eval", "--plot", "answers.png"),
        ("eval", "--folder", "answers"),
    ],
)
def test_a_folder_that_takes_no_files_is_refused_before_anything_is_loaded(command, option, file, monkeypatch):
    monkeypatch.setattr(getattr(cli, command), "load", None)
    result = CliRunner().invoke(cli.app, [command, option, str(NO_FILES / file)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"Error: {option} cannot be written to {NO_FILES / file}: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("run", ("--overlay", "--json")),
        ("compare", ("--sheet", "--json")),
        ("bench", ("--json", "--plot")),
        ("eval", ("--json", "--plot")),
    ],
)
def test_two_options_cannot_name_one_file(command, options, tmp_path, monkeypatch):
    monkeypatch.setattr(getattr(cli, command), "load", None)
    (tmp_path / "here").mkdir()
    files = tmp_path / "one.png", tmp_path / "here" / ".." / "one.png"
    named = [word for option, file in zip(options, files, strict=True) for word in (option, str(file))]
    result = CliRunner().invoke(cli.app, [command, *named])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {options[0]} and {options[1]} are both to be written to ")


class FullDiskError(OSError):
    """What a full disk behind stdout raises."""

    def __init__(self):
        super().__init__(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("command", "raised", "code"),
    [("run --compare", FullDiskError(), 2), ("compare --methods random", SystemExit(1), 1)],
)
def test_files_are_written_though_stdout_is_full_or_its_reader_has_gone(command, raised, code, tmp_path, monkeypatch):
    name, *options = command.split()

    def refuse(*tables):
        raise raised  # SystemExit is what rich makes of a broken pipe

    monkeypatch.setattr(getattr(cli, name), "show", refuse)
    file = tmp_path / "answers.json"
    result = CliRunner().invoke(cli.app, [name, *options, "--json", str(file)])
    assert result.exit_code == code
    assert json.loads(file.read_text())["question"]
    if code == 2:
        assert result.stderr == "Error: Cannot write to stdout: No space left on device.\n"


def test_a_folder_is_made_and_left_empty(tmp_path):
    make_folder("--folder", tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())
