"""A module to launch: each process leaves what it was given in the folder of the first word.

python -m tests.cluster.launch.record_words FOLDER WORD...
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

# Words that mean something to a shell, to pdsh, or to a command line.
HOSTILE = [
    "plain=1",
    "a b",
    'it\'s "quoted"',
    'it\'s"quoted"',
    "$HOME `id` $(id)",
    "$HOME`id`$(id)",
    "\\ \\\\ \\n",
    "\\\\x\\$y",
    "; touch /tmp/addp-injected #",
    ";touch${IFS}/tmp/addp-injected",
    "a&b|c>d<e*?[x]{1,2}~!^()",
    "line\nbreak",
    "line\nbreak with space",
    "%n%h%u%%",
    "% n %n",
    "ä€",
    "",
    "--",
    "-x",
    "tab\there",
]


def main() -> None:
    record = {"host": platform.node(), "words": sys.argv[2:], "environment": dict(os.environ)}
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{os.environ['RANK']}.json"
    partial.write_text(json.dumps(record))
    partial.rename(folder / f"rank-{os.environ['RANK']}.json")


if __name__ == "__main__":
    from trainer.distributed.world import take_world

    take_world()
    main()
