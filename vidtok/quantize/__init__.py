"""Quantizers: latents in, codes and integer ids out, behind one protocol (`base.Quantizer`).

lfq      sign of every channel, the paper's lookup-free quantization, and its residual form
fsq      a few levels per channel (Mentzer et al. 2023)
vq       a learned codebook, the paper's VQ-VAE baseline
entropy  the two entropy terms of LFQ, exact and cheap
"""

from vidtok.quantize.base import Quantizer as Quantizer
from vidtok.quantize.entropy import lfq_entropy as lfq_entropy
from vidtok.quantize.fsq import FSQ as FSQ
from vidtok.quantize.lfq import LFQ as LFQ
from vidtok.quantize.vq import VQ as VQ

QUANTIZERS = {"lfq": LFQ, "fsq": FSQ, "vq": VQ}
