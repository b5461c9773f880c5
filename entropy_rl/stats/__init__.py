"""Statistics over the valid tokens of [B, T] arrays: pure functions that need no model."""
