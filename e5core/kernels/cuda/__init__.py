"""An NVIDIA GPU: operations, kernels in Triton, recorded graphs."""
