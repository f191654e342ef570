"""What did the GPUs cost, and which layout suits what used them? Two verbs of the plugin, from Prometheus alone."""
