"""Whether NVIDIA's installation, and ours beside it, can carry out what a policy asks for."""
