"""The image of operator and agent: `make images`, `python -m hack.images [--arch amd64]`, or `local.build()`.

No root, no container program and no registry is needed. Downloads are kept in the user's cache.
"""
