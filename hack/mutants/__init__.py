"""Mutants of the product: each of its guards is removed, one at a time, and a named test must fail."""
