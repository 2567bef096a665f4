"""Small sources of the tests' own, as a user may write them: ``--source=own_sources.threads``."""
