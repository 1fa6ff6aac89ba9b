"""`addp openmoji`: real images without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def openmoji(
    out: Annotated[Path, typer.Argument(help="folder to make, with one folder a class")],
    size: Annotated[int, typer.Option(min=1, max=4096, help="side of the images in pixels")] = 64,
) -> None:
    """Render the OpenMoji set (CC BY-SA 4.0) into class folders: real images without a download."""
    from data_pipeline.images.openmoji import render
    from data_pipeline.storage.output import check_output

    check_output(out)
    print(f"{out}: {render(out, size)} images")
