"""How do the pools stand?"""
