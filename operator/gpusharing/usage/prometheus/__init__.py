"""How is a Prometheus found and asked?"""
