"""Whose emoji the scenes show, and what may be done with them."""

from __future__ import annotations

LICENCE_FILE = "LICENSE.txt"
NAME = "Attribution-ShareAlike 4.0 International (CC BY-SA 4.0)"
URL = "https://creativecommons.org/licenses/by-sa/4.0/"
ATTRIBUTION = (
    "All emojis designed by OpenMoji (https://openmoji.org), the open-source emoji and icon "
    "project. License: CC BY-SA 4.0"
)
TEXT = f"""{ATTRIBUTION}

The scenes in this folder are adapted from OpenMoji: `addp scenes` turned, mirrored and scaled its
emoji, and put them over each other on backgrounds of its own. They are under the same licence,
{NAME}: {URL}

Whoever passes them on names OpenMoji, says what was changed, and keeps the licence.
"""
