"""Records, and what is rebuilt from them: tables, figures, wandb runs."""
