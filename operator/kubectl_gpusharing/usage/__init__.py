"""Who holds the GPUs now, what did they cost, and which layout would suit their workloads?

Five verbs of the plugin: `free` reads Nodes and Pods, `cost` and `recommend` read Prometheus, `advise` asks the user,
and `ui` serves a page about pools and their tenants.
"""
