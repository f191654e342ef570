"""What is told to people: status, events, and the transition of a GPUNode?"""
