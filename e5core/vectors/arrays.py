"""Vectors as callers hold them: arrays, lists, and tensors of any device and dtype."""

from typing import Any

import numpy as np
import numpy.typing as npt


def as_array(vectors: Any) -> npt.NDArray[Any]:
    """Vectors as NumPy takes them. It has no bfloat16, so such tensors become float32, exactly.

    vectors  an array, a list of numbers, a tensor, or a list of tensors of one size

    Raises TypeError for what holds no real numbers, such as texts.
    """
    if isinstance(vectors, (list, tuple)) and vectors and hasattr(vectors[0], "detach"):
        return np.stack([as_array(vector) for vector in vectors])
    if hasattr(vectors, "detach"):  # a tensor, by what torch alone has: this room knows no torch
        vectors = vectors.detach().cpu()
        if str(vectors.dtype) == "torch.bfloat16":
            vectors = vectors.float()
    array = np.asarray(vectors)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"vectors are an array of {array.dtype}, expected numbers; texts become vectors by "
            "encode_query and encode_passage"
        )
    return array
