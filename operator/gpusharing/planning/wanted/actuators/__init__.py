"""By which programs does a node get its layout, and what are the answers of each such stack to the five questions?"""
