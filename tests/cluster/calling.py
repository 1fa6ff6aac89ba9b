"""`addp ...` as it is typed, in this process: a start of the real one takes seconds."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple
from unittest import mock

from cluster import cli


class Called(NamedTuple):
    code: int
    stdout: str
    stderr: str


def addp(*arguments: object) -> Called:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with mock.patch.object(sys, "argv", ["addp", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Called(code, out.getvalue(), err.getvalue())
