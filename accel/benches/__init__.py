"""Benchmarks that are run once and by hand, each beside the table that it makes."""
