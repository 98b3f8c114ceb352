"""Tokens into the trunk and out of it: two summed embeddings, two heads tied to them (MAGVIT-v2, section 3.2).

Legend: B batch, N tokens, D width, V half vocabularies (low and high).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidtok.generator.halves import half_bits, ids_to_signs, split_ids


class TokenEmbedding(nn.Module):
    """ids -> sum of a vector for the low and one for the high half.

    The tables begin linear in the bits of the ids, for LFQ's bits have a meaning: ids that share most of them look
    alike, and what is learned of one at the start holds for the others. The tied heads begin so, too.
    """

    def __init__(self, bits: int, width: int):
        super().__init__()
        self.bits = bits
        self.low, self.high = (nn.Embedding(2**half, width) for half in half_bits(bits))
        for table, half in zip((self.low, self.high), half_bits(bits), strict=True):
            signs_VK = ids_to_signs(torch.arange(2**half), half)
            table.weight.data = signs_VK @ torch.randn(half, width) / (half * width) ** 0.5

    def forward(self, ids_BN: Tensor) -> Tensor:
        low, high = split_ids(ids_BN, self.bits)
        return self.low(low) + self.high(high)


class TokenHeads(nn.Module):
    """Features -> logits of both halves, the output weights being those of the embedding.

    Args:
        embedding: shared with the input.
        conditioned: the high half is predicted knowing the low one, as p(low) p(high | low); otherwise independently.
    """

    def __init__(self, embedding: TokenEmbedding, width: int, conditioned: bool):
        super().__init__()
        self.embedding, self.conditioned = embedding, conditioned
        self.dense = nn.Linear(width, width)
        self.low_bias, self.high_bias = (nn.Parameter(torch.zeros(2**half)) for half in half_bits(embedding.bits))
        self.mix = nn.Linear(width, width) if conditioned else None

    def low_logits(self, x_BND: Tensor) -> Tensor:
        """float [B, N, V_low]."""
        return self.project(x_BND, self.embedding.low, self.low_bias)

    def high_logits(self, x_BND: Tensor, low_BN: Tensor) -> Tensor:
        """float [B, N, V_high]; `low_BN` are the low halves, looked at only where the heads are conditioned."""
        if self.conditioned:
            # Normed as the features are: the table's rows have a norm of about 1, and would be drowned.
            low_BND = F.layer_norm(self.embedding.low(low_BN), x_BND.shape[-1:])
            x_BND = x_BND + F.gelu(self.mix(x_BND + low_BND), approximate="tanh")
        return self.project(x_BND, self.embedding.high, self.high_bias)

    def project(self, x_BND: Tensor, half: nn.Embedding, bias: Tensor) -> Tensor:
        y = F.layer_norm(F.gelu(self.dense(x_BND), approximate="tanh"), x_BND.shape[-1:])
        return F.linear(y, half.weight, bias).float()
