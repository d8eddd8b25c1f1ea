"""What comes in: images, and a frozen, checked teacher."""
