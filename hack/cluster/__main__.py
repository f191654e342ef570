"""The entry point of `python -m hack.cluster`; the verbs are in hack/cluster/cli.py."""

import sys

from hack.cluster.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
