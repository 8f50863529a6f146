"""What was measured, and what measures it. A package, so that nobody else's `benchmarks` is found in its place."""
