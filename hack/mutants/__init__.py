"""Mutants of the product: each of its guards removed, one at a time, and the named test that must notice."""
