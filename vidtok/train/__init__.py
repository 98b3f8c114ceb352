"""Training a tokenizer.

loop      the whole loop, top to bottom
loss      the terms of the objective and their weights
schedule  learning rate and entropy weight over a run
folder    the run folder: config, checkpoints, scalars, pictures
"""
