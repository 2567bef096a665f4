"""Evaluations of language models, and what they share."""
