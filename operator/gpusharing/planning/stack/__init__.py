"""Can NVIDIA's installation, and ours beside it, carry out what a policy asks for?"""
