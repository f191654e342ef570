"""What do people see: status, Events, and the transition of a GPUNode?"""
