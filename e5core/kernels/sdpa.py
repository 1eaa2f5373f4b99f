"""PyTorch's fused attention over groups of texts of equal length."""

from itertools import groupby, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from e5core.kernels.plain import PlainKernels, text_offsets


class SdpaKernels(PlainKernels):
    name = "sdpa"

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        dropout: float,
    ) -> Tensor:
        """Neighbouring texts of one length make one dense batch, so no mask is needed.

        Batches come sorted by length (see plan_batches), which makes these groups large.
        """
        offsets = text_offsets(cu_seqlens, max_seqlen)
        lengths = (stop - start for start, stop in pairwise(offsets))
        groups = [(length, len(list(run))) for length, run in groupby(lengths)]
        sizes = [length * texts for length, texts in groups]
        outputs = []
        for (length, texts), q, k, v in zip(
            groups, query.split(sizes), key.split(sizes), value.split(sizes), strict=True
        ):
            q, k, v = (x.unflatten(0, (texts, length)).transpose(1, 2) for x in (q, k, v))
            dense = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
            # [texts, heads, length, head_size]
            outputs.append(dense.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)
