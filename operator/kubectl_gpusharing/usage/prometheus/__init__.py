"""How does the plugin find and query a Prometheus?"""
