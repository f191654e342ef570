"""A release: `prepare` (`make release VERSION=0.1.0`), `check` what forbids it, and `publish` it.

`python -m hack.release --help` describes the steps. None needs a container program.
"""
