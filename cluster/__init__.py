"""Where work is started on machines: the `addp` command line, launches, and the demo."""
