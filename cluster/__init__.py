"""Where work is started on machines: the `addp` command line and launches. Of `trainer`, only the
light contract."""
