"""Training.

loop         the training loop, from top to bottom
task         what the loop asks of what it trains
tokenizer    the task of training a tokenizer; its validation clips and fingerprint
pretraining  masked pretraining of recognition backbones
losses       the terms of its objective and their weights
perceptual   LPIPS and the distance of a classifier's logits
state        all that a run needs to go on; optimizer, moving average
clock        the end of a run, its learning rate, and when it logs, saves and stops
run_folder   config, checkpoints, scalars, pictures; the fingerprint of a run's settings; branches of a run
distributed  the processes of one run
curves       plots of the scalars
"""
