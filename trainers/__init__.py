"""The commands as modules: `python -m trainers.train` is `jest-tf train`."""
