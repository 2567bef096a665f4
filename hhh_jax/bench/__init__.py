"""Benchmarks: how fast parts of hhh_jax are, against what. `python -m hhh_jax.bench` runs them.

Each module here is one benchmark, by its name: its docstring says what it measures, in what unit, against what, and its
function ``rows(quick)`` yields `hhh_jax.bench.harness.timing.Row`. A new file is a new benchmark; nothing else lists
them. `harness` has what they share, `contenders` the programs that they race.
"""
