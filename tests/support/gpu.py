"""What tests on a GPU have in common: numbers, and the published geometries with random weights."""

import copy
from functools import cache

import torch

from e5core import E5, Encoder, EncoderConfig
from e5core.parity.samples import spread_weights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# The published geometries with a small vocabulary, and the length that bge-m3 takes.
GEOMETRIES = {
    "small": EncoderConfig("bert", 300, 384, 12, 12, 1536, 512, 0, 2, 1e-12),
    "base": EncoderConfig("xlm-roberta", 300, 768, 12, 12, 3072, 514, 2, 1, 1e-5),
    "large": EncoderConfig("xlm-roberta", 300, 1024, 24, 16, 4096, 8194, 2, 1, 1e-5),
}
KERNELS = {"float32": "sdpa", "bfloat16": "cuda", "float16": "cuda"}
LENGTHS = (1, 2, 3, 15, 16, 17, 31, 33, 64, 100, 127, 128, 129, 255, 256, 257, 511, 512)


def normal(*shape, dtype=torch.bfloat16, seed=0):
    """Random numbers on the GPU, or on the CPU where there is none."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


@cache
def weights(geometry):
    return spread_weights(Encoder(GEOMETRIES[geometry])).eval()


def prepared(geometry, dtype, kernels):
    encoder = copy.deepcopy(weights(geometry)).to("cuda")
    return encoder.prepare_for_inference(getattr(torch, dtype), kernels)


def texts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, 300, (n,), generator=generator).tolist() for n in lengths]


def load(folder, device="cuda", dtype="bfloat16", **options):
    return E5.from_pretrained(folder, device=device, dtype=dtype, prompts="e5", **options)


def put_vectors(queue, folder, texts):
    """The life of a process with a model of its own.

    It is here because a new process can import this module, and not that of a test.
    """
    queue.put(load(folder).encode_query(texts))
