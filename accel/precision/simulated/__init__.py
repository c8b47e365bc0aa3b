"""Precisions whose arithmetic is imitated in float32: their quality counts, their time does not."""
