"""Whether one machine is fit to train: `python -m trainer.preflight.node`."""
