"""The training loop, its draws, its checkpoints, and the two jobs it does: teach and distill."""
