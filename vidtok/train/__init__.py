"""Training.

loop           the whole loop, top to bottom
task           what it asks of the things it trains
state          all that a run needs to go on
batch          parts of batches of any structure
activations    computed again on the way back, to save memory
schedule       learning rate over a run
branch         a run that goes on from another run's checkpoint, in a folder of its own
clock          what is due when
processes      those of one run
stop           SIGTERM and Ctrl-C as a wish
folder         the run folder: config, checkpoints, scalars, pictures
curves         pictures of the scalars

tokenizer      the task of training a tokenizer
loss           the terms of its objective and their weights
adversarial    those between tokenizer and discriminator
fixed_clips    by which a person sees how it goes
discriminator  the 3-D StyleGAN discriminator
"""
