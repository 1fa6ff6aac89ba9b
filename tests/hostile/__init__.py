"""Hostile and odd cases, a table a file; `tests/test_hostile.py` runs them all."""
