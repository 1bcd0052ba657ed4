"""Parhelion on JAX."""
