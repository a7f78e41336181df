"""The command line, in this process."""

import contextlib
import io
import os
import subprocess
import sys
from unittest import mock

from chatserver.__main__ import main


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """What `python -m chatserver` with `arguments` prints and returns, without a process of its own."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["chatserver", *arguments]),
        mock.patch.dict(os.environ, {"PATH": os.environ["PATH"], **env}, clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            status = main()
        except SystemExit as end:
            status = int(end.code or 0)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())
