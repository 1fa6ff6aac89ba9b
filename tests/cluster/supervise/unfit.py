"""A health check that finds a node unfit where RUN/unfit names it by RANK."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    unfit = Path(sys.argv[2], "unfit")
    found = unfit.exists() and os.environ["RANK"] in unfit.read_text().split()
    print(json.dumps({"fit": not found, "reasons": ["ECC: 12 errors"] * found}))
