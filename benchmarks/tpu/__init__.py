"""The parts of `benchmarks.tpu_compile`: JEST's step and the TPU compiler."""
