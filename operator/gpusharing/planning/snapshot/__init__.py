"""What did this pass find, what was known before, and what can be written back?"""
