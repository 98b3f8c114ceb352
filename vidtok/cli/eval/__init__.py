"""Measure a model. Every kind has its own --help:

vidtok eval reconstruction videos/                     # what a tokenizer loses
vidtok eval probe grid.csv --label-column command      # what its features know
vidtok eval recognition HEAD grid.csv --split val      # a trained head on a split
vidtok eval finetune data.source=grid.csv ...          # a recognition head, end to end
vidtok eval compare data.source=grid.csv ...           # tokens, codes, latents, pixels, reconstructions
vidtok eval generation MODEL digits --i3d FILE         # generated clips against real ones
vidtok eval generation-compare data.source=digits ...  # masked, autoregressive, diffusion at equal budgets
vidtok eval agreement videos/ --i3d FILE               # a classifier on clips and on reconstructions
"""

# kind -> what it does; its module is KIND.py
KINDS = {
    "reconstruction": "PSNR, SSIM, LPIPS, rFVD, rate and codebook usage of a tokenizer",
    "probe": "logistic regression, kNN or an attentive probe on a tokenizer's features",
    "recognition": "accuracy of a trained head on a split",
    "finetune": "train a recognition head end to end and test it",
    "generation": "FVD, FID and a recogniser's agreement of a generator's clips",
    "generation-compare": "masked, autoregressive and diffusion generators at equal data, parameters and seconds",
    "agreement": "whether a classifier sees the same in clips and their reconstructions",
    "compare": "the same head reading tokens, codes, latents, pixels or reconstructions",
}
