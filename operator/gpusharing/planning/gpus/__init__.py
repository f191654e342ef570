"""What can a card do, into which layouts can it be divided, and is it healthy?"""
