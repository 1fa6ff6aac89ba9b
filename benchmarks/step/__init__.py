"""Measures one ADDP training step beside a step as the reference takes it.

rates.py      what the machine can do: products, memory, its name
stages.py     the clock of a step's stages
variants.py   the two steps: ours, and the reference's
work.py       operations and bytes of each stage, and the time that they must take
worker.py     a process that holds one variant and takes its steps
rows.py       the rows that are printed
plot.py       the bar chart
"""
