"""Evaluation: generated samples to features, scores with intervals, and cost."""
