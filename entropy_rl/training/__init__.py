"""The engine of a run and what it is made of: batches, scoring, updates, experience, the warm-up."""
