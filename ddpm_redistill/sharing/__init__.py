"""What a student needs to be given away: a card that says what it is, and the way to a hub."""
