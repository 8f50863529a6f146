"""One prepared run of all that needs a GPU: `python -m benchmarks.gpu`; see docs/benchmarks.md."""
