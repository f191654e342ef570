"""How is the answer shown: as text, data, CSV, or a policy?"""
