"""What the benchmarks on real pairs share: runs, tables, measures."""
