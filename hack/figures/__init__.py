"""`make report`: the figures for users on docs/explanation/performance.md."""
