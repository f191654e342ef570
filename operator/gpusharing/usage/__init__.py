"""What did the GPUs cost, and which layout would suit the workloads that used them? Two verbs of the plugin that read
only Prometheus."""
