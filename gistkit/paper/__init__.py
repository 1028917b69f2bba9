"""What only the 2023 system needs: weight diffs, released checkpoints, the paper's tables."""
