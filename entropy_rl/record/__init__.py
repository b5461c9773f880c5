"""The record of a run: checkpoints, metrics and samples."""
