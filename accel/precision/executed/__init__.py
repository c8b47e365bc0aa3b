"""Precisions that really run: casts, compilers and the kernels of other libraries."""
