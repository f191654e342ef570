"""How is the answer presented: as text, data, CSV, or a policy?"""
