"""Every bound of the suite, with its reason."""

# Two correct float32 encoders differ by the order in which they add. On unit vectors whose
# numbers are about 0.05 the difference measured over lengths 1 to 512 is at most 3e-7; wrong
# positions, a tanh GELU or a lost bias change them by 1e-4 and more.
UNIT_VECTOR_FLOAT32 = 2e-6

# A text's vector alone and among others: the same sums, but the matrix library may block them
# in another way for another number of rows. Measured: at most 2e-7.
BATCH_INVARIANCE_FLOAT32 = 2e-6

# FlashAttention's rule for a kernel: its error against float64 is at most twice that of the
# plain kernels in the same dtype, plus a floor of some roundings for values near zero.
KERNEL_ERROR_FACTOR = 2.0
KERNEL_ERROR_FLOOR = {"float32": 1e-6, "bfloat16": 2e-2, "float16": 2e-3, "float64": 1e-14}
