"""What a run would need on a topology that is not present: memory, time and collectives."""
