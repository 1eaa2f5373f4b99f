"""The table of names: a bijection with the encoder, and transformers' own."""

from types import ModuleType

import torch
from support.models import TINY, tiny_encoder

from e5core import Encoder
from e5core.checkpoint.names import tensor_names, tensor_shapes


def test_names_are_a_bijection_with_the_encoder(dialect: str) -> None:
    names = tensor_names(TINY[dialect])
    with torch.device("meta"):
        ours = Encoder(TINY[dialect]).state_dict()
    assert len(set(names.values())) == len(names)
    assert set(names.values()) == set(ours)
    shapes = {name: tuple(ours[names[name]].shape) for name in names}
    assert tensor_shapes(TINY[dialect]) == shapes


def test_names_are_those_of_transformers(oracle: ModuleType, dialect: str) -> None:
    """Name by name with shapes; every dimension of the tiny models is another number."""
    encoder = tiny_encoder(dialect)
    config = oracle.transformers.AutoConfig.for_model(**encoder.config.to_dict())
    with torch.device("meta"):
        theirs = oracle.transformers.AutoModel.from_config(
            config, add_pooling_layer=False
        ).state_dict()
    ours = encoder.state_dict()
    assert {
        published: ours[name].shape for published, name in tensor_names(encoder.config).items()
    } == {name: tensor.shape for name, tensor in theirs.items()}
