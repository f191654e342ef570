"""`make bench`: what the operator and the agent cost, measured on a real control plane under the shipped RBAC."""
