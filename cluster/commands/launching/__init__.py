"""From the options of `addp launch` and a run's configuration to what is started where."""
