"""A release: what is prepared for it, what must hold before it, and how it is published.

`python -m hack.release --help` lists the steps. No step needs a container program.

- `prepare` (`make release VERSION=0.1.0`) writes build/release from the checkout and the archives of `make images`.
- `check` says what forbids the release. It reads build/release, the record of a passed CI, and a file of advisories.
- `publish` runs `check`, pushes image and chart to a registry, and signs both.
"""
