"""What a mask is and how one is made."""
