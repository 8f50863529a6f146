"""Thousands of requests, many of which fail, are given up or come at once: what leaks, and what gets mixed up.

    python -m benchmarks.soak threads prefix eval app --requests 2000 --out build/soak

Each part asks the model in the box what it has answered before, alone and undisturbed, and compares.
"""
