"""From text or pairs to packed batches."""
