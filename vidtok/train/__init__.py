"""Training a tokenizer.

loop           the whole loop, top to bottom
state          all that a run needs to go on
loss           the terms of the objective and their weights
adversarial    those between tokenizer and discriminator
discriminator  the 3-D StyleGAN discriminator
schedule       learning rate over a run
clock          what is due when
processes      those of one run
stop           SIGTERM and Ctrl-C as a wish
folder         the run folder: config, checkpoints, scalars, pictures
"""
