"""Statistics with intervals, distribution metrics, and networks that see images: features and CLIP score."""
