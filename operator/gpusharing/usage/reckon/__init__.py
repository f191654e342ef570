"""What does that cost, and which layout would suffice? Pure."""
