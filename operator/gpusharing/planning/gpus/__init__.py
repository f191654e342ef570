"""What a card can do, into which layouts it can be divided, and whether it is healthy."""
