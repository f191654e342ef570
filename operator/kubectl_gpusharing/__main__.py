"""`python -m kubectl_gpusharing` does the same as `kubectl-gpusharing`."""

from kubectl_gpusharing.main import main

if __name__ == "__main__":
    main()
