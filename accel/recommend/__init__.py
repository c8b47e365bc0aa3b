"""From a checkpoint to a recommended recipe: what to search, how to divide the time, and what the result says."""
