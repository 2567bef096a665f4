"""What benchmarks share: interleaved timing, processes to race, the record, generated input."""
