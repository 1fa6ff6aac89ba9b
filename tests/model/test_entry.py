"""Every entry point ends in one line, whatever happened."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
import typer

from model.entry import leave_trace, run_entry
from model.errors import ConfigError


def ended(function: object, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as caught:
        run_entry(function)  # type: ignore[arg-type]
    return caught.value.code, capsys.readouterr().err


def raising(error: BaseException) -> object:
    def run() -> None:
        raise error

    return run


def typed(error: BaseException) -> object:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(raising(error))  # type: ignore[type-var]
    return lambda: app([])


@pytest.mark.parametrize("under", [raising, typed], ids=["plain", "typer"])
def test_ends(
    under: object,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert ended(under(ConfigError("no such key")), capsys) == (78, "error: no such key\n")  # type: ignore[operator]
    assert ended(under(KeyboardInterrupt()), capsys) == (130, "interrupted\n")  # type: ignore[operator]
    code, said = ended(under(KeyError("first\nsecond")), capsys)  # type: ignore[operator]
    match = re.fullmatch(
        r"error: unexpected KeyError: .*; the trace is in (\S+) \(ADDP_DEBUG=1 shows it here\)\n",
        said,
    )
    assert (
        code == 1
        and match
        and "Traceback" in Path(match[1]).read_text()
        and Path(match[1]).parent == tmp_path
    )
    monkeypatch.setenv("ADDP_DEBUG", "1")
    code, said = ended(under(KeyError("first")), capsys)  # type: ignore[operator]
    assert (
        code == 1
        and said.startswith("Traceback")
        and said.endswith("error: unexpected KeyError: 'first'\n")
    )


def test_a_thread_that_dies_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = threading.excepthook

    def run() -> None:
        thread = threading.Thread(target=raising(KeyError("x")), name="helper")  # type: ignore[arg-type]
        thread.start()
        thread.join()

    code, said = ended(run, capsys)
    assert code is None and re.fullmatch(
        r"error: the thread helper died: unexpected KeyError: 'x'; the trace .*\n", said
    )
    assert threading.excepthook is before


def test_what_a_function_returns_is_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(lambda: None, capsys) == (None, "") and ended(lambda: 3, capsys) == (3, "")


def test_a_trace_that_no_file_takes_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert leave_trace(ValueError("x"), tmp_path / "file" / "trace") is None
    assert "ValueError: x" in capsys.readouterr().err
