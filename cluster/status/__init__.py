"""How a run is doing, read from its folder or its store. Imports no torch."""
