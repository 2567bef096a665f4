"""Programs that benchmarks race, each started by `hhh_jax.bench.harness.contender.Contender`."""
