"""What one command runs: a study of recipes, each of them measured once."""
