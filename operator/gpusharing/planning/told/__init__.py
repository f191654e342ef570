"""What is told to people: status, events, and the mirror in GPUNode?"""
