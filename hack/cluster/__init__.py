"""A Kubernetes control plane for development, tests and the demo: the API server is real, the nodes are not."""
