"""How ranks are started on machines. Imports no torch, and of `trainer` the run folder only."""
