"""How far is one node on its way, from candidate to release, and what is its next step?"""
