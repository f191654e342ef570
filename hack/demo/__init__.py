"""`make demo`: a story about four GPU pools on a FakeCluster or a real control plane, or with DRIVER=nvidia one about
two nodes with NVIDIA's programs."""
