"""What did this pass find? Frozen views of the cluster and of our own records, read once, without decisions."""
