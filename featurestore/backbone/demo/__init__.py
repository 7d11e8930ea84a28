"""A very small vision transformer that knows the drawn pasture, for `biomass demo` and tests;
CARD.md says how it was made."""
