"""What should a node be, and which configuration makes it so?"""
