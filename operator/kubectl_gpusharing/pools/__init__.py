"""What is the state of the pools?"""
