"""What should a node be, which configuration makes it so, and is it so?"""
