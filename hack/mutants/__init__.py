"""Mutants of the product: each of its guards taken away in turn, and the named test that must notice."""
