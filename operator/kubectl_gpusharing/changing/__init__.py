"""What would a change do, and how does a person steer a rollout?"""
