"""`make demo`: a story about four GPU pools on a FakeCluster or a real control plane."""
