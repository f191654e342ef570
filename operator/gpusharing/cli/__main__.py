"""`python -m gpusharing.cli`: the same as `kubectl-gpusharing`."""

from gpusharing.cli.main import main

if __name__ == "__main__":
    main()
