"""How is a Prometheus found and queried?"""
