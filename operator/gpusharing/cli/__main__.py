"""`python -m gpusharing.cli` does the same as `kubectl-gpusharing`."""

from gpusharing.cli.main import main

if __name__ == "__main__":
    main()
