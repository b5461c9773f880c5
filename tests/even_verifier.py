"""A verifier by which a model that has learnt nothing is right about half of the time."""


def even(response: str, answer: str) -> float:
    """1.0 if the response has an even number of characters."""
    return float(len(response) % 2 == 0)
