"""Training of tokenizers, pretraining of backbones, and the training loop of all models.

loop         the training loop with its schedule and clocks
task         interfaces of the loop: batches and tasks
tokenizer    training task of tokenizers; validation clips and fingerprint
pretraining  masked pretraining of recognition backbones
prior        training of the network with which the codec predicts tokens
losses       terms of the tokenizer's objective and their weights
perceptual   LPIPS and the distance of a classifier's logits
state        state of a run: model, optimizer, moving average; processes of a run
run_folder   folder of a run: config, checkpoints, scalars, pictures; fingerprint of its settings; branches
curves       plots of the scalars
"""
