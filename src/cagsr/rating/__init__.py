"""Blind rating by people: what they see, how it is kept, and what it says afterwards."""
