"""Says what a training step costs on N GPUs: measured compute, counted bytes, assumed links.

counting.py   the collectives of real steps, and the links they went over
model.py      from these to a step on any number of GPUs
plot.py       the two curves
"""
