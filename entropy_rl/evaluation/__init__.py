"""Responses to fixed problems, and how good they are."""
