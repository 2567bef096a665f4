"""Alignment scaling studies in JAX: imitation, binary discrimination, ranked preferences and PMP (arXiv 2112.00861)."""

__version__ = "0.1.0"
