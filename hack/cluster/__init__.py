"""A Kubernetes control plane for development, tests and the demo: real API server, no machines behind it."""
