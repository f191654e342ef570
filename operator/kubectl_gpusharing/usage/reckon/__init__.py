"""What does the GPU time cost, and which layout would suffice for the workloads? Pure."""
