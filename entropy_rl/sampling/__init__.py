"""Prompts in, responses out: one `Sampler` protocol, with a local sampler and a server's."""
