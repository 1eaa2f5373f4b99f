"""From token states to one vector a text."""

from collections.abc import Callable

import torch
from torch import Tensor


def mean_pool(hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Average the token states of each text.

    hidden_states  [tokens, hidden_size]  any float; summed in float32 or wider
    cu_seqlens     [texts + 1] int32      token offsets, see PackedBatch
    returns        [texts, hidden_size]   float32 or wider, not normalised

    Raises ValueError if a text has no tokens.
    Source: multilingual E5 report, arXiv:2402.05672.
    """
    lengths = cu_seqlens.diff().tolist()
    if 0 in lengths:
        raise ValueError(f"text {lengths.index(0)} has no tokens to average")
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    # One reduction a text rather than one over the batch: torch sums these pairwise, so the
    # error stays near one rounding, and a text's mean cannot depend on its neighbours.
    means = [states.mean(dim=0, dtype=dtype) for states in hidden_states.split(lengths)]
    return torch.stack(means)


def cls_pool(hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Take the state of each text's first token, `<s>`.

    Shapes, dtype and errors as in mean_pool. Used by BAAI/bge-m3 and
    Snowflake/snowflake-arctic-embed-l-v2.0.
    """
    lengths = cu_seqlens.diff()
    if bool((lengths == 0).any()):
        raise ValueError(f"text {lengths.tolist().index(0)} has no tokens to take the first of")
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    return hidden_states[cu_seqlens[:-1].long()].to(dtype)


def l2_normalize(vectors: Tensor) -> Tensor:
    """Scale each vector [..., hidden_size] to unit length; a zero vector stays zero."""
    return torch.nn.functional.normalize(vectors, dim=-1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": mean_pool, "cls": cls_pool}
