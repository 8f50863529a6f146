"""Tensor operations that selection is made of; none of them knows a model or a method."""
