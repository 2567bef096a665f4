"""Published datasets, one file each: how their files become records. `hhh_jax.data.prepare` runs them."""
