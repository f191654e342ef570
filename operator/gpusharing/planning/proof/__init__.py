"""Is a node what it should be, and what would a change disturb?"""
