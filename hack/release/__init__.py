"""A release: what is prepared for it, what must hold before it, and how it is published. `python -m hack.release --help`
lists the steps; `make release VERSION=0.1.0` is the first of them.

| Step | Reads | Writes |
|---|---|---|
| `prepare` | the checkout, the archives of `make images` | build/release: notes, image for both platforms, chart, wheel, sdist, krew, hashes |
| `check` | build/release, the record of a passed CI, a file of advisories | nothing |
| `publish` | build/release | a registry: image and chart, with signatures and bills of materials |

No step needs a container program. `publish` runs `check` first.
"""
