"""Whether a run would train on several machines: `python -m trainer.preflight.doctor`."""
