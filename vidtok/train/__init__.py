"""Training.

loop         the training loop, from top to bottom: its schedule and its clocks too
task         what the loop asks of what it trains: batches and tasks
tokenizer    the task of training a tokenizer; its validation clips and fingerprint
pretraining  masked pretraining of recognition backbones
prior        the network by which the codec predicts tokens
losses       the terms of its objective and their weights
perceptual   LPIPS and the distance of a classifier's logits
state        all that a run needs to go on; optimizer, moving average; the processes of one run
run_folder   config, checkpoints, scalars, pictures; the fingerprint of a run's settings; branches of a run
curves       plots of the scalars
"""
