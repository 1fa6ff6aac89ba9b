"""One supervisor on each node: it starts the ranks there, watches them, and heals the run.

Imports no torch. It starts the trainer as a command and reads its run folder.
"""
