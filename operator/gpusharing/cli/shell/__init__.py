"""What may be typed, for which cluster is it asked, and where does the answer go?"""
