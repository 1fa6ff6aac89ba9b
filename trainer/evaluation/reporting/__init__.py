"""What `trainer.evaluation.report` makes its page from. Imports no torch."""
