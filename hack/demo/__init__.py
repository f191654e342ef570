"""`make demo`: one story about four GPU pools, played on a FakeCluster or on a real control plane."""
