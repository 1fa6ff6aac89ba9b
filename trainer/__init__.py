"""Training, generation and evaluation of the networks. Imports `model` and `data_pipeline` only."""
