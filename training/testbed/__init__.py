"""Trains the adapter of the testbed."""
