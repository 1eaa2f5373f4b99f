"""scikit-learn: texts to features. Needs scikit-learn, the extra `sklearn`."""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from e5core.integrations import extra
from e5core.model import E5, InputType, Truncate, Vectors
from e5core.texts.containers import several

with extra("sklearn", "sklearn"):
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin


class E5Transformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Texts to unit vectors, as a step of a pipeline.

    >>> make_pipeline(E5Transformer(), LogisticRegression())  # doctest: +SKIP

    It learns nothing: `fit` only checks its arguments. All clones and copies in a process share
    one loaded model. A pickle holds the parameters and no weights.
    """

    def __init__(
        self,
        model: str | Path = "intfloat/multilingual-e5-small",
        *,
        input_type: InputType = "query",
        task: str | None = None,
        truncate: Truncate = "end",
        normalize: bool = True,
        dtype: str = "auto",
        device: str | None = None,
        kernels: str = "auto",
        prompts: str | Mapping[str, str] | None = None,
        truncate_dim: int | None = None,
    ) -> None:
        """Set the parameters; the model is loaded when it is first needed.

        model       a folder or a hub id
        input_type  "query", "passage", or None for no prefix. The default is "query", which the
                    models' cards ask for in clustering and for features of a classifier

        The other parameters are those of E5.from_pretrained and E5.embed.
        """
        self.model = model
        self.input_type = input_type
        self.task = task
        self.truncate = truncate
        self.normalize = normalize
        self.dtype = dtype
        self.device = device
        self.kernels = kernels
        self.prompts = prompts
        self.truncate_dim = truncate_dim

    def fit(self, X: Iterable[str], y: object = None) -> "E5Transformer":  # noqa: N803
        """Check that X holds texts. Nothing is learnt."""
        _texts(X)
        return self

    def transform(self, X: Iterable[str]) -> Vectors:  # noqa: N803
        """Embed the texts of a list, a Series or a one-dimensional array.

        returns  [texts, hidden_size] float32

        Raises ValueError or TypeError if X is a str or a table, or if it holds anything but str.
        """
        return self._loaded.encode(
            _texts(X),
            input_type=self.input_type,
            task=self.task,
            truncate=self.truncate,
            normalize=self.normalize,
            truncate_dim=self.truncate_dim,
            show_progress=False,
        )

    @property
    def _loaded(self) -> E5:
        # The cache wants what can be hashed.
        given = self.prompts
        prompts = tuple(sorted(given.items())) if isinstance(given, Mapping) else given
        return _load(str(self.model), self.dtype, self.device, self.kernels, prompts)

    @property
    def _n_features_out(self) -> int:
        """The number of features, from which get_feature_names_out makes their names."""
        return self._loaded.dimension if self.truncate_dim is None else self.truncate_dim

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = []
        return tags


# A grid search clones the estimator by the dozen; all clones share the weights through this cache.
@lru_cache(maxsize=2)
def _load(
    model: str,
    dtype: str,
    device: str | None,
    kernels: str,
    prompts: str | tuple[tuple[str, str], ...] | None,
) -> E5:
    chosen = dict(prompts) if isinstance(prompts, tuple) else prompts
    return E5.from_pretrained(model, dtype=dtype, device=device, kernels=kernels, prompts=chosen)


def _texts(X: Any) -> list[str]:  # noqa: N803
    """X as a list of texts.

    Raises ValueError for a str, and for a table: iterating over one gives the names of its columns.
    """
    if isinstance(X, str):
        raise ValueError("X is one str, expected several texts; pass [text]")
    if np.ndim(X) != 1 if hasattr(X, "ndim") else not isinstance(X, Iterable):
        raise ValueError(
            f"X is a {type(X).__name__} of the shape {np.shape(X)}, expected one column of texts; "
            'pass X["name"], in a ColumnTransformer the name as a str, not in a list'
        )
    if isinstance(X, Iterator):  # fit would leave nothing of it to transform
        raise ValueError(f"X is a {type(X).__name__}, which can be read only once; pass list(X)")
    return list(several(X, "X"))
