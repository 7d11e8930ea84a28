"""A very small vision transformer that knows the drawn pasture; CARD.md says how it was made."""
