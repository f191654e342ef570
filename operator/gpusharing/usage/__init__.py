"""Who holds the GPUs now, what did they cost, and which layout would suit the workloads that used them? Four verbs of
the plugin: `free` reads Nodes and Pods, `cost` and `recommend` read Prometheus, and `advise` asks the user."""
