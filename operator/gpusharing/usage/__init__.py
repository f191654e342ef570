"""Who holds the GPUs now, what did they cost, and which layout would suit the workloads that used them? Three verbs of
the plugin: `free` reads Nodes and Pods, `cost` and `recommend` read only Prometheus."""
