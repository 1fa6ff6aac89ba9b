"""How fast devices are, as their makers say. Imports no torch."""

from __future__ import annotations

PEAKS = {  # dense bf16 operations a second, from the makers' data sheets
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "MI300X": 1307e12,
    "V100": 125e12,
}
