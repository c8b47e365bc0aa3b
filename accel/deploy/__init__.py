"""Deployment: a recipe as a file, checked on the model that it was measured on, and applied to a pipeline."""
